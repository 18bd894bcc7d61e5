"""Spans as they arrive by OTLP and as they are stored: whole, with their attributes, events, links and resource.

Wire format: https://opentelemetry.io/docs/specs/otlp/ (protobuf, and its JSON mapping: ids are hex, enums numbers).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData

from tachograph.clock import NS
from tachograph_exporter.ingest.envelope import ScopeOfSpans, not_protobuf
from tachograph_exporter.ingest.messages import is_of_agent, mask_messages
from tachograph_exporter.ingest.pending_spans import PENDING, SPAN_TYPE, real_span
from tachograph_exporter.ingest.span_json import span_json

MAX_SPANS: Final = 100_000
"""Spans one request may carry."""
EARLIEST_NS: Final = 946_684_800 * NS
"""The year 2000: a clock that shows an earlier time was never set."""
AHEAD_SECONDS: Final = 86_400.0
"""How far a span's clock may be ahead of this one."""
LONGEST_SECONDS: Final = 366 * 86_400.0
"""How long a span may last: a longer one began before its clock was set."""

_LONGEST_NS: Final = round(LONGEST_SECONDS * NS)
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)

MAX_EVENTS: Final = 200
"""Events of a span that are read."""


class SpanEvent(NamedTuple):
    """An event of a span; one that is an exception is without its stack."""

    time_ns: int
    name: str
    attributes: Mapping[str, Any]


class SpanRecord(msgspec.Struct, gc=False):
    """One span, as it is stored. Ids are lower-case hex; ``end_ns`` is 0 while the span is open.

    ``lost_ns``: when an open span was last seen whose lease has run out, else 0.

    ``payload`` is the OTLP span and ``resource`` (with the id ``resource_id``) its `ResourceSpans` without spans.
    ``exception`` is the last one, as (type, message, stack). ``links`` are ids of spans of its trace that it links to,
    ``elsewhere`` (trace id, span id) of those of other traces. ``is_parent_near``: it says that its parent is a span of
    the same process.
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
    resource_attributes: Mapping[str, Any] = {}
    events: tuple[SpanEvent, ...] = ()
    lost_ns: int = 0
    elsewhere: tuple[tuple[str, str], ...] = ()
    is_parent_near: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether it has not ended, and nothing has been heard of it for its lease."""
        return self.lost_ns > 0 and not self.end_ns

    @property
    def over_ns(self) -> int:
        """When it ended or was lost; 0 while it is open."""
        return self.end_ns or self.lost_ns

    @property
    def size(self) -> int:
        """About how many bytes it takes, without its resource."""
        return len(self.payload)

    @property
    def is_error(self) -> bool:
        """Whether its status is an error."""
        return self.status_code == 2


_HAS_IS_REMOTE: Final = 0x100
"""`SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: it is known whether the parent is of another process."""
_IS_REMOTE_MASK: Final = _HAS_IS_REMOTE | 0x200


class StoredSpan(NamedTuple):
    """A span as its row has it: OTLP's span, and its `ResourceSpans` without spans (see `SpanRecord`)."""

    payload: bytes
    resource: bytes
    resource_id: str
    span_id: str


def clean(text: str) -> str:
    """The text without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def attributes_of(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """OTLP attributes by key, as Python values."""
    values: dict[str, Any] = {}
    for attribute in attributes:
        value = attribute.value
        # Text first: most are, and this is read for every span.
        text = value.string_value
        values[attribute.key] = text or value_of(value)
    return values


def value_of(value: AnyValue) -> Any:
    """An attribute's value as a Python value; bytes stay bytes."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind)


def parse(body: bytes) -> ExportTraceServiceRequest:
    """Decode a request's body (protobuf) as a whole. Raises `BadRequest`."""
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise not_protobuf(error) from None


def records_of(scopes: Iterable[ScopeOfSpans]) -> Iterator[SpanRecord | str]:
    """Each span, a few of them in memory at a time; see `records`."""
    for scope in scopes:
        for piece in scope.pieces():
            if isinstance(piece, str):
                yield piece
            else:
                yield from records([piece])


