"""What is between a spanset's braces, and in the parentheses of functions.

Precedence, from loose to tight: ``&&`` and ``||`` (of one level, from left to right, as in Tempo), comparisons,
``+ -``, ``!``, ``* / %``, ``^`` (from the right).
"""

from __future__ import annotations

from typing import Final

from tachograph_exporter.traces.pattern import Pattern, PatternError
from tachograph_exporter.traces.traceql.cursor import Cursor
from tachograph_exporter.traces.traceql.fields import ALIASES, INTRINSICS, KINDS, STATUSES
from tachograph_exporter.traces.traceql.lexer import Token
from tachograph_exporter.traces.traceql.syntax import (
    Attribute,
    Binary,
    Expression,
    Field,
    Intrinsic,
    Kind,
    Literal,
    Status,
    Unary,
)
from tachograph_exporter.traces.traceql.types import ANY, BOOLEAN, fault_of, type_of

_LEVELS: Final = {
    "&&": 1, "||": 1, "=": 2, "!=": 2, ">": 2, ">=": 2, "<": 2, "<=": 2, "=~": 2, "!~": 2, "+": 3, "-": 3,
    "*": 5, "/": 5, "%": 5, "^": 6,
}  # fmt: skip
_MINUS, _NOT, _POWER = 3, 4, 6
_WORDS: Final[dict[str, Literal]] = {
    "true": Literal(True), "false": Literal(False), "nil": Literal(None),
    "minInt": Literal(-(1 << 63)), "maxInt": Literal((1 << 63) - 1),
    **{word: Literal(Status(word)) for word in STATUSES.values()},
    **{word: Literal(Kind(word)) for word in KINDS.values()},
}  # fmt: skip
FIELDS: Final = "span.NAME, resource.NAME, event.NAME, .NAME, or one of " + ", ".join([*INTRINSICS, *ALIASES])
_NOT_NIL: Final = Attribute("resource", "service.name")


def parse_condition(cursor: Cursor) -> Expression:
    """An expression that is true or false."""
    start = cursor.token
    condition = parse_expression(cursor)
    if type_of(condition) not in (BOOLEAN, ANY) or condition == Literal(None):
        raise cursor.error("expected a condition that is true or false", start)
    return condition


def parse_expression(cursor: Cursor, level: int = 1) -> Expression:
    """An expression whose operators are of this level or tighter."""
    left = _operand(cursor)
    while cursor.token.kind == "operator" and _LEVELS.get(cursor.token.text, 0) >= level:
        token = cursor.take()
        cursor.count_operator()
        tightness = _LEVELS[token.text]
        right_at = cursor.token
        right = parse_expression(cursor, tightness if tightness == _POWER else tightness + 1)
        left = _binary(cursor, token, left, right, right_at)
    return left


def _binary(cursor: Cursor, token: Token, left: Expression, right: Expression, right_at: Token) -> Expression:
    operator = token.text
    if Literal(None) in (left, right):
        return _nil(cursor, token, left, right)
    node = Binary(operator, left, right)
    if operator in ("=~", "!~"):
        if not isinstance(right, Literal) or not isinstance(right.value, str):
            raise cursor.error('expected a "pattern"', right_at)
        try:
            Pattern(right.value)
        except PatternError as error:
            raise cursor.error(f"{error}; expected such a pattern", right_at) from None
    fault = fault_of(node)
    if fault is not None:
        raise cursor.error(fault, token)
    return node


def _nil(cursor: Cursor, token: Token, left: Expression, right: Expression) -> Expression:
    if token.text not in ("=", "!="):
        raise cursor.error("nil can only be compared with = and !=", token)
    operand = right if left == Literal(None) else left
    if operand == Literal(None):
        return Literal(False)
    if token.text == "!=":
        return Unary("exists", operand)
    if isinstance(operand, Intrinsic) or operand == _NOT_NIL:
        raise cursor.error("this is never nil", token)
    return Unary("absent", operand)


def _operand(cursor: Cursor) -> Expression:
    token = cursor.token
    if cursor.accept("("):
        with cursor.deeper():
            inner = parse_expression(cursor)
        cursor.expect(")")
        return inner
    if token.kind == "operator" and token.text in ("-", "!"):
        cursor.take()
        cursor.count_operator()
        with cursor.deeper():
            operand = parse_expression(cursor, (_MINUS if token.text == "-" else _NOT) + 1)
        if token.text == "-" and isinstance(operand, Literal):
            value = operand.value
            if isinstance(value, int | float) and not isinstance(value, bool):
                return Literal(type(value)(-value))
        node = Unary(token.text, operand)
        fault = fault_of(node)
        if fault is not None or operand == Literal(None):
            raise cursor.error(fault or "expected a value", token)
        return node
    if token.kind in ("text", "number"):
        cursor.take()
        return Literal(token.value)  # type: ignore[arg-type]
    if token.kind == "word" and token.text in _WORDS:
        cursor.take()
        return _WORDS[token.text]
    return parse_field(cursor, "a field or a value")


def parse_field(cursor: Cursor, what: str = "a field") -> Field:
    """An attribute or an intrinsic."""
    token = cursor.token
    if token.kind == "attribute":
        cursor.take()
        scope, _, name = token.text.partition(".")
        return Attribute(scope, token.value if isinstance(token.value, str) else name)
    name = ALIASES.get(token.text, token.text)
    if token.kind in ("word", "intrinsic") and name in INTRINSICS:
        cursor.take()
        return Intrinsic(name)
    if token.kind == "word" and token.text == "parent":
        raise cursor.error("parent is not supported; expected another field")
    raise cursor.error(f"expected {what}" if token.kind == "end" else f"expected {what}: {FIELDS}")


def parse_fields(cursor: Cursor) -> tuple[Field, ...]:
    """Fields in parentheses, separated by commas."""
    cursor.expect("(")
    fields = [parse_field(cursor)]
    while cursor.accept(","):
        fields.append(parse_field(cursor))
    cursor.expect(")")
    return tuple(fields)
