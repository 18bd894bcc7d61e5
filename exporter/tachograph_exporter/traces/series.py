"""Series of a metrics query: values by time step, labelled by what the spans are grouped by; and their rankings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from tachograph.histogram import ExponentialHistogram
from tachograph_exporter.traces.traceql.syntax import Ranking, ValueFilter

MAX_SERIES: Final = 1_000
"""Series of one answer at most, as in Tempo."""

Labels: TypeAlias = tuple[tuple[str, Any], ...]
"""Names and values; the value None is shown as ``nil``."""


class Exemplar(NamedTuple):
    """A span behind a value. ``value`` is None where the series has it: the value of its step."""

    trace_id: str
    span_id: str
    name: str
    time_ns: int
    value: float | None


class Series(NamedTuple):
    """Values by step. ``exemplars`` are by time."""

    labels: Labels
    values: Mapping[int, float]
    exemplars: Sequence[Exemplar] = ()


class Count:
    """How many spans."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def add(self, _value: float) -> None:
        """Count one."""
        self._count += 1

    def value(self) -> float:
        """The result."""
        return float(self._count)


class Sum:
    """The sum of values, or their average."""

    __slots__ = ("_count", "_is_average", "_total")

    def __init__(self, *, is_average: bool = False) -> None:
        self._total = 0.0
        self._count = 0
        self._is_average = is_average

    def add(self, value: float) -> None:
        """Add one."""
        self._total += value
        self._count += 1

    def value(self) -> float:
        """The result."""
        return self._total / self._count if self._is_average else self._total


class Extreme:
    """The least or the greatest of values."""

    __slots__ = ("_choose", "_value")

    def __init__(self, choose: Callable[[float, float], float]) -> None:
        self._choose = choose
        self._value: float | None = None

    def add(self, value: float) -> None:
        """Consider one."""
        self._value = value if self._value is None else self._choose(self._value, value)

    def value(self) -> float:
        """The result."""
        return math.nan if self._value is None else self._value


Accumulator: TypeAlias = Count | Sum | Extreme
ACCUMULATORS: Final[dict[str, Callable[[], Accumulator]]] = {
    "rate": Count,
    "count_over_time": Count,
    "histogram_over_time": Count,
    "sum_over_time": Sum,
    "avg_over_time": lambda: Sum(is_average=True),
    "min_over_time": lambda: Extreme(min),
    "max_over_time": lambda: Extreme(max),
}
"""What becomes of the values of a step, by function; ``quantile_over_time`` has histograms."""


def quantiles(histograms: Mapping[int, ExponentialHistogram], quantile: float) -> dict[int, float]:
    """A quantile by step."""
    values = {step: histogram.quantile(quantile) for step, histogram in histograms.items()}
    return {step: value for step, value in values.items() if value is not None}


def bucket(value: float) -> float | None:
    """The bucket of a histogram over time: the power of two at or above a value; None for 0 and below."""
    if value <= 0 or not math.isfinite(value):
        return None
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def staged(series: Iterable[Series], stages: Sequence[Ranking | ValueFilter]) -> list[Series]:
    """The series after `topk`, `bottomk` and comparisons."""
    current = list(series)
    for each in stages:
        current = _ranked(current, each) if isinstance(each, Ranking) else _filtered(current, each)
    return current


def _ranked(series: Sequence[Series], ranking: Ranking) -> list[Series]:
    """Of every step, the values of the first series in the order of their values; labels decide between equal ones."""
    if len(series) <= ranking.limit:
        return list(series)
    sign = -1 if ranking.function == "topk" else 1
    ordered = sorted(range(len(series)), key=lambda i: repr(series[i].labels))
    kept: dict[int, dict[int, float]] = {}
    for step in sorted({step for each in series for step in each.values}):
        here = [i for i in ordered if step in series[i].values]
        here.sort(key=lambda i: sign * series[i].values[step])
        for i in here[: ranking.limit]:
            kept.setdefault(i, {})[step] = series[i].values[step]
    return [series[i]._replace(values=values) for i, values in sorted(kept.items())]


def _filtered(series: Sequence[Series], condition: ValueFilter) -> list[Series]:
    compare = _COMPARE[condition.operator]
    kept = []
    for each in series:
        values = {step: value for step, value in each.values.items() if compare(value, condition.value)}
        if values:
            exemplars = [e for e in each.exemplars if e.value is None or compare(e.value, condition.value)]
            kept.append(each._replace(values=values, exemplars=exemplars))
    return kept


_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "=": lambda a, b: a == b, "!=": lambda a, b: a != b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
}  # fmt: skip
