"""The spans of traces with their times, under names that the spans of one kind share.

Names are read as they were sent, with two exceptions. Ids and numbers in them are folded, so that spans that do the
same share a name. And an HTTP client's span, which by convention is named for its method alone, is named for the host
too (https://opentelemetry.io/docs/specs/semconv/http/http-spans/#name).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import Connection

from tachograph.redaction import mask_text
from tachograph_exporter.ingest.spans import attributes_of
from tachograph_exporter.store import samples
from tachograph_exporter.store.failure_groups.template import VALUE
from tachograph_exporter.store.samples import SpanTime

MAX_NAME: Final = 200
"""Characters of a name."""
MAX_CLIENT_SPANS: Final = 2_000
"""HTTP clients' spans whose host is read; others are named for their method."""
_CHUNK: Final = 500
_METHODS: Final = frozenset(
    f"{before}{method}"
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
    for before in ("", "HTTP ")
)
_HOST_KEYS: Final = ("server.address", "net.peer.name", "http.host")
_URL_KEYS: Final = ("url.full", "http.url")
_VALUES: Final = re.compile(
    r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"  # a UUID
    r"|\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d[\d:.]*Z?)?"  # a date or time
    r"|\b(?=[0-9a-fA-F]*\d)(?=[0-9]*[a-fA-F])[0-9a-fA-F]{8,}\b"  # a hash
    r"|(?<![\w.-])\d+(?![\w.-])"  # a number by itself, as in /users/17
    r"|(?<![A-Za-z0-9.])\d{3,}(?![A-Za-z0-9.])"  # one that is a part of a word, as in job-1234
    r"|(?<=_)\d{3,}(?![A-Za-z0-9.])"
)


@functools.lru_cache(maxsize=8192)
def folded_name(name: str) -> str:
    """A span's name without ids, numbers and secrets."""
    return mask_text(_VALUES.sub(VALUE, name[: 4 * MAX_NAME]), MAX_NAME)


def read_span_times(connection: Connection, workspace: str, trace_ids: Sequence[str]) -> dict[str, list[SpanTime]]:
    """The spans of those of the traces that are not too long, by trace id; see `samples.span_times`."""
    by_trace = samples.span_times(connection, workspace, trace_ids)
    clients = [(span.trace_id, span.span_id) for spans in by_trace.values() for span in spans if span.name in _METHODS][
        :MAX_CLIENT_SPANS
    ]
    hosts: dict[tuple[str, str], str] = {}
    for i in range(0, len(clients), _CHUNK):
        for key, (payload, _, _) in samples.span_payloads(connection, workspace, clients[i : i + _CHUNK]).items():
            hosts[key] = _host(Span.FromString(payload))
    return {
        trace_id: [span._replace(name=_named(span, hosts.get((trace_id, span.span_id), ""))) for span in spans]
        for trace_id, spans in by_trace.items()
    }


def _named(span: SpanTime, host: str) -> str:
    return folded_name(f"{span.name} {host}" if host else span.name)


def _host(span: Span) -> str:
    """The host that an HTTP client's span called; empty of a server's span, or if it does not say."""
    if span.kind != Span.SPAN_KIND_CLIENT:
        return ""
    attributes: Mapping[str, Any] = attributes_of(span.attributes)
    for key in _HOST_KEYS:
        if isinstance(host := attributes.get(key), str) and host:
            return host
    for key in _URL_KEYS:
        if isinstance(url := attributes.get(key), str):
            try:
                return urlsplit(url).hostname or ""
            except ValueError:
                return ""
    return ""
