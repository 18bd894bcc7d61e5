"""The stages of a query that make metrics: ``| rate() by (…) | topk(5) > 0``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tachograph_exporter.traces.traceql.cursor import Cursor
from tachograph_exporter.traces.traceql.expression_parser import parse_field, parse_fields
from tachograph_exporter.traces.traceql.lexer import Duration, Token
from tachograph_exporter.traces.traceql.syntax import (
    COMPARISONS,
    Compare,
    Field,
    Filter,
    Metrics,
    OverTime,
    Ranking,
    ValueFilter,
)
from tachograph_exporter.traces.traceql.types import ANY, NUMBER, type_of

_COUNTS: Final = ("rate", "count_over_time")
_VALUES: Final = ("min_over_time", "max_over_time", "sum_over_time", "avg_over_time", "histogram_over_time")
METRICS_FUNCTIONS: Final = (*_COUNTS, *_VALUES, "quantile_over_time", "compare")
MAX_GROUPS: Final = 5
"""Fields of a ``by()``; one less where the bucket is another."""
MAX_QUANTILES: Final = 20
MAX_TOP: Final = 1000
_TOP: Final = 10


def parse_metrics(cursor: Cursor, parse_filter: Callable[[Cursor], Filter]) -> Metrics:
    """The function and the stages after it. The cursor is at the function's name."""
    token = cursor.take()
    function = _compare(cursor, parse_filter) if token.text == "compare" else _over_time(cursor, token)
    stages: list[Ranking | ValueFilter] = []
    while True:
        at = cursor.token
        if operator := cursor.accept(*COMPARISONS):
            stages.append(ValueFilter(operator, _number(cursor)))
        elif cursor.accept("|"):
            stages.append(_ranking(cursor))
        else:
            return Metrics(function, tuple(stages))
        cursor.count_operator()
        if isinstance(function, Compare):
            raise cursor.error("compare() is the last stage; expected the end", at)


def _over_time(cursor: Cursor, token: Token) -> OverTime:
    function = token.text
    of: Field | None = None
    quantiles: list[float] = []
    cursor.expect("(")
    if function not in _COUNTS:
        start = cursor.token
        of = parse_field(cursor)
        if type_of(of) not in (NUMBER, ANY):
            raise cursor.error(f"{function}() needs a number", start)
    if function == "quantile_over_time":
        while cursor.accept(","):
            start = cursor.token
            quantile = _number(cursor)
            if not 0 <= quantile <= 1:
                raise cursor.error("expected a quantile from 0 to 1", start)
            quantiles.append(quantile)
        if not 0 < len(quantiles) <= MAX_QUANTILES:
            raise cursor.error(f"expected up to {MAX_QUANTILES} quantiles, as `, 0.9`")
    cursor.expect(")")
    by: tuple[Field, ...] = ()
    start = cursor.token
    if cursor.accept("by"):
        by = parse_fields(cursor)
        limit = MAX_GROUPS - (function in ("quantile_over_time", "histogram_over_time"))
        if len(by) > limit:
            raise cursor.error(f"{function}() by more than {limit} fields is not supported; expected fewer", start)
    return OverTime(function, of, tuple(quantiles), by)


def _compare(cursor: Cursor, parse_filter: Callable[[Cursor], Filter]) -> Compare:
    cursor.expect("(")
    selection = parse_filter(cursor)
    numbers: list[int] = []
    start = cursor.token
    while cursor.accept(","):
        number = cursor.token
        if type(number.value) is not int:
            raise cursor.error("expected a whole number")
        cursor.take()
        numbers.append(number.value)
    if len(numbers) not in (0, 1, 3):
        raise cursor.error("expected compare({ … }), with a number of values, with a start and an end", start)
    cursor.expect(")")
    top, start_ns, end_ns = (*numbers, *(_TOP, 0, 0)[len(numbers) :])
    if not 0 < top <= MAX_TOP:
        raise cursor.error(f"expected a number of values from 1 to {MAX_TOP}", start)
    if numbers[1:] and not 0 < start_ns < end_ns:
        raise cursor.error("expected a start and a later end in unix nanoseconds", start)
    return Compare(selection, top, start_ns, end_ns)


def _ranking(cursor: Cursor) -> Ranking:
    function = cursor.accept("topk", "bottomk")
    if function is None:
        raise cursor.error("expected topk() or bottomk()")
    cursor.expect("(")
    number = cursor.token
    if type(number.value) is not int or number.value < 1:
        raise cursor.error("expected a whole number above 0")
    cursor.take()
    cursor.expect(")")
    return Ranking(function, number.value)


def _number(cursor: Cursor) -> float:
    """A number. Durations are seconds, as those of metrics are."""
    sign = -1.0 if cursor.accept("-") else 1.0
    value = cursor.token.value
    if cursor.token.kind != "number" or not isinstance(value, int | float):
        raise cursor.error("expected a number")
    cursor.take()
    return sign * (value / 1e9 if isinstance(value, Duration) else float(value))
