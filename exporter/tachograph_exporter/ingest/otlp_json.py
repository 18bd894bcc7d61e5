"""Export requests in OTLP's JSON.

Ids are hex where protobuf's own JSON mapping has base64 (which is read, too), enums are numbers (or names), unknown
fields are ignored, and null is a field that is not there; see
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.

Each span is decoded by itself: one that cannot be read is counted, and costs no other. It is kept as protobuf, since
the values of a JSON document take many times its length.
"""

from __future__ import annotations

import base64
import functools
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from tachograph_exporter.ingest.envelope import (
    MAX_HEAD_BYTES,
    MAX_MESSAGES,
    PIECE_BYTES,
    ScopeOfSpans,
    field,
    too_much,
)
from tachograph_exporter.ingest.signals import LOGS, METRICS, TRACES, BadRequest, Signal

MAX_VALUES: Final = 500_000
"""Objects and lists that one request may carry, and half of the values in them."""
MAX_SPAN_VALUES: Final = 100_000
"""Objects, lists and values in them of one span that is longer than a piece."""
_MAX_FIXED64: Final = (1 << 64) - 1
_NULL: Final = msgspec.Raw(b"null")
_UNREADABLE: Final = (ParseError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)


class _Shapes(NamedTuple):
    """A request, a group and a scope of a signal, whose values are not decoded."""

    request: type[Any]
    group: type[Any]
    scope: type[Any]


@functools.cache
def _shapes(signal: Signal) -> _Shapes:
    raw_lists: Any = list[msgspec.Raw] | None

    def shape(name: str, lists: tuple[str, str], *values: str) -> type[Any]:
        fields = [(field_name, raw_lists, None) for field_name in dict.fromkeys(lists)]
        return msgspec.defstruct(name, [*fields, *[(value, msgspec.Raw, _NULL) for value in values]])

    schema = ("schemaUrl", "schema_url")
    return _Shapes(
        shape("_Request", signal.groups),
        shape("_Group", signal.scopes, "resource", *schema),
        shape("_Scope", signal.items, "scope", *schema),
    )


def scopes_of_json(body: bytes, signal: Signal = TRACES) -> list[ScopeOfSpans]:
    """The scopes of a request that have spans, as protobuf. Raises `BadRequest` where there are no spans to count."""
    if body.count(b"{") + body.count(b"[") > MAX_VALUES or body.count(b",") > 2 * MAX_VALUES:
        raise too_much()
    try:
        _check_syntax(body)
    except BadRequest:
        body = _with_whole_characters(body)
        _check_syntax(body)
    scopes: list[ScopeOfSpans] = []
    heads = count = 0
    shapes = _shapes(signal)
    request = _shaped(body, shapes.request, "the body", signal)
    for i, raw_group in enumerate(_either(request, signal.groups, signal.groups[0], signal)):
        at = f"{signal.groups[0]}[{i}]"
        group = _shaped(raw_group, shapes.group, at, signal)
        fields = {"resource": group.resource, "schemaUrl": group.schemaUrl, "schema_url": group.schema_url}
        head, fault = _encoded(fields, signal.group(), at)
        for j, raw_scope in enumerate(_either(group, signal.scopes, f"{at}.{signal.scopes[0]}", signal)):
            place = f"{at}.{signal.scopes[0]}[{j}]"
            scope = _shaped(raw_scope, shapes.scope, place, signal)
            items = _either(scope, signal.items, f"{place}.{signal.items[0]}", signal)
            if not items:
                continue
            count += len(items)
            if count > MAX_MESSAGES:
                raise too_much()
            fields = {"scope": scope.scope, "schemaUrl": scope.schemaUrl, "schema_url": scope.schema_url}
            encoded, scope_fault = _encoded(fields, signal.scope_type(), place)
            heads += len(head) + len(encoded)
            if heads > MAX_HEAD_BYTES:
                raise BadRequest("the request has too many scopes for a resource of this size; send it in parts")
            if fault or scope_fault:
                rejections = [fault or scope_fault] * len(items)
                scopes.append(ScopeOfSpans(b"", b"", b"", array("Q"), rejections, signal))
            else:
                scopes.append(_scope_of_items(head, encoded, items, place, signal))
    return scopes


