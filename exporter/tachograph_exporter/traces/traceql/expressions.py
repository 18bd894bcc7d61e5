"""TraceQL's expressions as functions of a span and its trace.

As in Tempo: comparing values of different types, or with an absent one, is false, for ``!=`` and ``!~`` too. A list
compares if one of its values does (``!=`` and ``!~``: if all do). Dividing integers gives an integer.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final

from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.traces.pattern import Pattern
from tachograph_exporter.traces.traceql.fields import Getter, Several, TraceView, getter_of
from tachograph_exporter.traces.traceql.lexer import Duration
from tachograph_exporter.traces.traceql.syntax import (
    Attribute,
    Binary,
    Expression,
    Intrinsic,
    Kind,
    Literal,
    Status,
    Unary,
)

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_FAMILIES: Final[dict[type, str]] = {
    bool: "boolean", int: "number", float: "number", Duration: "number", str: "text", Status: "status", Kind: "kind",
    list: "list", Several: "several",
}  # fmt: skip
_ORDERED: Final = ("number", "text")
_MAX_POWER: Final = float(1 << 63)


def evaluator(expression: Expression) -> Getter:
    """The function that evaluates an expression."""
    if isinstance(expression, Literal):
        value = expression.value
        return lambda _span, _view: value
    if isinstance(expression, Attribute | Intrinsic):
        return getter_of(expression)
    if isinstance(expression, Unary):
        return _unary(expression)
    return _binary(expression)


def condition(expression: Expression) -> Callable[[SpanRecord, TraceView], bool]:
    """The function whether an expression is true."""
    evaluate = evaluator(expression)
    return lambda span, view: evaluate(span, view) is True


def _unary(expression: Unary) -> Getter:
    evaluate = evaluator(expression.operand)
    match expression.operator:
        case "exists":
            return lambda span, view: _is_there(evaluate(span, view))
        case "absent":
            return lambda span, view: not _is_there(evaluate(span, view))
        case "!":
            return lambda span, view: _negated(evaluate(span, view))
    return lambda span, view: _minus(evaluate(span, view))


def _is_there(value: Any) -> bool:
    return value is not None and value != ()


def _negated(value: Any) -> bool | None:
    return not value if isinstance(value, bool) else None


def _minus(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Duration(-value) if isinstance(value, Duration) else -value


def _binary(expression: Binary) -> Getter:
    left, right = evaluator(expression.left), evaluator(expression.right)
    name = expression.operator
    if name == "&&":
        return lambda span, view: left(span, view) is True and right(span, view) is True
    if name == "||":
        return lambda span, view: left(span, view) is True or right(span, view) is True
    if name in ("=~", "!~"):
        assert isinstance(expression.right, Literal)  # noqa: S101
        matches = Pattern(str(expression.right.value))
        is_expected = name == "=~"
        return lambda span, view: _matches(left(span, view), matches, is_expected)
    if name in _COMPARE:
        compare = _COMPARE[name]
        return lambda span, view: _compared(name, compare, left(span, view), right(span, view))
    return lambda span, view: combined(name, left(span, view), right(span, view))


def _matches(value: Any, matches: Pattern, is_expected: bool) -> bool:
    if isinstance(value, str):
        return matches(value) is is_expected
    if isinstance(value, list | Several):
        texts = [item for item in value if isinstance(item, str)]
        every = all if not is_expected and isinstance(value, list) else any
        return bool(texts) and every(matches(item) is is_expected for item in texts)
    return False


def _compared(name: str, compare: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    first, second = _FAMILIES.get(type(left)), _FAMILIES.get(type(right))
    if first is None or second is None:
        return False
    if first == second:
        return first not in _MANY and (first in _ORDERED or name in ("=", "!=")) and compare(left, right)
    if first in _MANY and second not in _MANY:
        every = all if name == "!=" and first == "list" else any
        return bool(left) and every([_compared(name, compare, item, right) for item in left])
    if second in _MANY and first not in _MANY:
        every = all if name == "!=" and second == "list" else any
        return bool(right) and every([_compared(name, compare, left, item) for item in right])
    # A status or a kind may be given in quotes.
    return {first, second} in _QUOTED and name in ("=", "!=") and compare(str(left), str(right))


_MANY: Final = ("list", "several")
_QUOTED: Final = ({"status", "text"}, {"kind", "text"})


def combined(name: str, left: Any, right: Any) -> Any:
    """The result of an arithmetic operator, or None where there is none: other types, division by zero, overflow."""
    for value in (left, right):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
    is_whole = type(left) is int and type(right) is int
    try:
        if name == "^":
            power = math.pow(left, right)
            return (int(power) if is_whole else power) if abs(power) < _MAX_POWER else None
        if name in ("/", "%"):
            if is_whole:
                # Towards zero, as in Go.
                quotient = abs(left) // abs(right) * (1 if (left < 0) is (right < 0) else -1)
                return quotient if name == "/" else left - quotient * right
            return left / right if name == "/" else math.fmod(left, right)
        result = _ARITHMETIC[name](*((left, right) if is_whole else (float(left), float(right))))
    except (ArithmeticError, ValueError):
        return None
    return result if abs(result) < 1 << 127 else None


_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip
