"""Types of TraceQL's expressions, as far as they are known before a span is read. An attribute may be of any type."""

from __future__ import annotations

from typing import Final

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

NUMBER: Final = "number"
TEXT: Final = "text"
BOOLEAN: Final = "boolean"
STATUS: Final = "status"
KIND: Final = "kind"
ANY: Final = "any"

_WORDS: Final = {
    "status": STATUS, "kind": KIND, "duration": NUMBER, "traceDuration": NUMBER, "event:timeSinceStart": NUMBER,
    "nestedSetLeft": NUMBER, "nestedSetRight": NUMBER, "nestedSetParent": NUMBER, "span:childCount": NUMBER,
}  # fmt: skip
_ARITHMETIC: Final = ("+", "-", "*", "/", "%", "^")
_ORDER: Final = (">", ">=", "<", "<=")


def type_of(expression: Expression) -> str:
    """The type of an expression's values."""
    if isinstance(expression, Attribute):
        return ANY
    if isinstance(expression, Intrinsic):
        return _WORDS.get(expression.name, TEXT)
    if isinstance(expression, Literal):
        return _type_of_value(expression.value)
    if isinstance(expression, Unary):
        return NUMBER if expression.operator == "-" else BOOLEAN
    return NUMBER if expression.operator in _ARITHMETIC else BOOLEAN


def _type_of_value(value: object) -> str:
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int | float):
        return NUMBER
    if isinstance(value, Status):
        return STATUS
    if isinstance(value, Kind):
        return KIND
    return TEXT if isinstance(value, str) else ANY


def fault_of(expression: Unary | Binary) -> str | None:
    """Why an operator cannot be applied to its operands, or None if it can."""
    operator = expression.operator
    if isinstance(expression, Unary):
        kind = type_of(expression.operand)
        expected = {"-": NUMBER, "!": BOOLEAN}.get(operator, ANY)
        return None if ANY in (kind, expected) or kind == expected else f"{operator} takes a {expected}, not a {kind}"
    left, right = type_of(expression.left), type_of(expression.right)
    for kind in (left, right):
        if kind != ANY and not _takes(operator, kind):
            return f"{operator} does not take a {kind}"
    # A status or a kind may be given in quotes.
    words = {left, right} in ({STATUS, TEXT}, {KIND, TEXT})
    if ANY not in (left, right) and left != right and not words:
        return f"a {left} and a {right} cannot be compared or combined"
    return None


def _takes(operator: str, kind: str) -> bool:
    if operator in ("&&", "||"):
        return kind == BOOLEAN
    if operator in _ARITHMETIC:
        return kind == NUMBER
    if operator in _ORDER:
        return kind in (NUMBER, TEXT)
    return operator in ("=", "!=") or kind in (TEXT, STATUS, KIND)
