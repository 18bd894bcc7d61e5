"""Values of span attributes as text, as viewers show them and search for them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec


class ValueKind(IntEnum):
    """The type of an attribute's value."""

    NONE = 0
    STRING = 1
    INT = 2
    FLOAT = 3
    BOOL = 4
    OTHER = 5
    """Bytes, a list or a map."""


def kind_of(value: Any) -> ValueKind:
    """The type of a value as `as_text` reads it."""
    kind = _KINDS.get(type(value))
    return ValueKind.OTHER if kind is None else kind


_KINDS = {
    str: ValueKind.STRING, int: ValueKind.INT, float: ValueKind.FLOAT, bool: ValueKind.BOOL,
    type(None): ValueKind.NONE,
}  # fmt: skip


def as_text(value: Any) -> str:
    """An attribute's value as text, as viewers show it and search for it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict) else str(value)