def records(groups: Iterable[ResourceSpans], now_ns: int | None = None) -> Iterator[SpanRecord | str]:
    """Each span of these groups; for a span that is not valid, the reason as text.

    ``now_ns``: the time that spans may not be far ahead of (default: now).
    """
    latest_ns = (time.time_ns() if now_ns is None else now_ns) + round(AHEAD_SECONDS * NS)
    for group in groups:
        attributes = attributes_of(group.resource.attributes)
        service = service_of(attributes)
        for scope_spans in group.scope_spans:
            if not scope_spans.spans:
                continue
            bare = ResourceSpans(resource=group.resource, schema_url=group.schema_url)
            bare.scope_spans.add(schema_url=scope_spans.schema_url).scope.CopyFrom(scope_spans.scope)
            resource = bare.SerializeToString(deterministic=True)
            resource_id = hashlib.blake2b(resource, digest_size=16).hexdigest()
            for span in scope_spans.spans:
                fault = _fault(span, latest_ns)
                if fault is not None:
                    yield fault
                else:
                    stored = record(span, service, scope_spans.scope.name, resource_id, resource, attributes)
                    if stored.attributes.get(SPAN_TYPE) == PENDING and (real := real_span(span)) is not None:
                        span = real
                        stored = record(span, service, scope_spans.scope.name, resource_id, resource, attributes)
                    if is_of_agent(stored.attributes) and mask_messages(span):
                        stored = record(span, service, scope_spans.scope.name, resource_id, resource, attributes)
                    yield stored


def _fault(span: Span, latest_ns: int) -> str | None:
    trace_id, span_id = span.trace_id, span.span_id
    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
    if len(trace_id) != 16 or trace_id == _NO_TRACE:
        return f'span "{span.name[:80]}" has no valid trace id'
    if len(span_id) != 8 or span_id == _NO_SPAN:
        return f'span "{span.name[:80]}" has no valid span id'
    if len(span.parent_span_id) not in (0, 8):
        return f'span "{span.name[:80]}" has no valid parent span id'
    if end_ns < start_ns:
        end_ns = start_ns
    if start_ns >= EARLIEST_NS and end_ns <= latest_ns and end_ns - start_ns <= _LONGEST_NS:
        return None
    if not start_ns or end_ns >= 1 << 63:
        return f'span "{span.name[:80]}" has no valid start or end'
    if start_ns < EARLIEST_NS:
        what = "starts before the year 2000"
    elif end_ns > latest_ns:
        what = "starts or ends more than a day from now"
    else:
        what = "lasts longer than a year"
    return f'span "{span.name[:80]}" {what}: check the clock of its host'


def record(
    span: Span,
    service: str,
    scope: str,
    resource_id: str,
    resource: bytes,
    resource_attributes: Mapping[str, Any],
    payload: bytes | None = None,
) -> SpanRecord:
    """A span as it is stored. ``payload``: the span, encoded, if it is known."""
    exception = None
    events: list[SpanEvent] = []
    for event in span.events:
        is_exception = event.name == "exception"
        if not is_exception and len(events) >= MAX_EVENTS:
            continue
        attributes = attributes_of(event.attributes)
        if is_exception:
            kind = str(attributes.get("exception.type", "Exception"))
            message, stack = attributes.get("exception.message", ""), attributes.pop("exception.stacktrace", "")
            exception = (kind, str(message), str(stack))
        if len(events) < MAX_EVENTS:
            events.append(SpanEvent(event.time_unix_nano, event.name, attributes))
    parent = span.parent_span_id
    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
    status, links = span.status, span.links
    # By position: twenty names take as long as a third of the rest.
    return SpanRecord(
        span.trace_id.hex(),
        span.span_id.hex(),
        parent.hex() if parent and parent.strip(b"\0") else "",
        clean(span.name),
        span.kind,
        start_ns,
        # If the clock was set back meanwhile, the span ended when it started.
        end_ns if end_ns >= start_ns or not end_ns else start_ns,
        service,
        scope,
        resource_id,
        resource,
        payload=span.SerializeToString(deterministic=True) if payload is None else payload,
        attributes=attributes_of(span.attributes),
        status_code=status.code,
        status_message=status.message,
        links=tuple([link.span_id.hex() for link in links if link.trace_id == span.trace_id]) if links else (),
        elsewhere=_elsewhere(span) if links else (),
        exception=exception,
        resource_attributes=resource_attributes,
        events=tuple(events),
        is_parent_near=span.flags & _IS_REMOTE_MASK == _HAS_IS_REMOTE,
    )


def _elsewhere(span: Span) -> tuple[tuple[str, str], ...]:
    return tuple([
        (link.trace_id.hex(), link.span_id.hex())
        for link in span.links
        if link.trace_id != span.trace_id and len(link.trace_id) == 16 and len(link.span_id) == 8
    ])  # fmt: skip


def told_apart(span: SpanRecord, repetition: int) -> SpanRecord:
    """A span whose id an earlier attempt of the same thing had, under an id of its own (once, however often it is)."""
    given = bytes.fromhex(span.span_id)
    if given[:2] == _check(given[2:]):
        return span
    rest = hashlib.blake2b(f"{span.span_id}/{repetition}".encode(), digest_size=6).digest()
    message = Span.FromString(span.payload)
    message.span_id = _check(rest) + rest
    payload = message.SerializeToString(deterministic=True)
    return msgspec.structs.replace(span, span_id=message.span_id.hex(), payload=payload)


