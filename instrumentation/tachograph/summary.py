"""What steps take, give and raise, as bounded text without secrets.

A summary is JSON text of at most `LIMIT` characters. Summarising looks, and runs nothing of what it looks at: no
``__str__``, ``__repr__``, ``__iter__``, ``__len__`` or property of the value's own class is called. Known containers
and scalars are read by the methods of the built-in type they derive from; of anything else the type's name is kept. So
a lazy query is not executed, a frame of a million rows is not printed, and a value that raises when touched does no
harm.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import itertools
import pathlib
import sys
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from tachograph.events import Failure
from tachograph.names import encodable
from tachograph.redaction import MASK, TEXT_LIMIT, is_secret_key, mask_text

LIMIT: Final = 4096
"""Characters of a summary of inputs or outputs."""
STACK_LIMIT: Final = 16_384
"""Characters of a stack."""

_ITEMS: Final = 50
_DEPTH: Final = 6
_STRING: Final = 512
_INT_BITS: Final = 1024
_FRAMES: Final = 50


def summarise(value: Any, limit: int = LIMIT) -> str | None:
    """JSON text of ``value``: masked, cut in depth, breadth and length; None for None (and for an empty mapping).

    Never raises, whatever ``value`` is.
    """
    if value is None or (type(value) is dict and not value):
        return None
    try:
        text = msgspec.json.encode(_reduce(value, _DEPTH, [limit])).decode()
        if len(text) > limit:
            # Many escapes or keys: keep it valid JSON by giving the beginning as a string.
            text = msgspec.json.encode(text[: limit // 2] + "…").decode()
    except Exception:
        text = msgspec.json.encode(_type_name(value)).decode()
    return text


def _reduce(value: Any, depth: int, budget: list[int]) -> Any:
    kind = type(value)
    reader = _EXACT.get(kind)
    if reader is None:
        reader = _reader(kind)
    try:
        return reader(value, depth, budget)
    except RecursionError:
        raise
    except Exception:
        # Changed by another thread while it was read, or a subclass that broke its base.
        return _text(_type_name(value), depth, budget)


def _type_name(value: Any) -> str:
    kind = type(value)
    try:
        module, name = type.__getattribute__(kind, "__module__"), type.__getattribute__(kind, "__qualname__")
    except Exception:
        return "<object>"
    return encodable(f"<{name}>" if module in ("builtins", "__main__") else f"<{module}.{name}>")


def _literal(value: Any, _depth: int, budget: list[int]) -> Any:
    budget[0] -= 5
    return value


def _text(value: str, _depth: int, budget: list[int]) -> str:
    room = min(_STRING, max(16, budget[0]))
    # Of a subclass of str, the characters; not what its own methods make of them.
    plain = value if type(value) is str else str.__str__(value)
    short = mask_text(str.__getitem__(plain, slice(0, 2 * room + 1)), room)
    budget[0] -= len(short) + 2
    return short


def _integer(value: int, _depth: int, budget: list[int]) -> Any:
    bits = int.bit_length(value)
    if bits < 64:
        budget[0] -= 20
        return int.__int__(value)
    budget[0] -= 40
    # Printing takes quadratic time, and Python refuses it beyond some thousand digits.
    return int.__repr__(value)[:_STRING] if bits <= _INT_BITS else f"<integer of {bits} bits>"


def _number(value: float, _depth: int, budget: list[int]) -> Any:
    budget[0] -= 20
    plain = float.__float__(value)
    return plain if plain - plain == 0 else float.__repr__(plain)


def _bytes(value: Any, _depth: int, budget: list[int]) -> str:
    budget[0] -= 16
    size = value.nbytes if type(value) is memoryview else _base(value, (bytes, bytearray)).__len__(value)
    return f"<{size} bytes>"


def _base(value: Any, bases: tuple[type, ...]) -> Any:
    """The built-in type that ``value`` derives from."""
    return next(base for base in bases if issubclass(type(value), base))


def _list(value: Any, depth: int, budget: list[int]) -> Any:
    base = _base(value, (list, tuple, set, frozenset, deque))
    size: int = base.__len__(value)
    budget[0] -= 2
    if depth <= 0:
        return f"<{size} items>"
    return _items(base.__iter__(value), size, depth, budget)


def _items(values: Iterable[Any], size: int, depth: int, budget: list[int]) -> list[Any]:
    items: list[Any] = []
    for value in itertools.islice(values, _ITEMS):
        if budget[0] <= 0:
            break
        items.append(_reduce(value, depth - 1, budget))
    if len(items) < size:
        items.append(f"… {size - len(items)} more")
    return items


def _dict(value: dict[Any, Any], depth: int, budget: list[int]) -> Any:
    return _pairs(dict.items(value), dict.__len__(value), depth, budget)


def _pairs(pairs: Iterable[tuple[Any, Any]], size: int, depth: int, budget: list[int]) -> Any:
    budget[0] -= 2
    if depth <= 0:
        return f"<{size} keys>"
    result: dict[str, Any] = {}
    taken = 0
    try:
        for key, item in itertools.islice(pairs, _ITEMS):
            if budget[0] <= 0:
                break
            taken += 1
            name = _key(key, budget)
            budget[0] -= len(name) + 4
            result[name] = MASK if item is not None and is_secret_key(name) else _reduce(item, depth - 1, budget)
    except RuntimeError:
        pass  # Changed by another thread meanwhile: what was read until then is kept.
    if taken < size:
        result["…"] = f"{size - taken} more"
    return result


@functools.lru_cache(maxsize=4096)
def _known_key(key: str) -> str:
    return mask_text(key, 100)


def _key(key: Any, budget: list[int]) -> str:
    if type(key) is str and len(key) <= 100:
        return _known_key(key)
    if issubclass(type(key), str):
        return mask_text(str.__getitem__(str.__str__(key), slice(0, 201)), 100)
    reduced = _reduce(key, 1, budget)
    return mask_text(reduced if isinstance(reduced, str) else msgspec.json.encode(reduced).decode(), 100)


def _struct(value: msgspec.Struct, depth: int, budget: list[int]) -> Any:
    names = type(value).__struct_fields__
    pairs = ((name, object.__getattribute__(value, name)) for name in names)
    return _pairs(pairs, len(names), depth, budget)


def _fields(value: Any, depth: int, budget: list[int]) -> Any:
    """A dataclass or a model: what is in its ``__dict__`` or slots, read without its properties."""
    names = list(type.__getattribute__(type(value), "__dataclass_fields__"))
    missing = object()

    def read(name: str) -> Any:
        try:
            return object.__getattribute__(value, name)
        except AttributeError:
            return missing

    pairs = [(name, item) for name in names[: _ITEMS + 1] if (item := read(name)) is not missing]
    return _pairs(pairs, max(len(pairs), len(names)) if len(names) > _ITEMS else len(pairs), depth, budget)


def _model(value: Any, depth: int, budget: list[int]) -> Any:
    fields = object.__getattribute__(value, "__dict__")
    return _dict(fields, depth, budget)


def _enum(value: enum.Enum, depth: int, budget: list[int]) -> Any:
    name = object.__getattribute__(value, "_name_")
    return _text(f"{type(value).__name__}.{name}", depth, budget)


def _printed(value: Any, depth: int, budget: list[int]) -> str:
    """A scalar of the standard library, by the method of the class itself."""
    base = _base(value, _PRINTED)
    return _text(base.__str__(value), depth, budget)


def _decimal(value: decimal.Decimal, depth: int, budget: list[int]) -> str:
    digits = decimal.Decimal.as_tuple(value).digits
    if len(digits) > 300:
        return _text(f"<decimal of {len(digits)} digits>", depth, budget)
    return _text(decimal.Decimal.__str__(value), depth, budget)


def _fraction(value: fractions.Fraction, depth: int, budget: list[int]) -> str:
    above, below = value._numerator, value._denominator  # type: ignore[attr-defined]
    return _text(f"{_integer(above, 0, budget)}/{_integer(below, 0, budget)}", depth, budget)


def _name_only(value: Any, depth: int, budget: list[int]) -> str:
    return _text(_type_name(value), depth, budget)


def _class(value: type, depth: int, budget: list[int]) -> str:
    return _text(f"<class {type.__getattribute__(value, '__qualname__')}>", depth, budget)


def _range(value: range, depth: int, budget: list[int]) -> str:
    parts = [_integer(part, 0, budget) for part in (value.start, value.stop, value.step)]
    return _text(f"range({parts[0]}, {parts[1]}{f', {parts[2]}' if parts[2] != 1 else ''})", depth, budget)


def _numpy_scalar(value: Any, depth: int, budget: list[int]) -> Any:
    return _reduce(value.item(), depth - 1, budget) if depth > 0 else _name_only(value, depth, budget)


Reader = Callable[[Any, int, list[int]], Any]

_PRINTED: Final = (
    complex, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, pathlib.PurePath,
)  # fmt: skip
_EXACT: Final[dict[type, Reader]] = {
    type(None): _literal, bool: _literal, str: _text, int: _integer, float: _number, dict: _dict, list: _list,
    tuple: _list, set: _list, frozenset: _list, bytes: _bytes, bytearray: _bytes, range: _range,
}  # fmt: skip
_BY_BASE: Final[tuple[tuple[type | tuple[type, ...], Reader], ...]] = (
    (enum.Enum, _enum),
    (str, _text),
    (int, _integer),
    (float, _number),
    (dict, _dict),
    ((list, tuple, set, frozenset, deque), _list),
    ((bytes, bytearray, memoryview), _bytes),
    (msgspec.Struct, _struct),
    (decimal.Decimal, _decimal),
    (fractions.Fraction, _fraction),
    (_PRINTED, _printed),
    (type, _class),
)


def _reader(kind: type) -> Reader:
    """How to read values of this class: by the class itself (`type`), never by what ``__class__`` claims."""
    for base, reader in _BY_BASE:
        if issubclass(kind, base):
            return reader
    try:
        members = type.__getattribute__(kind, "__mro__")
    except Exception:
        return _name_only
    if any("__dataclass_fields__" in vars(member) for member in members):
        return _fields
    if any("__pydantic_fields__" in vars(member) or "model_fields" in vars(member) for member in members[:-1]):
        return _model
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, getattr(numpy, "generic", ())):
        return _numpy_scalar
    return _name_only


def as_text(value: Any) -> str:
    """What a log line says: text as it is, an exception's message, of anything else the summary. Never raises."""
    if type(value) is str:
        return value
    if issubclass(type(value), BaseException):
        return _message(value)
    if issubclass(type(value), str):
        return str.__str__(value)
    return summarise(value) or ("{}" if type(value) is dict else "None")


