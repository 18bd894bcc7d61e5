"""The tree of a TraceQL query.

`text_of` writes an expression as Tempo does; Grafana shows it as the name of a column or of a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from tachograph_exporter.traces.traceql.lexer import Duration

Scalar: TypeAlias = int | float
COMPARISONS: Final = ("=", "!=", ">", ">=", "<", "<=")


class Status(str):
    """``error``, ``ok`` or ``unset``."""

    __slots__ = ()


class Kind(str):
    """The kind of a span, as ``server``."""

    __slots__ = ()


class Literal(NamedTuple):
    """A value; None is ``nil``."""

    value: str | int | float | bool | None


class Attribute(NamedTuple):
    """An attribute. ``scope`` is empty for the first of span, resource, event, link, instrumentation that has it."""

    scope: str
    name: str


class Intrinsic(NamedTuple):
    """What is known of a span beside its attributes, by the name that Tempo gives a column of it."""

    name: str


Field: TypeAlias = Attribute | Intrinsic


class Unary(NamedTuple):
    """``-x``, ``!x``, or whether x is there (``exists``, ``absent``)."""

    operator: str
    operand: Expression


class Binary(NamedTuple):
    """Arithmetic, comparison, ``&&`` or ``||`` inside a spanset's braces."""

    operator: str
    left: Expression
    right: Expression


Expression: TypeAlias = Literal | Attribute | Intrinsic | Unary | Binary


class Filter(NamedTuple):
    """``{ … }``: the spans for which an expression is true."""

    condition: Expression


class Relation(NamedTuple):
    """Spansets combined: ``&&``, ``||``, or by structure (``>>``, ``!~``, ``&<`` …)."""

    operator: str
    left: Stage
    right: Stage


class Aggregate(NamedTuple):
    """``count()`` (``of`` is None), or ``min``, ``max``, ``avg`` or ``sum`` of an expression."""

    function: str
    of: Expression | None


class ScalarFilter(NamedTuple):
    """``count() > 2``: the spansets whose aggregate compares with a number."""

    aggregate: Aggregate
    operator: str
    value: Scalar


class GroupBy(NamedTuple):
    """``by(…)``: a spanset for each value of an expression."""

    expression: Expression


class Coalesce(NamedTuple):
    """``coalesce()``: one spanset of all."""


class Select(NamedTuple):
    """``select(…)``: fields to return with each span."""

    fields: tuple[Field, ...]


class Pipeline(NamedTuple):
    """Stages, each working on the spansets of the one before."""

    stages: tuple[Stage, ...]


Stage: TypeAlias = Filter | Relation | ScalarFilter | GroupBy | Coalesce | Select | Pipeline


class OverTime(NamedTuple):
    """``rate()``, ``count_over_time()``, ``quantile_over_time(duration, 0.9)`` …, ``by (…)``."""

    function: str
    of: Field | None
    quantiles: tuple[float, ...]
    by: tuple[Field, ...]


class Compare(NamedTuple):
    """``compare({ … }, top, start, end)``: how often each value occurs among spans in and outside a selection.

    ``start`` and ``end`` (unix nanoseconds, or 0): when spans of the selection started.
    """

    selection: Filter
    top: int
    start_ns: int
    end_ns: int


class Ranking(NamedTuple):
    """``topk(n)`` or ``bottomk(n)`` of the series, at each time."""

    function: str
    limit: int


class ValueFilter(NamedTuple):
    """``> 5``: the values of the series that compare with a number."""

    operator: str
    value: float


class Metrics(NamedTuple):
    """What is computed of the spans, and of the series after that."""

    function: OverTime | Compare
    stages: tuple[Ranking | ValueFilter, ...]


class Query(NamedTuple):
    """A whole query. ``metrics`` is None for a search."""

    pipeline: Pipeline
    metrics: Metrics | None
    hints: tuple[tuple[str, object], ...] = ()


EVERYTHING: Final = Query(Pipeline((Filter(Literal(True)),)), None)
"""The query ``{}``."""


def fields_of(expression: Expression) -> Iterator[Field]:
    """The fields that an expression reads."""
    if isinstance(expression, Attribute | Intrinsic):
        yield expression
    elif isinstance(expression, Unary):
        yield from fields_of(expression.operand)
    elif isinstance(expression, Binary):
        yield from fields_of(expression.left)
        yield from fields_of(expression.right)


def expressions_of(stage: Stage) -> Iterator[Expression]:
    """The expressions that a stage reads."""
    if isinstance(stage, Filter):
        yield stage.condition
    elif isinstance(stage, Relation):
        yield from expressions_of(stage.left)
        yield from expressions_of(stage.right)
    elif isinstance(stage, ScalarFilter):
        if stage.aggregate.of is not None:
            yield stage.aggregate.of
    elif isinstance(stage, GroupBy):
        yield stage.expression
    elif isinstance(stage, Select):
        yield from stage.fields
    elif isinstance(stage, Pipeline):
        for inner in stage.stages:
            yield from expressions_of(inner)


def text_of(node: Expression | Aggregate | GroupBy) -> str:
    """An expression, written as Tempo writes it."""
    if isinstance(node, Aggregate):
        return f"{node.function}({text_of(node.of) if node.of is not None else ''})"
    if isinstance(node, GroupBy):
        return f"by({text_of(node.expression)})"
    if isinstance(node, Intrinsic):
        return node.name
    if isinstance(node, Attribute):
        name = node.name
        if any(character in '{}()=~!<>&|^,"' or character.isspace() for character in name):
            name = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{node.scope}.{name}"
    if isinstance(node, Unary):
        if node.operator in ("exists", "absent"):
            return f"{_wrapped(node.operand)} {'!=' if node.operator == 'exists' else '='} nil"
        return node.operator + _wrapped(node.operand)
    if isinstance(node, Binary):
        return f"{_wrapped(node.left)} {node.operator} {_wrapped(node.right)}"
    return literal_text(node.value)


def _wrapped(node: Expression) -> str:
    return text_of(node) if isinstance(node, Literal | Attribute | Intrinsic) else f"({text_of(node)})"


def literal_text(value: object) -> str:
    """A literal, as it is written in a query."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Duration):
        return duration_text(value)
    if isinstance(value, str) and not isinstance(value, Status | Kind):
        return f"`{value}`"
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration_text(nanoseconds: int) -> str:
    """A duration as Go writes it: ``1h2m3.5s``, ``250ms``."""
    if nanoseconds == 0:
        return "0s"
    sign, left = ("-" if nanoseconds < 0 else ""), abs(nanoseconds)
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 10**6)):
        if left < size * 1000:
            return f"{sign}{_decimal(left, size)}{unit}"
    minutes, rest = divmod(left, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 10**9)}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def _decimal(amount: int, size: int) -> str:
    whole, rest = divmod(amount, size)
    digits = len(str(size)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".") if digits else str(whole)