def _check(rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=2).digest()


def export_request(spans: Iterable[SpanRecord]) -> bytes:
    """Spans as an OTLP request (protobuf)."""
    return ExportTraceServiceRequest(resource_spans=resource_spans(spans)).SerializeToString()


def request_as_json(body: bytes) -> dict[str, Any]:
    """An OTLP request (protobuf) as OTLP JSON. Raises `BadRequest`."""
    groups = parse(body).resource_spans
    return {"resourceSpans": [_ids_to_hex(MessageToDict(group)) for group in groups]}


def stored_record(payload: bytes, resource: bytes, resource_id: str) -> SpanRecord:
    """A span, read from its row."""
    service, scope, attributes = read_resource(resource)
    return record(Span.FromString(payload), service, scope, resource_id, resource, attributes, payload)


@functools.lru_cache(maxsize=256)
def read_resource(resource: bytes) -> tuple[str, str, Mapping[str, Any]]:
    """The service, the scope and the resource's attributes of a `ResourceSpans` without spans."""
    message = ResourceSpans.FromString(resource)
    attributes = attributes_of(message.resource.attributes)
    scope = message.scope_spans[0].scope.name if message.scope_spans else ""
    return service_of(attributes), scope, attributes


def service_of(resource_attributes: Mapping[str, Any]) -> str:
    """The name of the service with these resource attributes."""
    return clean(str(resource_attributes.get("service.name", "unknown_service")))[:200]


def resource_spans(spans: Iterable[SpanRecord]) -> list[ResourceSpans]:
    """Stored spans as OTLP: one `ResourceSpans` per resource and scope."""
    groups: dict[str, ResourceSpans] = {}
    for span in spans:
        group = groups.get(span.resource_id)
        if group is None:
            group = groups[span.resource_id] = ResourceSpans.FromString(span.resource)
        group.scope_spans[0].spans.append(Span.FromString(span.payload))
    return list(groups.values())


def write_otlp_json(spans: Iterable[SpanRecord | StoredSpan], write: Callable[[bytes], object]) -> None:
    """Write stored spans in OTLP's JSON, as a list with one `ResourceSpans` for each run of spans of one resource."""
    resource_id: str | None = None
    write(b"[")
    for span in spans:
        if span.resource_id != resource_id:
            write(_JSON_END + b"," if resource_id is not None else b"")
            resource_id = span.resource_id
            group = _ids_to_hex(MessageToDict(ResourceSpans.FromString(span.resource)))
            (scope,) = group.pop("scopeSpans")[:1] or [{}]
            write(_opened(group) + b'"scopeSpans":[' + _opened(scope) + b'"spans":[')
        else:
            write(b",")
        write(msgspec.json.encode(span_json(Span.FromString(span.payload))))
    write(_JSON_END + b"]" if resource_id is not None else b"]")


_JSON_END: Final = b"]}]}"


def _opened(value: dict[str, Any]) -> bytes:
    """A JSON object that goes on."""
    encoded = msgspec.json.encode(value)
    return encoded[:-1] + b"," if value else b"{"


def write_otlp(spans: Iterable[SpanRecord | StoredSpan], write: Callable[[bytes], object]) -> None:
    """Write stored spans as OTLP's `TracesData` in protobuf: a `ResourceSpans` for every few spans of one resource."""
    group: list[bytes] = []
    last: SpanRecord | StoredSpan | None = None

    def flush() -> None:
        if last is not None:
            message = ResourceSpans.FromString(last.resource)
            message.scope_spans[0].spans.extend([Span.FromString(payload) for payload in group])
            write(TracesData(resource_spans=[message]).SerializeToString())
            group.clear()

    for span in spans:
        if last is not None and (span.resource_id != last.resource_id or len(group) >= _GROUP):
            flush()
        last = span
        group.append(span.payload)
    flush()


_GROUP: Final = 1_000


def otlp_json(spans: Iterable[SpanRecord], *, key: str = "resourceSpans") -> dict[str, Any]:
    """Stored spans in OTLP's JSON."""
    return {key: [_ids_to_hex(MessageToDict(group)) for group in resource_spans(spans)]}


def _ids_to_hex(value: Any) -> Any:
    if isinstance(value, list):
        return [_ids_to_hex(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: base64.b64decode(item).hex()
        if key in ("traceId", "spanId", "parentSpanId")
        else _enum(key, _ids_to_hex(item))
        for key, item in value.items()
    }


def _enum(key: str, value: Any) -> Any:
    """OTLP's JSON has enums as numbers."""
    if key == "kind" and isinstance(value, str):
        return Span.SpanKind.Value(value)
    if key == "code" and isinstance(value, str):
        return {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}.get(value, value)
    return value
