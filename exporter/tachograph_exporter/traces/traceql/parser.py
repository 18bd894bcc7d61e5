"""A recursive parser of TraceQL: ``parse`` returns the tree of a query, or says what is wrong and where.

Not supported, and refused by name: ``parent.x``, aggregates compared with aggregates, arithmetic with metrics.
"""

from __future__ import annotations

from typing import Final

from tachograph_exporter.traces.traceql.cursor import Cursor
from tachograph_exporter.traces.traceql.expression_parser import (
    parse_condition,
    parse_expression,
    parse_fields,
)
from tachograph_exporter.traces.traceql.expressions import combined
from tachograph_exporter.traces.traceql.lexer import TraceQLError
from tachograph_exporter.traces.traceql.metrics_parser import METRICS_FUNCTIONS, parse_metrics
from tachograph_exporter.traces.traceql.syntax import (
    COMPARISONS,
    Aggregate,
    Coalesce,
    Filter,
    GroupBy,
    Literal,
    Pipeline,
    Query,
    Relation,
    Scalar,
    ScalarFilter,
    Select,
    Stage,
    fields_of,
)
from tachograph_exporter.traces.traceql.types import ANY, NUMBER, type_of

STRUCTURAL: Final = (">", ">>", "<", "<<", "~", "!>", "!>>", "!<", "!<<", "!~", "&>", "&>>", "&<", "&<<", "&~")
_AGGREGATES: Final = ("count", "min", "max", "avg", "sum")
_STAGES: Final = "a spanset { … }, count(), min(), max(), avg(), sum(), by(), coalesce() or select()"
__all__ = ["TraceQLError", "parse"]


def parse(text: str) -> Query:
    """Parse a query. Raises `TraceQLError`."""
    cursor = Cursor(text)
    pipeline = _pipeline(cursor, is_outermost=True)
    metrics = None
    if cursor.peeks(*METRICS_FUNCTIONS):
        metrics = parse_metrics(cursor, parse_filter)
    hints = _hints(cursor) if cursor.accept("with") else ()
    if cursor.token.kind != "end":
        raise cursor.error(_unexpected(cursor, metrics is not None))
    return Query(pipeline, metrics, hints)


def _unexpected(cursor: Cursor, is_metrics: bool) -> str:
    if cursor.peeks("+", "-", "*", "/", "%", "^"):
        return "arithmetic with metrics or spansets is not supported; expected the end"
    return "expected | or the end" if is_metrics else "expected &&, ||, a structural operator (as >>) or |"


def _pipeline(cursor: Cursor, *, is_outermost: bool = False) -> Pipeline:
    if cursor.peeks("coalesce"):
        raise cursor.error("a query cannot begin with coalesce()")
    stages = [_stage(cursor)]
    while cursor.accept("|"):
        if is_outermost and cursor.peeks(*METRICS_FUNCTIONS):
            break
        cursor.count_operator()
        stages.append(_stage(cursor))
    return Pipeline(tuple(stages))


def _stage(cursor: Cursor) -> Stage:
    token = cursor.token
    if token.kind == "operator" and token.text in ("{", "("):
        return _relations(cursor)
    if token.kind == "number" or cursor.peeks("-", *_AGGREGATES):
        return _scalar_filter(cursor)
    if cursor.accept("by"):
        cursor.expect("(")
        start = cursor.token
        expression = parse_expression(cursor)
        if next(fields_of(expression), None) is None:
            raise cursor.error("by() needs a field of the span", start)
        cursor.expect(")")
        return GroupBy(expression)
    if cursor.accept("coalesce"):
        cursor.expect("(")
        cursor.expect(")")
        return Coalesce()
    if cursor.accept("select"):
        return Select(parse_fields(cursor))
    if cursor.peeks(*METRICS_FUNCTIONS):
        raise cursor.error(
            "metrics follow a spanset and |, and arithmetic with metrics is not supported; expected a spanset"
        )
    raise cursor.error(f"expected {_STAGES}")


def _relations(cursor: Cursor) -> Stage:
    """Spansets, combined: ``&&`` and ``||`` are of one level, the structural operators bind tighter."""
    left = _structure(cursor)
    while operator := cursor.accept("&&", "||"):
        cursor.count_operator()
        left = Relation(operator, left, _structure(cursor))
    return left


