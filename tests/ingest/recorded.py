"""Recorded spans, and the orders and pieces in which a service gets them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Final

from tests.ingest.truth import RECORDINGS
from tools.recordings import read

from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.spans import SpanRecord, records_of

DELIVERIES: Final = (("as recorded", 0), ("by end", 3), ("reversed", 1), ("shuffled", 1))
"""Orders in which spans arrive, and how many in a request (0: all of them)."""


def recorded_spans(name: str) -> list[SpanRecord]:
    """The spans of a recording, in its order."""
    return spans_of((RECORDINGS / f"{name}.json").read_bytes())


def recorded_requests(name: str) -> list[list[SpanRecord]]:
    """The spans of a recording of requests, by request, as they arrived."""
    (path,) = RECORDINGS.glob(f"{name}.jsonl*")
    return [spans_of(json.dumps(request.body).encode()) for request in read(path) if request.path == "/v1/traces"]


def spans_of(body: bytes) -> list[SpanRecord]:
    """The spans of an OTLP/JSON request; none of them may be refused."""
    spans = list(records_of(scopes_of_json(body)))
    refused = [span for span in spans if isinstance(span, str)]
    assert not refused, refused
    return [span for span in spans if isinstance(span, SpanRecord)]


def in_order(spans: Sequence[SpanRecord], order: str) -> list[SpanRecord]:
    """The spans in one of the orders of `DELIVERIES`."""
    if order == "by end":
        # As a `BatchSpanProcessor` sends them.
        return sorted(spans, key=lambda span: span.end_ns or span.start_ns)
    if order == "reversed":
        return list(reversed(spans))
    if order == "shuffled":
        shuffled = list(spans)
        random.Random(20).shuffle(shuffled)
        return shuffled
    return list(spans)


def in_pieces(spans: Sequence[SpanRecord], size: int) -> Iterator[Sequence[SpanRecord]]:
    """The spans, ``size`` to a request (0: all in one)."""
    size = size or max(1, len(spans))
    for i in range(0, len(spans), size):
        yield spans[i : i + size]
