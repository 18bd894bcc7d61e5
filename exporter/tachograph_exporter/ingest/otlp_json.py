"""OTLP's JSON as a request: a span that cannot be read is left out and counted, and costs no other.

Format: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: ids are hex where protobuf's own JSON mapping
has base64, enums are numbers, unknown fields are ignored, and null is a field that is not there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tachograph_exporter.ingest.spans import BadRequest

_UNREADABLE: Final = (ParseError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)
_MAX_FIXED64: Final = (1 << 64) - 1


def request_from_json(body: bytes) -> tuple[ExportTraceServiceRequest, list[str]]:
    """Decode a body: the request with the spans that could be read, and a reason for each one that could not.

    Raises `BadRequest` where there are no spans to count.
    """
    request = ExportTraceServiceRequest()
    rejections: list[str] = []
    document = _object(_decode(body), "the body")
    for i, group in enumerate(_items(document, "resourceSpans", "resource_spans", "")):
        at = f"resourceSpans[{i}]"
        _read_group(request, _object(group, at), at, rejections)
    return request, rejections


def _read_group(request: ExportTraceServiceRequest, group: Mapping[str, Any], at: str, rejections: list[str]) -> None:
    frame, fault = ResourceSpans(), ""
    try:
        ParseDict(_without(group, "scopeSpans", "scope_spans"), frame, ignore_unknown_fields=True)
    except _UNREADABLE as error:
        fault = _reason(at, error)
    for j, scope_spans in enumerate(_items(group, "scopeSpans", "scope_spans", at)):
        place = f"{at}.scopeSpans[{j}]"
        scope_frame, scope_fault = frame.scope_spans.add(), fault
        scope_spans = _object(scope_spans, place)
        try:
            ParseDict(_without(scope_spans, "spans"), scope_frame, ignore_unknown_fields=True)
        except _UNREADABLE as error:
            scope_fault = scope_fault or _reason(place, error)
        _read_spans(_items(scope_spans, "spans", "spans", place), scope_frame, scope_fault, place, rejections)
    if not fault:
        request.resource_spans.append(frame)


def _read_spans(spans: list[Any], scope_spans: ScopeSpans, fault: str, at: str, rejections: list[str]) -> None:
    for k, item in enumerate(spans):
        if fault:
            rejections.append(fault)
            continue
        try:
            scope_spans.spans.append(ParseDict(_span(item), Span(), ignore_unknown_fields=True))
        except _UNREADABLE as error:
            name = item.get("name") if isinstance(item, dict) else None
            what = f'span "{name[:80]}"' if isinstance(name, str) and name else f"{at}.spans[{k}]"
            rejections.append(_reason(what, error))


def _reason(what: str, error: Exception) -> str:
    return f"{what} cannot be read: {str(error)[:200] or type(error).__name__}"


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except RecursionError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Half a character, for instance, where a program cut a text by UTF-16 units or by bytes: still JSON.
        try:
            return _whole_characters(json.loads(body.decode(errors="replace")))
        except (ValueError, RecursionError):
            raise BadRequest(f"the body is not JSON: {error}") from None


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return value


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} is not an object: the body is not a JSON ExportTraceServiceRequest")
    return value


def _items(value: Mapping[str, Any], name: str, other_name: str, at: str) -> list[Any]:
    items = value.get(name)
    if items is None:
        items = value.get(other_name)
    if items is None:
        return []
    if not isinstance(items, list):
        raise BadRequest(f"{at}{'.' if at else ''}{name} is not a list")
    return items


def _without(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in names}


def _span(span: Any) -> dict[str, Any]:
    """A span in protobuf's own JSON mapping."""
    return _converted(span, _SPAN)


def _converted(value: Any, conversions: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - the sender's mistake
    return {
        key: conversions[key](item) if item is not None and key in conversions else item for key, item in value.items()
    }


def _id(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("an id is not a string")  # noqa: TRY004
    try:
        return base64.b64encode(bytes.fromhex(value)).decode()
    except ValueError:
        raise ValueError(f"the id {value[:40]!r} is not hex") from None


def _in_range(value: Any) -> Any:
    """A time that protobuf can hold; `spans` says what is wrong with one that it cannot."""
    try:
        number = int(value) if isinstance(value, str | int) else None
    except ValueError:
        return value
    return value if number is None or 0 <= number <= _MAX_FIXED64 else str(min(max(number, 0), _MAX_FIXED64))


def _links(value: Any) -> list[Any]:
    return [_converted(item, _LINK) for item in value]


def _events(value: Any) -> list[Any]:
    return [_converted(item, _EVENT) for item in value]


_EVENT: Final = {"timeUnixNano": _in_range, "time_unix_nano": _in_range}
_LINK: Final = {"traceId": _id, "spanId": _id, "trace_id": _id, "span_id": _id}
_SPAN: Final[Mapping[str, Callable[[Any], Any]]] = {
    **_LINK,
    "parentSpanId": _id,
    "parent_span_id": _id,
    "startTimeUnixNano": _in_range,
    "endTimeUnixNano": _in_range,
    "start_time_unix_nano": _in_range,
    "end_time_unix_nano": _in_range,
    "links": _links,
    "events": _events,
}
