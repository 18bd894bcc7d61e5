"""Export requests in OTLP's JSON.

Ids are hex where protobuf's own JSON mapping has base64, enums are numbers, unknown fields are ignored, and null is a
field that is not there; see https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.

Each span is decoded by itself: one that cannot be read is counted, and costs no other. It is kept as protobuf, since
the values of a JSON document take many times its length.
"""

from __future__ import annotations

import base64
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tachograph_exporter.ingest.envelope import (
    MAX_HEAD_BYTES,
    MAX_MESSAGES,
    PIECE_BYTES,
    BadRequest,
    ScopeOfSpans,
    field,
    too_much,
)

MAX_VALUES: Final = 500_000
"""Objects and lists that one request may carry, and half of the values in them."""
MAX_SPAN_VALUES: Final = 100_000
"""Objects, lists and values in them of one span that is longer than a piece."""
_MAX_FIXED64: Final = (1 << 64) - 1
_NULL: Final = msgspec.Raw(b"null")
_UNREADABLE: Final = (ParseError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)
_S = TypeVar("_S", bound=msgspec.Struct)


class _Request(msgspec.Struct):
    resourceSpans: list[msgspec.Raw] | None = None  # noqa: N815 - OTLP's own names
    resource_spans: list[msgspec.Raw] | None = None


class _Group(msgspec.Struct):
    resource: msgspec.Raw = _NULL
    scopeSpans: list[msgspec.Raw] | None = None  # noqa: N815
    scope_spans: list[msgspec.Raw] | None = None
    schemaUrl: msgspec.Raw = _NULL  # noqa: N815
    schema_url: msgspec.Raw = _NULL


class _Scope(msgspec.Struct):
    scope: msgspec.Raw = _NULL
    spans: list[msgspec.Raw] | None = None
    schemaUrl: msgspec.Raw = _NULL  # noqa: N815
    schema_url: msgspec.Raw = _NULL


def scopes_of_json(body: bytes) -> list[ScopeOfSpans]:
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
    request = _shaped(body, _Request, "the body")
    for i, raw_group in enumerate(_either(request.resourceSpans, request.resource_spans, "resourceSpans")):
        at = f"resourceSpans[{i}]"
        group = _shaped(raw_group, _Group, at)
        fields = {"resource": group.resource, "schemaUrl": group.schemaUrl, "schema_url": group.schema_url}
        head, fault = _encoded(fields, ResourceSpans(), at)
        for j, raw_scope in enumerate(_either(group.scopeSpans, group.scope_spans, f"{at}.scopeSpans")):
            place = f"{at}.scopeSpans[{j}]"
            scope = _shaped(raw_scope, _Scope, place)
            if not scope.spans:
                continue
            count += len(scope.spans)
            if count > MAX_MESSAGES:
                raise too_much()
            fields = {"scope": scope.scope, "schemaUrl": scope.schemaUrl, "schema_url": scope.schema_url}
            encoded, scope_fault = _encoded(fields, ScopeSpans(), place)
            heads += len(head) + len(encoded)
            if heads > MAX_HEAD_BYTES:
                raise BadRequest("the request has too many scopes for a resource of this size; send it in parts")
            if fault or scope_fault:
                scopes.append(ScopeOfSpans(b"", b"", b"", array("Q"), [fault or scope_fault] * len(scope.spans)))
            else:
                scopes.append(_scope_of_spans(head, encoded, scope.spans, place))
    return scopes


def _scope_of_spans(head: bytes, scope: bytes, spans: Sequence[msgspec.Raw], at: str) -> ScopeOfSpans:
    source, places = bytearray(), array("Q")
    rejections = []
    for k, raw in enumerate(spans):
        document = None
        try:
            document = _decoded(raw)
            encoded = field(2, ParseDict(_span(document), Span(), ignore_unknown_fields=True).SerializeToString())
        except BadRequest:
            raise
        except _UNREADABLE as error:
            name = document.get("name") if isinstance(document, dict) else None
            what = f'span "{name[:80]}"' if isinstance(name, str) and name else f"{at}.spans[{k}]"
            rejections.append(_reason(what, error))
        else:
            places.append(len(source))
            source += encoded
            places.append(len(source))
    return ScopeOfSpans(head, scope, bytes(source), places, rejections)


def _shaped(raw: bytes | msgspec.Raw, kind: type[_S], what: str) -> _S:
    """An object of the request, whose values are not decoded yet. Raises `BadRequest`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is not a JSON ExportTraceServiceRequest: {what}: {str(error)[:300]}") from None


def _check_syntax(raw: bytes | msgspec.Raw) -> None:
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _reason(what: str, error: Exception) -> str:
    return f"{what} cannot be read: {str(error)[:200] or type(error).__name__}"


def _either(
    camel: Sequence[msgspec.Raw] | None, snake: Sequence[msgspec.Raw] | None, what: str
) -> Sequence[msgspec.Raw]:
    """A list by either name that protobuf's JSON mapping knows."""
    if camel is not None and snake is not None:
        raise BadRequest(f"the body is not a JSON ExportTraceServiceRequest: {what} has two names")
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
