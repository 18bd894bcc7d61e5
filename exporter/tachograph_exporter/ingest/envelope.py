"""An export request, taken apart without reading its spans: a large one never is in memory as a whole.

Two bytes can be a message that takes fifty in memory. So the number of spans is known before one of them is read, and
they are read a piece at a time. Wire format: https://protobuf.dev/programming-guides/encoding/, field numbers as in
opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from tachograph_exporter.ingest.signals import TRACES, Signal
from tachograph_exporter.ingest.signals import BadRequest as BadRequest

PIECE_BYTES: Final = 256 << 10
"""Bytes of spans that are read at once, unless a single span has more."""
MAX_MESSAGES: Final = 200_000
"""Spans, and the groups around them, that one request may carry."""
MAX_FIELDS: Final = 200_000
"""Fields (attributes, events, values …) of one span, or of a resource with its scope, that is longer than a piece."""
MAX_HEAD_BYTES: Final = 32 << 20
"""Bytes of resources and scopes, each counted as often as spans are stored with it."""

_SPANS: Final[Mapping[str, Mapping[int, str]]] = {
    "ResourceSpans": {1: "Resource", 2: "ScopeSpans"}, "Resource": {1: "KeyValue"},
    "ScopeSpans": {1: "Scope", 2: "Span"}, "Scope": {3: "KeyValue"},
    "Span": {9: "KeyValue", 11: "Event", 13: "Link"}, "Event": {3: "KeyValue"}, "Link": {4: "KeyValue"},
    "KeyValue": {2: "AnyValue"}, "AnyValue": {5: "ArrayValue", 6: "KeyValueList"},
    "ArrayValue": {1: "AnyValue"}, "KeyValueList": {1: "KeyValue"},
}  # fmt: skip
_LOGS: Final[Mapping[str, Mapping[int, str]]] = {
    "ResourceLogs": {1: "Resource", 2: "ScopeLogs"}, "ScopeLogs": {1: "Scope", 2: "LogRecord"},
    "LogRecord": {5: "AnyValue", 6: "KeyValue"},
}  # fmt: skip
_METRICS: Final[Mapping[str, Mapping[int, str]]] = {
    "ResourceMetrics": {1: "Resource", 2: "ScopeMetrics"}, "ScopeMetrics": {1: "Scope", 2: "Metric"},
    "Metric": {5: "Numbers", 7: "Numbers", 9: "Histogram", 10: "Exponential", 11: "Summary", 12: "KeyValue"},
    "Numbers": {1: "Number"}, "Number": {5: "Exemplar", 7: "KeyValue"}, "Exemplar": {7: "KeyValue"},
    "Histogram": {1: "Buckets"}, "Buckets": {8: "Exemplar", 9: "KeyValue"},
    "Exponential": {1: "Exponents"}, "Exponents": {1: "KeyValue", 8: "Range", 9: "Range", 11: "Exemplar"}, "Range": {},
    "Summary": {1: "Quantiles"}, "Quantiles": {6: "Quantile", 7: "KeyValue"}, "Quantile": {},
}  # fmt: skip
_MESSAGES: Final = {**_SPANS, **_LOGS, **_METRICS}
"""The messages in messages, by the number of their field."""


def too_much() -> BadRequest:
    """A request carries more than may be read."""
    return BadRequest("the request carries too many items or attributes; send it in parts")


class ScopeOfSpans(NamedTuple):
    """The spans of one scope (or log records, or metrics: what its ``signal`` consists of).

    ``head``: the encoded `ResourceSpans` without scopes, and ``scope``: the `ScopeSpans` without spans.
    ``spans``: start and end of each span in ``source``, its tag included. ``rejections``: for each further span, why it
    cannot be read.
    """

    head: bytes
    scope: bytes
    source: bytes
    spans: array[int]
    rejections: Sequence[str] = ()
    signal: Signal = TRACES

    def pieces(self) -> Iterator[Any]:
        """The spans in messages of about `PIECE_BYTES`; for a span that cannot be read, the reason."""
        yield from self.rejections
        start = size = 0
        for i in range(0, len(self.spans), 2):
            length = self.spans[i + 1] - self.spans[i]
            if size and size + length > PIECE_BYTES:
                yield from self._piece(start, i)
                start, size = i, 0
            size += length
        if size:
            yield from self._piece(start, len(self.spans))

    def _piece(self, start: int, end: int) -> Iterator[Any]:
        source, spans = self.source, self.spans
        parts = [source[spans[i] : spans[i + 1]] for i in range(start, end, 2)]
        try:
            yield self._message(*parts)
        except DecodeError:
            # A text that is not UTF-8, for instance: it costs its span, and no other.
            for number, part in enumerate(parts, start // 2 + 1):
                try:
                    yield self._message(part)
                except DecodeError as error:
                    yield f"{self.signal.item} {number} of its scope cannot be read: {error}"

    def _message(self, *spans: bytes) -> Any:
        return self.signal.group.FromString(self.head + field(2, self.scope + b"".join(spans)))


def scopes_of(body: bytes, signal: Signal = TRACES) -> list[ScopeOfSpans]:
    """The scopes of an encoded export request that have spans, log records or metrics. Raises `BadRequest`."""
    scopes = []
    count = heads = 0
    _, groups = _split(body, 0, len(body), 1, MAX_MESSAGES)
    for group in range(0, len(groups), 2):
        _, at = varint(body, groups[group], len(body))
        _, at = varint(body, at, len(body))
        head, scope_spans = _split(body, at, groups[group + 1], 2, MAX_MESSAGES - count)
        count += 1 + len(scope_spans) // 2
        is_checked = False
        for i in range(0, len(scope_spans), 2):
            _, at = varint(body, scope_spans[i], len(body))
            _, at = varint(body, at, len(body))
            scope, spans = _split(body, at, scope_spans[i + 1], 2, MAX_MESSAGES - count)
            count += len(spans) // 2
            if not spans:
                continue
            heads += len(head) + len(scope)
            if heads > MAX_HEAD_BYTES:
                raise BadRequest("the request has too many scopes for a resource of this size; send it in parts")
            if len(head) > PIECE_BYTES and not is_checked:
                check_fields(head, 0, len(head), signal.group.DESCRIPTOR.name)
                is_checked = True
            if len(scope) > PIECE_BYTES:
                check_fields(scope, 0, len(scope), signal.scope)
            for k in range(0, len(spans), 2):
                if spans[k + 1] - spans[k] > PIECE_BYTES:
                    check_fields(body, spans[k], spans[k + 1], signal.scope)
            scopes.append(ScopeOfSpans(head, scope, body, spans, signal=signal))
    return scopes


def check_fields(body: bytes, start: int, end: int, kind: str) -> None:
    """Raise `BadRequest` if a message has more than `MAX_FIELDS`, those of the messages in it included."""
    count = 0
    pending = [(start, end, kind)]
    while pending:
        at, end, kind = pending.pop()
        nested = _MESSAGES[kind]
        while at < end:
            count += 1
            if count > MAX_FIELDS:
                raise too_much()
            tag, at = varint(body, at, end)
            stop = _end_of(body, at, end, tag & 7)
            if tag & 7 == 2 and (inner := nested.get(tag >> 3)) is not None:
                _, at = varint(body, at, end)
                pending.append((at, stop, inner))
            at = stop


def _split(body: bytes, at: int, end: int, number: int, most: int) -> tuple[bytes, array[int]]:
    """A message without the messages in its field ``number``, and where each of these starts and ends."""
    rest: list[bytes] = []
    places = array("Q")
    while at < end:
        start = at
        tag, at = varint(body, at, end)
        if tag < 8:
            raise not_protobuf("a field has no number")
        at = _end_of(body, at, end, tag & 7)
        if tag & 7 == 2 and tag >> 3 == number:
            if len(places) >= 2 * most:
                raise too_much()
            places.append(start)
            places.append(at)
        else:
            if len(rest) >= MAX_FIELDS:
                raise too_much()
            rest.append(body[start:at])
    return b"".join(rest), places


def _end_of(body: bytes, at: int, end: int, kind: int) -> int:
    """Where the value that starts at ``at`` ends. Raises `BadRequest`."""
    if kind == 2:
        length, at = varint(body, at, end)
        at += length
    elif kind == 0:
        _, at = varint(body, at, end)
    elif kind in (1, 5):
        at += 8 if kind == 1 else 4
    else:
        raise not_protobuf(f"unknown type {kind} of a field")
    if at > end:
        raise not_protobuf("its end is missing")
    return at


def varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at ``at``, and where what follows starts. Raises `BadRequest`."""
    value = shift = 0
    while at < end and shift < 70:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise not_protobuf("a number does not end")


def field(number: int, content: bytes) -> bytes:
    """A message as a field of another one."""
    encoded = bytearray([number << 3 | 2])
    size = len(content)
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + content


def not_protobuf(why: object) -> BadRequest:
    """A body is not what its content type says."""
    return BadRequest(f"the body is not a protobuf export request: {str(why)[:300]}")