def _scope_of_items(head: bytes, scope: bytes, items: Sequence[msgspec.Raw], at: str, signal: Signal) -> ScopeOfSpans:
    source, places = bytearray(), array("Q")
    rejections = []
    convert = _CONVERSIONS[signal]
    for k, raw in enumerate(items):
        document = None
        try:
            document = _decoded(raw)
            message = ParseDict(convert(document), signal.item_type(), ignore_unknown_fields=True)
            encoded = field(2, message.SerializeToString())
        except BadRequest:
            raise
        except _UNREADABLE as error:
            name = document.get("name") if isinstance(document, dict) else None
            place = f"{at}.{signal.items[0]}[{k}]"
            what = f'{signal.item} "{name[:80]}"' if isinstance(name, str) and name else place
            rejections.append(_reason(what, error))
        else:
            places.append(len(source))
            source += encoded
            places.append(len(source))
    return ScopeOfSpans(head, scope, bytes(source), places, rejections, signal)


def _shaped(raw: bytes | msgspec.Raw, kind: type[Any], what: str, signal: Signal) -> Any:
    """An object of the request, whose values are not decoded yet. Raises `BadRequest`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is not a JSON {signal.request}: {what}: {str(error)[:300]}") from None


def _check_syntax(raw: bytes | msgspec.Raw) -> None:
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _reason(what: str, error: Exception) -> str:
    return f"{what} cannot be read: {str(error)[:200] or type(error).__name__}"


def _either(shape: Any, names: tuple[str, str], what: str, signal: Signal) -> Sequence[msgspec.Raw]:
    """A list by either name that protobuf's JSON mapping knows."""
    camel, snake = (getattr(shape, name) for name in names)
    if camel is not None and snake is not None and names[0] != names[1]:
        raise BadRequest(f"the body is not a JSON {signal.request}: {what} has two names")
    return camel or snake or ()


def _encoded(fields: dict[str, msgspec.Raw], message: Message, what: str) -> tuple[bytes, str]:
    """A message as protobuf, and why it cannot be read."""
    try:
        values = {key: _decoded(raw) for key, raw in fields.items() if raw is not _NULL}
        return ParseDict(values, message, ignore_unknown_fields=True).SerializeToString(), ""
    except BadRequest:
        raise
    except _UNREADABLE as error:
        return b"", _reason(what, error)


def _decoded(raw: msgspec.Raw) -> Any:
    view = memoryview(raw)
    if len(view) > PIECE_BYTES:
        text = bytes(view)
        if text.count(b"{") + text.count(b"[") + text.count(b",") > MAX_SPAN_VALUES:
            raise too_much()
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(_with_whole_characters(bytes(view)))


def _with_whole_characters(text: bytes) -> bytes:
    """JSON without halves of characters, which programs leave that cut texts by bytes or by UTF-16 units."""
    whole = text.decode(errors="replace").encode()
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], whole)


_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)
"""An escape sequence, or the two of one character. Group 1: half of a character (see RFC 8259, section 7)."""


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
    if _BASE64_ID.fullmatch(value):
        return value
    try:
        return base64.b64encode(bytes.fromhex(value)).decode()
    except ValueError:
        raise ValueError(f"the id {value[:40]!r} is not hex") from None


_BASE64_ID: Final = re.compile(r"[A-Za-z0-9+/]{22}==|[A-Za-z0-9+/]{11}=")
"""16 or 8 bytes as protobuf's own JSON mapping has them, which general encoders write. No hex ends like this."""


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


def _log_record(record: Any) -> dict[str, Any]:
    """A log record in protobuf's own JSON mapping."""
    return _converted(record, _LOG_RECORD)


def _metric(metric: Any) -> dict[str, Any]:
    """A metric as it is: exemplars, which have ids, are not read."""
    converted = _converted(metric, {})
    for kind in ("gauge", "sum", "histogram", "exponentialHistogram", "exponential_histogram"):
        data = converted.get(kind)
        if isinstance(data, dict):
            converted[kind] = _converted(data, {"dataPoints": _points, "data_points": _points})
    return converted


def _points(value: Any) -> list[Any]:
    return [{key: item for key, item in _converted(point, {}).items() if key != "exemplars"} for point in value]


_LOG_RECORD: Final[Mapping[str, Callable[[Any], Any]]] = {
    "traceId": _id, "spanId": _id, "trace_id": _id, "span_id": _id,
    "timeUnixNano": _in_range, "observedTimeUnixNano": _in_range,
    "time_unix_nano": _in_range, "observed_time_unix_nano": _in_range,
}  # fmt: skip
_CONVERSIONS: Final[Mapping[Signal, Callable[[Any], dict[str, Any]]]] = {
    TRACES: _span, LOGS: _log_record, METRICS: _metric
}  # fmt: skip