def _structure(cursor: Cursor) -> Stage:
    left = _spansets(cursor)
    while cursor.peeks(*STRUCTURAL):
        token = cursor.take()
        cursor.count_operator()
        right = _spansets(cursor)
        for side in (left, right):
            if _is_grouped(side):
                raise cursor.error(f"{token.text} takes one spanset a side; expected coalesce() after by()", token)
        left = Relation(token.text, left, right)
    return left


def _is_grouped(stage: Stage) -> bool:
    """Whether a stage may give several spansets of a trace."""
    if isinstance(stage, Pipeline):
        grouped = False
        for inner in stage.stages:
            grouped = not isinstance(inner, Coalesce) and (grouped or isinstance(inner, GroupBy) or _is_grouped(inner))
        return grouped
    return False


def _spansets(cursor: Cursor) -> Stage:
    if cursor.accept("("):
        with cursor.deeper():
            pipeline = _pipeline(cursor)
        cursor.expect(")")
        return pipeline.stages[0] if len(pipeline.stages) == 1 else pipeline
    return parse_filter(cursor)


def parse_filter(cursor: Cursor) -> Filter:
    """``{ … }``."""
    cursor.expect("{")
    if cursor.accept("}"):
        return Filter(Literal(True))
    condition = parse_condition(cursor)
    cursor.expect("}", ", && or ||")
    return Filter(condition)


def _scalar_filter(cursor: Cursor) -> ScalarFilter:
    start = cursor.token
    if not cursor.peeks(*_AGGREGATES):
        raise cursor.error("expected an aggregate, as count(), before the comparison")
    aggregate = _aggregate(cursor)
    if cursor.peeks("+", "-", "*", "/", "%", "^"):
        raise cursor.error("arithmetic with aggregates is not supported; expected a comparison")
    operator = cursor.accept(*COMPARISONS)
    if operator is None:
        raise cursor.error(f"expected a comparison of {start.text}() with a number")
    if cursor.peeks(*_AGGREGATES):
        raise cursor.error("comparing aggregates with each other is not supported; expected a number")
    return ScalarFilter(aggregate, operator, parse_scalar(cursor))


def _aggregate(cursor: Cursor) -> Aggregate:
    function = cursor.take().text
    cursor.expect("(")
    of = None
    if function != "count":
        start = cursor.token
        of = parse_expression(cursor)
        if type_of(of) not in (NUMBER, ANY) or next(fields_of(of), None) is None:
            raise cursor.error(f"{function}() needs a number of the span", start)
    cursor.expect(")")
    return Aggregate(function, of)


def parse_scalar(cursor: Cursor) -> Scalar:
    """A number, or arithmetic of numbers."""
    start = cursor.token
    if start.kind != "number" and not cursor.peeks("-", "("):
        raise cursor.error("expected a number")
    value = _constant(cursor)
    if value is None:
        raise cursor.error("expected a number", start)
    return value


def _constant(cursor: Cursor, level: int = 0) -> Scalar | None:
    left = _signed(cursor)
    operators = (("+", "-", "*", "/"), ("*", "/"))
    while left is not None and (operator := cursor.accept(*operators[min(level, 1)])):
        cursor.count_operator()
        right = _constant(cursor, 1) if operator in ("+", "-") else _signed(cursor)
        left = combined(operator, left, right)
    return left


def _signed(cursor: Cursor) -> Scalar | None:
    if cursor.accept("-"):
        cursor.count_operator()
        with cursor.deeper():
            value = _signed(cursor)
        return None if value is None else type(value)(-value)
    if cursor.accept("("):
        with cursor.deeper():
            value = _constant(cursor)
        cursor.expect(")")
        return value
    token = cursor.token
    if token.kind != "number":
        raise cursor.error("expected a number")
    cursor.take()
    return token.value  # type: ignore[return-value]


def _hints(cursor: Cursor) -> tuple[tuple[str, object], ...]:
    """``with(name=value, …)``: accepted, whatever they are, as none of them changes what is right."""
    hints: list[tuple[str, object]] = []
    cursor.expect("(")
    while True:
        token = cursor.take()
        if token.kind != "word":
            raise cursor.error("expected the name of a hint", token)
        cursor.expect("=")
        value = parse_expression(cursor, 6)
        if not isinstance(value, Literal):
            raise cursor.error("expected a value")
        hints.append((token.text, value.value))
        if not cursor.accept(","):
            break
    cursor.expect(")")
    return tuple(hints)
