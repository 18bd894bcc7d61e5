"""Requests with spans that have not ended: OTLP/HTTP with protobuf, where the end of such a span is 0.

OTLP does not say what a receiver makes of a span without an end, and others than Tachograph keep it as one that ended
in 1970. So a sender asks first: it exports nothing, which every receiver accepts, and Tachograph answers with a header
that says for how many seconds it believes that an open span is running (`LEASE_HEADER`).

Wire format: https://opentelemetry.io/docs/specs/otlp/#otlphttp. Environment variables:
https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
"""

from __future__ import annotations

import gzip
import math
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.re import parse_env_headers

from tachograph.errors import SetupError
from tachograph.version import version

LEASE_HEADER: Final = "Tachograph-Lease-Seconds"
"""The header of a response that says how long an open span counts as running without being heard of."""
ENDPOINT_VARIABLE: Final = "TACHOGRAPH_LIVE_SPANS_ENDPOINT"
DEFAULT_ENDPOINT: Final = "http://localhost:4318"
DEFAULT_TIMEOUT_SECONDS: Final = 10.0
_PATH: Final = "v1/traces"
_TRIES: Final = 3


class Answer(NamedTuple):
    """What a receiver answered: the HTTP status, and for how long it believes in open spans (None: it does not say)."""

    status: int
    lease_seconds: float | None


def open_spans_request(spans: Sequence[ReadableSpan]) -> bytes:
    """An export request with these spans as open ones, without those that cannot be encoded."""
    request = _encoded(spans)
    for group in request.resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                span.end_time_unix_nano = 0
                # Whether it failed is known when it ends.
                span.ClearField("status")
    return request.SerializeToString()


def ended_spans_request(spans: Sequence[ReadableSpan]) -> bytes:
    """An export request with these spans as they ended, without those that cannot be encoded."""
    return _encoded(spans).SerializeToString()


def _encoded(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    for _ in range(_TRIES):
        try:
            return encode_spans(spans)
        except RuntimeError:  # The program changed a span meanwhile.
            continue
        except Exception:
            break
    whole = ExportTraceServiceRequest()
    for span in spans:
        try:
            whole.MergeFrom(encode_spans([span]))
        except Exception:  # noqa: S112 - no span may keep the others from being sent
            continue
    return whole


class Destination(NamedTuple):
    """Where requests go; see `destination`. ``certificate`` and ``client`` are paths of PEM files for TLS."""

    url: str
    headers: Mapping[str, str]
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    is_compressed: bool = False
    certificate: str | None = None
    client: tuple[str, str | None] | None = None

    def send(self, body: bytes, *, timeout_seconds: float | None = None) -> Answer:
        """Send a request. Raises `OSError` when it cannot be delivered, `ValueError` when a setting cannot work."""
        headers = {"User-Agent": f"tachograph/{version()}", **self.headers, "Content-Type": "application/x-protobuf"}
        if self.is_compressed:
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")  # noqa: S310
        timeout = self.timeout_seconds if timeout_seconds is None else min(timeout_seconds, self.timeout_seconds)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self._tls()) as response:  # noqa: S310
                response.read()
                return Answer(response.status, _lease(response.headers.get(LEASE_HEADER)))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, None)

    def _tls(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=self.certificate)
        if self.client is not None:
            context.load_cert_chain(*self.client)
        return context


def _lease(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def destination(
    endpoint: str | None = None,
    headers: Mapping[str, str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Destination:
    """Where spans go as the ``OTEL_EXPORTER_OTLP_*`` variables say.

    ``endpoint`` (default: ``TACHOGRAPH_LIVE_SPANS_ENDPOINT``) is another URL, to whose root ``/v1/traces`` is added;
    ``headers`` replace those of the variables. Raises `SetupError` when the URL is none, or the variables ask for gRPC.
    """

    def setting(name: str) -> str | None:
        names = (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}")
        return next((value for name in names if (value := environment.get(name, "").strip())), None)

    own = endpoint or environment.get(ENDPOINT_VARIABLE, "").strip()
    if own:
        url = f"{own.rstrip('/')}/{_PATH}" if _path_of(own) in ("", "/") else own
    elif setting("PROTOCOL") == "grpc":
        raise SetupError(
            "the OTLP exporter uses gRPC, and open spans are sent by HTTP; set "
            f"{ENDPOINT_VARIABLE} to the HTTP address of Tachograph, for instance http://127.0.0.1:9923"
        )
    else:
        url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
        url = url or f"{(setting('ENDPOINT') or DEFAULT_ENDPOINT).rstrip('/')}/{_PATH}"
    _path_of(url)
    certificate, key = setting("CLIENT_CERTIFICATE"), setting("CLIENT_KEY")
    return Destination(
        url,
        dict(headers) if headers is not None else parse_env_headers(setting("HEADERS") or "", liberal=True),
        _seconds(setting("TIMEOUT")),
        setting("COMPRESSION") == "gzip",
        setting("CERTIFICATE"),
        (certificate, key) if certificate else None,
    )


def _path_of(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.path
    except ValueError:
        pass
    raise SetupError(f"{url!r} is not a URL like http://127.0.0.1:9923, so no open spans are sent")


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or DEFAULT_TIMEOUT_SECONDS)
    except ValueError:
        return DEFAULT_TIMEOUT_SECONDS
    return seconds if 0 < seconds <= 3600 else DEFAULT_TIMEOUT_SECONDS


def in_parts(spans: Iterable[ReadableSpan], size: int) -> list[list[ReadableSpan]]:
    """The spans, ``size`` at a time."""
    ordered = list(spans)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]
