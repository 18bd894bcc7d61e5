"""Export requests in OTLP's JSON: ids are hex, enums numbers.

See https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.

Each span is decoded by itself and kept as protobuf, since the values of a JSON document take many times its length.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
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
_M = TypeVar("_M", bound=Message)


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
    """The scopes of a request that have spans, as protobuf. Raises `BadRequest`."""
    if body.count(b"{") + body.count(b"[") > MAX_VALUES or body.count(b",") > 2 * MAX_VALUES:
        raise too_much()
    try:
        # Whether it is JSON at all.
        msgspec.json.decode(body, type=msgspec.Raw)
        return _scopes_of(body)
    except (msgspec.ValidationError, ParseError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BadRequest):
            raise
        if type(error) in (msgspec.DecodeError, UnicodeDecodeError):
            raise BadRequest(f"the body is not JSON: {error}") from None
        raise BadRequest(f"the body is not a JSON ExportTraceServiceRequest: {str(error)[:300]}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _scopes_of(body: bytes) -> list[ScopeOfSpans]:
    scopes = []
    heads = count = 0
    request = msgspec.json.decode(body, type=_Request)
    for raw in _either(request.resourceSpans, request.resource_spans):
        group = msgspec.json.decode(raw, type=_Group)
        head = b""
        for raw_scope in _either(group.scopeSpans, group.scope_spans):
            scope = msgspec.json.decode(raw_scope, type=_Scope)
            if not scope.spans:
                continue
            count += len(scope.spans)
            if count > MAX_MESSAGES:
                raise too_much()
            fields = {"resource": group.resource, "schemaUrl": group.schemaUrl, "schema_url": group.schema_url}
            head = head or _encoded(fields, ResourceSpans())
            fields = {"scope": scope.scope, "schemaUrl": scope.schemaUrl, "schema_url": scope.schema_url}
            encoded = _encoded(fields, ScopeSpans())
            heads += len(head) + len(encoded)
            if heads > MAX_HEAD_BYTES:
                raise BadRequest("the request has too many scopes for a resource of this size; send it in parts")
            source, places = bytearray(), array("Q")
            for raw_span in scope.spans:
                places.append(len(source))
                source += field(2, _message(_decoded(raw_span), Span()).SerializeToString())
                places.append(len(source))
            scopes.append(ScopeOfSpans(head, encoded, bytes(source), places))
    return scopes


def _either(camel: Sequence[msgspec.Raw] | None, snake: Sequence[msgspec.Raw] | None) -> Sequence[msgspec.Raw]:
    """A list by either name that protobuf's JSON mapping knows."""
    if camel is not None and snake is not None:
        raise ValueError("a list has two names")
    return camel or snake or ()


def _encoded(fields: dict[str, msgspec.Raw], message: Message) -> bytes:
    values = {key: _decoded(raw) for key, raw in fields.items() if raw is not _NULL}
    return _message(values, message).SerializeToString()


def _decoded(raw: msgspec.Raw) -> Any:
    view = memoryview(raw)
    if len(view) > PIECE_BYTES:
        text = bytes(view)
        if text.count(b"{") + text.count(b"[") + text.count(b",") > MAX_SPAN_VALUES:
            raise too_much()
    return msgspec.json.decode(raw)


def _message(document: Any, message: _M) -> _M:
    if not isinstance(document, dict):
        raise ValueError(f"{type(message).__name__} is not an object")  # noqa: TRY004 - as other bad values
    return ParseDict(_ids_to_base64(document), message, ignore_unknown_fields=True)


def _ids_to_base64(value: Any) -> Any:
    """OTLP's JSON has ids in hex, where protobuf's own JSON mapping has bytes in base64."""
    if isinstance(value, list):
        return [_ids_to_base64(item) for item in value]
    if not isinstance(value, dict):
        return value
    converted = {}
    for key, item in value.items():
        if key in _TIMES:
            converted[key] = _in_range(item)
        elif key in ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"):
            if not isinstance(item, str):
                raise ValueError(f"{key} is not a string")
            try:
                converted[key] = base64.b64encode(bytes.fromhex(item)).decode()
            except ValueError:
                raise ValueError(f"{key} {item[:40]!r} is not hex") from None
        else:
            converted[key] = _ids_to_base64(item)
    return converted


_TIMES: Final = frozenset({
    "startTimeUnixNano", "endTimeUnixNano", "timeUnixNano",
    "start_time_unix_nano", "end_time_unix_nano", "time_unix_nano",
})  # fmt: skip


def _in_range(value: Any) -> Any:
    """A time that protobuf can hold. One that it cannot would cost the whole request; so it costs its span only."""
    try:
        number = int(value) if isinstance(value, str | int) else None
    except ValueError:
        return value
    return value if number is None or 0 <= number <= _MAX_FIXED64 else str(min(max(number, 0), _MAX_FIXED64))
