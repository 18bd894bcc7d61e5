"""Protobuf's wire format without its parser: how many spans a request carries, and where its parts begin and end.

Spans are counted before a request is read: a span of two bytes takes a hundred in memory. Format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_MESSAGES: Final = 200_000
"""Spans, and the groups around them, that one request may carry."""
MAX_JSON_VALUES: Final = 500_000
"""Objects and lists that one request in JSON may carry."""


def is_too_much(body: bytes, *, is_json: bool) -> bool:
    """Whether a request carries more than may be read at once. A body that is not valid is not: reading it says why."""
    if is_json:
        return body.count(b"{") + body.count(b"[") > MAX_JSON_VALUES
    count = 0
    # (start, end, depth) of messages: the request, its resource spans (field 1), their scope spans and spans (field 2).
    pending = [(0, len(body), 0)]
    while pending:
        at, end, depth = pending.pop()
        while at < end:
            tag, at = _varint(body, at, end)
            kind = tag & 7
            if kind == 2:
                length, at = _varint(body, at, end)
                if tag >> 3 == (1 if depth == 0 else 2):
                    count += 1
                    if count > MAX_MESSAGES:
                        return True
                    if depth < 2:
                        pending.append((at, min(at + length, end), depth + 1))
                at += length
            elif kind == 0:
                _, at = _varint(body, at, end)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                break
    return False


class Malformed(ValueError):
    """Bytes that are not a protobuf message."""


def fields(message: bytes) -> Iterator[tuple[int, bool, int, int, int]]:
    """Each field of a message: its number, whether it is bytes (or a message), where it starts, where its value begins
    and where it ends. Raises `Malformed`.
    """
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at, end)
        kind, begin = tag & 7, at
        if kind == 2:
            length, begin = _varint(message, at, end)
            at = begin + length
        elif kind == 0:
            _, at = _varint(message, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise Malformed(f"a field at {start} has an unknown type")
        if at > end or begin > end or tag >> 3 == 0:
            raise Malformed(f"a field at {start} is cut off")
        yield tag >> 3, kind == 2, start, begin, at


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, end
