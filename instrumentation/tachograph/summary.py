"""Summaries of inputs, outputs and errors: bounded and masked before they become part of an event.

A summary is JSON of at most `LIMIT` characters. Values under keys that look like secrets are masked, and so are
credentials inside text: passwords in URLs, bearer tokens, ``password=…``.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tachograph.events import Failure
from tachograph.redaction import MASK, is_secret_key, mask_text

LIMIT: Final = 4096
"""Most characters of a summary of inputs or outputs."""
STACK_LIMIT: Final = 16_384

_MAX_ITEMS: Final = 50
_MAX_DEPTH: Final = 6
_MAX_STRING: Final = 512


def summarise(value: Any, limit: int = LIMIT) -> str | None:
    """``value`` as JSON: masked, and limited in depth, breadth and length. None for None and for an empty mapping."""
    if value is None or (isinstance(value, Mapping) and not value):
        return None
    budget = [limit]
    text = msgspec.json.encode(_reduce(value, _MAX_DEPTH, budget)).decode()
    if len(text) > limit:
        # Escapes or keys made it too long. A string of its beginning is still valid JSON.
        text = msgspec.json.encode(text[: limit // 2] + "…").decode()
    return text


def _reduce(value: Any, depth: int, budget: list[int]) -> Any:
    if value is None or isinstance(value, bool):
        budget[0] -= 4
        return value
    if isinstance(value, str):
        short = mask_text(str(value), min(_MAX_STRING, max(16, budget[0])))
        budget[0] -= len(short) + 2
        return short
    if isinstance(value, int | float):
        budget[0] -= 8
        if isinstance(value, float) and value - value != 0:
            return str(value)
        return value if not isinstance(value, int) or -(2**63) <= value < 2**64 else str(value)[:_MAX_STRING]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return _reduce_mapping(value, depth, budget)
    if isinstance(value, list | tuple | set | frozenset):
        if depth <= 0:
            return f"<{len(value)} items>"
        items: list[Any] = []
        for item in value:
            if len(items) >= _MAX_ITEMS or budget[0] <= 0:
                items.append(f"… {len(value) - len(items)} more")
                break
            items.append(_reduce(item, depth - 1, budget))
        return items
    if isinstance(value, msgspec.Struct):
        return _reduce(msgspec.structs.asdict(value), depth, budget)
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return _reduce(text, depth, budget)


def _reduce_mapping(value: Mapping[Any, Any], depth: int, budget: list[int]) -> Any:
    if depth <= 0:
        return f"<{len(value)} keys>"
    result: dict[str, Any] = {}
    for key, item in value.items():
        if len(result) >= _MAX_ITEMS or budget[0] <= 0:
            result["…"] = f"{len(value) - len(result)} more"
            break
        name = mask_text(str(key), 100)
        budget[0] -= len(name) + 4
        result[name] = MASK if is_secret_key(name) and item is not None else _reduce(item, depth - 1, budget)
    return result


def failure(error: BaseException, *, stack: bool = True) -> Failure:
    """The error as a value: qualified type, message and stack, masked and bounded."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    try:
        message = str(error)
    except Exception:
        message = "<the exception could not be printed>"
    lines = "".join(traceback.format_exception(error, limit=50)) if stack and error.__traceback__ else None
    if lines and len(lines) > STACK_LIMIT:
        lines = "…" + lines[-STACK_LIMIT:]
    return Failure(name, mask_text(message or name), mask_text(lines, STACK_LIMIT + 1) if lines else None)
