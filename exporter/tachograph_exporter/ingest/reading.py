"""Reading OTLP requests: the spans that are valid, and for each other one the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tachograph_exporter.ingest.envelope import Malformed, fields
from tachograph_exporter.ingest.otlp_json import request_from_json
from tachograph_exporter.ingest.spans import BadRequest, SpanRecord, records

MAX_SPANS: Final = 100_000
"""Spans one request may carry."""


def read(body: bytes, *, is_json: bool, now_ns: int | None = None) -> tuple[list[SpanRecord], list[str]]:
    """The spans of a request's body, and a reason for each span that is not taken.

    ``now_ns``: the time that spans may not be far ahead of (default: now). Raises `BadRequest` when the body is no
    request at all.
    """
    request, rejections = request_from_json(body) if is_json else _request_from_protobuf(body)
    spans: list[SpanRecord] = []
    for span in records(request, now_ns):
        if isinstance(span, str):
            rejections.append(span)
        elif len(spans) >= MAX_SPANS:
            rejections.append(f"a request may carry at most {MAX_SPANS} spans")
        else:
            spans.append(span)
    return spans, rejections


def _request_from_protobuf(body: bytes) -> tuple[ExportTraceServiceRequest, list[str]]:
    try:
        return ExportTraceServiceRequest.FromString(body), []
    except DecodeError as error:
        # A text that is not UTF-8, for instance: the parser refuses the whole for one such span.
        try:
            return _read_by_span(body)
        except (DecodeError, Malformed):
            raise BadRequest(f"the body is not a protobuf ExportTraceServiceRequest: {error}") from None


def _read_by_span(body: bytes) -> tuple[ExportTraceServiceRequest, list[str]]:
    """The request without the spans that cannot be read, and a reason for each of these."""
    request = ExportTraceServiceRequest()
    rejections: list[str] = []
    for group in _split(body, 1)[1]:
        frame_bytes, scopes = _split(group, 2)
        frame, fault = ResourceSpans(), ""
        try:
            frame.MergeFromString(frame_bytes)
        except DecodeError as error:
            fault = f"a resource cannot be read: {error}"
        for scope in scopes:
            scope_bytes, spans = _split(scope, 2)
            scope_spans, scope_fault = frame.scope_spans.add(), fault
            try:
                scope_spans.MergeFromString(scope_bytes)
            except DecodeError as error:
                scope_fault = scope_fault or f"a scope cannot be read: {error}"
            rejections += _add(scope_spans, spans, scope_fault)
        if not fault:
            request.resource_spans.append(frame)
    return request, rejections


def _add(scope_spans: ScopeSpans, spans: list[bytes], fault: str) -> Iterator[str]:
    """Add spans to their scope; the reasons for those that cannot be."""
    for i, encoded in enumerate(spans):
        if fault:
            yield fault
            continue
        try:
            scope_spans.spans.append(Span.FromString(encoded))
        except DecodeError as error:
            yield f'span {i + 1} of the scope "{scope_spans.scope.name[:80]}" cannot be read: {error}'


def _split(message: bytes, number: int) -> tuple[bytes, list[bytes]]:
    """A message without its sub-messages of one field, and these. Raises `Malformed`."""
    rest: list[bytes] = []
    parts: list[bytes] = []
    for field, is_bytes, start, begin, end in fields(message):
        if field == number and is_bytes:
            parts.append(message[begin:end])
        else:
            rest.append(message[start:end])
    return b"".join(rest), parts
