"""Spans as they arrive by OTLP, and as they are kept: whole, with their attributes, events, links and resource.

Wire format: https://opentelemetry.io/docs/specs/otlp/ (protobuf, and its JSON mapping: ids are hex, enums numbers).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

MAX_SPANS: Final = 100_000
"""Spans that one request may carry."""


class BadRequest(ValueError):
    """What arrived is no trace export request; says what is wrong."""


class SpanRecord(msgspec.Struct, gc=False):
    """One span, as it is kept. Ids are lower-case hex; ``end_ns`` 0: it has not ended.

    ``payload`` is the OTLP span and ``resource`` (by ``resource_id``) its `ResourceSpans` without spans.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    service: str
    scope: str
    resource_id: str
    resource: bytes
    payload: bytes
    attributes: dict[str, Any]
    status_code: int
    status_message: str
    links: tuple[str, ...]
    exception: tuple[str, str, str] | None = None
    around: Mapping[str, Any] = {}
    """Its resource's attributes."""

    @property
    def is_error(self) -> bool:
        """Whether it says that it failed."""
        return self.status_code == 2


def clean(text: str) -> str:
    """A text that a database takes: PostgreSQL has no NUL."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def value_of(value: AnyValue) -> Any:
    """An attribute's value in Python."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {one.key: value_of(one.value) for one in value.kvlist_value.values}
    return getattr(value, kind)


def parse(body: bytes, *, is_json: bool) -> ExportTraceServiceRequest:
    """A request's body. Raises `BadRequest`."""
    if not is_json:
        try:
            return ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            raise BadRequest(f"the body is no protobuf ExportTraceServiceRequest: {error}") from None
    try:
        document = msgspec.json.decode(body)
        return ParseDict(_ids_to_base64(document), ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except (ParseError, ValueError, TypeError, AttributeError) as error:
        raise BadRequest(f"the body is no JSON ExportTraceServiceRequest: {error}") from None


def _ids_to_base64(value: Any) -> Any:
    """OTLP's JSON has ids in hex, where protobuf's own JSON mapping has bytes in base64."""
    if isinstance(value, list):
        return [_ids_to_base64(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, one in value.items():
        if key in ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"):
            if not isinstance(one, str):
                raise ValueError(f"{key} is not a text")
            try:
                found[key] = base64.b64encode(bytes.fromhex(one)).decode()
            except ValueError:
                raise ValueError(f"{key} {one[:40]!r} is not hex") from None
        else:
            found[key] = _ids_to_base64(one)
    return found


def records(request: ExportTraceServiceRequest) -> Iterator[SpanRecord | str]:
    """Each span of a request, or, for one that cannot be kept, why."""
    for resource_spans in request.resource_spans:
        resource = {one.key: value_of(one.value) for one in resource_spans.resource.attributes}
        service = _service(resource)
        for scope_spans in resource_spans.scope_spans:
            around = ResourceSpans(resource=resource_spans.resource, schema_url=resource_spans.schema_url)
            inner = around.scope_spans.add(schema_url=scope_spans.schema_url)
            inner.scope.CopyFrom(scope_spans.scope)
            encoded = around.SerializeToString(deterministic=True)
            resource_id = hashlib.blake2b(encoded, digest_size=16).hexdigest()
            for span in scope_spans.spans:
                why = _fault(span)
                if why is not None:
                    yield why
                else:
                    yield record(span, service, scope_spans.scope.name, resource_id, encoded, resource)


def _fault(span: Span) -> str | None:
    if len(span.trace_id) != 16 or not any(span.trace_id):
        return f'span "{span.name[:80]}" has no valid trace id'
    if len(span.span_id) != 8 or not any(span.span_id):
        return f'span "{span.name[:80]}" has no valid span id'
    if span.parent_span_id and len(span.parent_span_id) != 8:
        return f'span "{span.name[:80]}" has no valid parent span id'
    if not span.start_time_unix_nano or max(span.start_time_unix_nano, span.end_time_unix_nano) >= 1 << 63:
        return f'span "{span.name[:80]}" has no valid start or end'
    return None


def record(
    span: Span, service: str, scope: str, resource_id: str, resource: bytes, around: Mapping[str, Any]
) -> SpanRecord:
    """A span as it is kept. ``around``: its resource's attributes."""
    exception = None
    for event in span.events:
        if event.name == "exception":
            said = {one.key: value_of(one.value) for one in event.attributes}
            kind = str(said.get("exception.type", "Exception"))
            message, stack = said.get("exception.message", ""), said.get("exception.stacktrace", "")
            exception = (kind, str(message), str(stack))
    parent = span.parent_span_id.hex()
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=parent if parent.strip("0") else "",
        name=clean(span.name),
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        # A clock that was set back: it ended when it began.
        end_ns=max(span.end_time_unix_nano, span.start_time_unix_nano) if span.end_time_unix_nano else 0,
        service=service,
        scope=scope,
        resource_id=resource_id,
        resource=resource,
        payload=span.SerializeToString(deterministic=True),
        attributes={one.key: value_of(one.value) for one in span.attributes},
        status_code=span.status.code,
        status_message=span.status.message,
        links=tuple(link.span_id.hex() for link in span.links if link.trace_id == span.trace_id),
        exception=exception,
        around=around,
    )


def stored_record(payload: bytes, resource: bytes, resource_id: str) -> SpanRecord:
    """A kept span, read again."""
    service, scope, around = _read_resource(resource)
    return record(Span.FromString(payload), service, scope, resource_id, resource, around)


@functools.lru_cache(maxsize=256)
def _read_resource(resource: bytes) -> tuple[str, str, Mapping[str, Any]]:
    whole = ResourceSpans.FromString(resource)
    around = {one.key: value_of(one.value) for one in whole.resource.attributes}
    scope = whole.scope_spans[0].scope.name if whole.scope_spans else ""
    return _service(around), scope, around


def _service(around: Mapping[str, Any]) -> str:
    return clean(str(around.get("service.name", "unknown_service")))[:200]


def resource_spans(found: list[SpanRecord]) -> list[ResourceSpans]:
    """Kept spans as OTLP: one `ResourceSpans` for each resource and scope."""
    groups: dict[str, ResourceSpans] = {}
    for one in found:
        group = groups.get(one.resource_id)
        if group is None:
            group = groups[one.resource_id] = ResourceSpans.FromString(one.resource)
        group.scope_spans[0].spans.append(Span.FromString(one.payload))
    return list(groups.values())


def otlp_json(found: list[SpanRecord], *, key: str = "resourceSpans") -> dict[str, Any]:
    """Kept spans in OTLP's JSON."""
    return {key: [_ids_to_hex(MessageToDict(group)) for group in resource_spans(found)]}


def _ids_to_hex(value: Any) -> Any:
    if isinstance(value, list):
        return [_ids_to_hex(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: base64.b64decode(one).hex()
        if key in ("traceId", "spanId", "parentSpanId")
        else _enum(key, _ids_to_hex(one))
        for key, one in value.items()
    }


def _enum(key: str, value: Any) -> Any:
    """OTLP's JSON has enums as numbers."""
    if key == "kind" and isinstance(value, str):
        return Span.SpanKind.Value(value)
    if key == "code" and isinstance(value, str):
        return {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}.get(value, value)
    return value