def is_clean_exit(error: BaseException) -> bool:
    """Whether it is what ``sys.exit()`` or ``sys.exit(0)`` raises: the work ends, and it has not failed."""
    if not issubclass(type(error), SystemExit):
        return False
    code = SystemExit.__dict__["code"].__get__(error)
    return code is None or (issubclass(type(code), int) and int.__eq__(code, 0))


def failure(error: BaseException, *, stack: bool = True) -> Failure:
    """What went wrong, as a value: qualified type, message and stack, masked and bounded.

    Never raises. The message is what the exception's own ``__str__`` says; where that fails, its arguments.
    """
    name = _type_name(error)[1:-1]
    message = _message(error)
    lines = _stack(error) if stack else None
    return Failure(name, mask_text(message or name), mask_text(lines, STACK_LIMIT + 1) if lines else None)


def _message(error: BaseException) -> str:
    try:
        said = str(error)
        return str.__getitem__(said, slice(0, 2 * TEXT_LIMIT)) if type(said) is str else str.__str__(said)
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt):
            raise
        return f"<its message cannot be read: {_type_name(problem)[1:-1]}>"


def _stack(error: BaseException) -> str | None:
    if BaseException.__dict__["__traceback__"].__get__(error) is None:
        return None
    try:
        lines = "".join(traceback.format_exception(error, limit=_FRAMES))
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt):
            raise
        try:
            trace = BaseException.__dict__["__traceback__"].__get__(error)
            lines = "".join(traceback.format_tb(trace, limit=_FRAMES))
        except Exception:
            return None
    return lines if len(lines) <= STACK_LIMIT else "…" + lines[-STACK_LIMIT:]
