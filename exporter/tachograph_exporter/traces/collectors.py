"""What a metrics query counts: spans go in, series come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from tachograph.histogram import ExponentialHistogram
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.traces.series import (
    ACCUMULATORS,
    MAX_SERIES,
    Accumulator,
    Exemplar,
    Labels,
    Series,
    bucket,
    quantiles,
)
from tachograph_exporter.traces.time_steps import NS, TimeSteps
from tachograph_exporter.traces.traceql.expressions import condition
from tachograph_exporter.traces.traceql.fields import SERVICE, Getter, TraceView, first, getter_of
from tachograph_exporter.traces.traceql.lexer import Duration
from tachograph_exporter.traces.traceql.pipelines import key_of
from tachograph_exporter.traces.traceql.syntax import Compare, Field, Intrinsic, OverTime, text_of

MAX_GROUPS: Final = 10 * MAX_SERIES
"""Groups that are counted; spans of further ones are left out."""
MAX_VALUES: Final = 2_000
"""Values of one attribute that `compare` counts, in the selection and outside; further ones are left out."""
_ZERO_FILLED: Final = ("rate", "count_over_time", "histogram_over_time")
_META: Final = "__meta_type"
_TEXTS: Final = tuple(Intrinsic(name) for name in ("name", "status", "kind", "rootName", "rootServiceName"))


class Collector(Protocol):
    """Takes spans and makes series of them. ``is_partial``: whether it left something out to stay within bounds."""

    is_partial: bool

    def add(self, span: SpanRecord, view: TraceView) -> None:
        """Count a span."""

    def series(self) -> list[Series]:
        """The series of the spans counted so far."""


def collector(function: OverTime | Compare, steps: TimeSteps, exemplars: int) -> Collector:
    """The collector of a query's function. ``exemplars``: how many to keep at most."""
    if isinstance(function, Compare):
        return _Comparison(function, steps)
    if function.function == "quantile_over_time":
        return _Quantiles(function, steps, exemplars)
    return _OverTime(function, steps, exemplars)


def number_of(field: Field) -> Callable[[SpanRecord, TraceView], float | None]:
    """The function that reads a field as a number; durations in seconds."""
    get = getter_of(field)

    def number(span: SpanRecord, view: TraceView) -> float | None:
        value = first(get(span, view))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, Duration):
            return value / NS
        return float(value) if math.isfinite(value) else None

    return number


class _Groups:
    """Spans by the values of fields. A label is left out where there is no value, but one label always stays."""

    def __init__(self, by: tuple[Field, ...]) -> None:
        self._names = [text_of(field) for field in by]
        self._getters = [getter_of(field) for field in by]
        self._values: dict[Any, list[Any]] = {}
        # Values of these are always texts: they can be told apart as they are.
        self._is_text = all(field == SERVICE or field in _TEXTS for field in by)

    def key(self, span: SpanRecord, view: TraceView) -> Any:
        """What the span belongs to, or None if there are too many groups."""
        if self._is_text:
            values = [get(span, view) for get in self._getters]
            key: Any = tuple(values)
        else:
            values = [first(get(span, view)) for get in self._getters]
            key = tuple(map(key_of, values))
        if key not in self._values:
            if len(self._values) >= MAX_GROUPS:
                return None
            self._values[key] = values
        return key

    def labels(self, key: Any) -> Labels:
        """The labels of a group that have values."""
        values = self._values.get(key, ())
        return tuple((name, value) for name, value in zip(self._names, values, strict=False) if value is not None)

    def all_labels(self, key: Any, function: str) -> Labels:
        """The labels of a group: at least one."""
        labels = self.labels(key)
        if labels:
            return labels
        return ((self._names[0], None),) if self._names else (("__name__", function),)


class _Exemplars:
    """At most one span of each group and step."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._by_group: dict[Any, dict[int, Exemplar]] = {}

    def offer(self, key: Any, step: int, span: SpanRecord, value: float | None) -> None:
        """Keep the span if its group has none in the step."""
        if self._left > 0 and step not in self._by_group.get(key, {}):
            exemplar = Exemplar(span.trace_id, span.span_id, span.name, span.start_ns, value)
            self._by_group.setdefault(key, {})[step] = exemplar
            self._left -= 1

    def of(self, key: Any) -> list[Exemplar]:
        """The group's, by time."""
        return sorted(self._by_group.get(key, {}).values(), key=lambda exemplar: exemplar.time_ns)


class _OverTime:
    """``rate()``, ``count_over_time()``, and the sum, average, extremes and buckets of a field."""

    def __init__(self, function: OverTime, steps: TimeSteps, exemplars: int) -> None:
        self._name = function.function
        self._steps = steps
        self._groups = _Groups(function.by)
        self._is_histogram = self._name == "histogram_over_time"
        self._of = number_of(function.of) if function.of is not None else None
        self._is_duration = function.of in (Intrinsic("duration"), Intrinsic("traceDuration"))
        self._accumulator = ACCUMULATORS[self._name]
        self._cells: dict[Any, dict[int, Accumulator]] = {}
        self._exemplars = _Exemplars(exemplars)
        self.is_partial = False
        if not function.by and self._name in ("rate", "count_over_time"):
            self._cells[((), None)] = {}

    def add(self, span: SpanRecord, view: TraceView) -> None:
        """Count a span."""
        step = self._steps.index(span.start_ns)
        value = self._of(span, view) if self._of is not None else 0.0
        if step is None or value is None:
            return
        key = self._groups.key(span, view)
        edge = self._bucket(value) if self._is_histogram else None
        if key is None or (self._is_histogram and edge is None):
            self.is_partial = self.is_partial or key is None
            return
        cells = self._cells.setdefault((key, edge), {})
        cell = cells.get(step)
        if cell is None:
            cell = cells[step] = self._accumulator()
        cell.add(value)
        shown = value if self._of is not None and not self._is_histogram else None
        self._exemplars.offer((key, edge), step, span, shown)

    def _bucket(self, value: float) -> float | None:
        # Tempo's buckets of durations are powers of two of nanoseconds, in seconds.
        if not self._is_duration:
            return bucket(value)
        edge = bucket(round(value * NS))
        return edge / NS if edge is not None else None

    def series(self) -> list[Series]:
        """The series of the spans counted so far."""
        factor = NS / self._steps.step_ns if self._name == "rate" else 1.0
        made = []
        for (key, edge), cells in self._cells.items():
            values = {step: cell.value() * factor for step, cell in cells.items()}
            if self._name in _ZERO_FILLED:
                values = {step: values.get(step, 0.0) for step in range(self._steps.count)}
            if self._is_histogram:
                labels = (*self._groups.labels(key), ("__bucket", edge))
            else:
                labels = self._groups.all_labels(key, self._name)
            made.append(Series(labels, values, self._exemplars.of((key, edge))))
        return made


class _Quantiles:
    """``quantile_over_time()``: from histograms, with the relative error that they state."""

    def __init__(self, function: OverTime, steps: TimeSteps, exemplars: int) -> None:
        assert function.of is not None  # noqa: S101
        self._steps = steps
        self._groups = _Groups(function.by)
        self._of = number_of(function.of)
        self._quantiles = function.quantiles
        self._cells: dict[Any, dict[int, ExponentialHistogram]] = {}
        self._exemplars = _Exemplars(exemplars)
        self.is_partial = False

    def add(self, span: SpanRecord, view: TraceView) -> None:
        """Count a span."""
        step = self._steps.index(span.start_ns)
        value = self._of(span, view)
        if step is None or value is None:
            return
        key = self._groups.key(span, view)
        if key is None:
            self.is_partial = True
            return
        cells = self._cells.setdefault(key, {})
        if step not in cells:
            cells[step] = ExponentialHistogram()
        cells[step].observe(value)
        self._exemplars.offer(key, step, span, value)

    def series(self) -> list[Series]:
        """The series of the spans counted so far. As in Tempo, a quantile of no spans is 0."""
        made = []
        for key, histograms in self._cells.items():
            for index, quantile in enumerate(self._quantiles):
                values = quantiles(histograms, quantile)
                values = {step: values.get(step, 0.0) for step in range(self._steps.count)}
                exemplars = self._exemplars.of(key) if index == 0 else []
                made.append(Series((*self._groups.labels(key), ("p", quantile)), values, exemplars))
        return made


class _Comparison:
    """``compare()``: how often each value of each attribute occurs in a selection of the spans, and in the others.

    Series have the label ``__meta_type``: ``selection`` or ``baseline`` with the values, and their ``…_total``.
    """

    def __init__(self, function: Compare, steps: TimeSteps) -> None:
        self._steps = steps
        self._top = function.top
        self._from, self._to = function.start_ns, function.end_ns
        self._is_selected = condition(function.selection.condition)
        self._counts: dict[str, dict[str, dict[Any, tuple[Any, dict[int, int]]]]] = {"baseline": {}, "selection": {}}
        self.is_partial = False

    def add(self, span: SpanRecord, view: TraceView) -> None:
        """Count a span."""
        step = self._steps.index(span.start_ns)
        if step is None:
            return
        in_time = not self._to or self._from < span.start_ns <= self._to
        side = self._counts["selection" if in_time and self._is_selected(span, view) else "baseline"]
        for name, value in _compared(span, view):
            counts = side.setdefault(name, {})
            for label, key in ((value, key_of(value)), (None, None)):
                if key not in counts:
                    if len(counts) > MAX_VALUES:
                        self.is_partial = True
                        continue
                    counts[key] = (label, {})
                by_step = counts[key][1]
                by_step[step] = by_step.get(step, 0) + 1

    def series(self) -> list[Series]:
        """The series of the spans counted so far: of each attribute the most frequent values."""
        made = []
        for side, attributes in self._counts.items():
            for name, counts in attributes.items():
                total = counts[None][1]
                values = [(value, by_step) for key, (value, by_step) in counts.items() if key is not None]
                values.sort(key=lambda item: (-sum(item[1].values()), repr(item[0])))
                for value, by_step in values[: self._top]:
                    made.append(self._series(side, name, value, by_step))
                made.append(self._series(f"{side}_total", name, None, total))
        return made

    def _series(self, kind: str, name: str, value: Any, by_step: dict[int, int]) -> Series:
        counts = {step: float(by_step.get(step, 0)) for step in range(self._steps.count)}
        return Series(((_META, kind), (name, value)), counts)


_COMPARED: Final[list[tuple[str, Getter]]] = [
    (name, getter_of(Intrinsic(name)))
    for name in ("name", "status", "kind", "statusMessage", "rootName", "rootServiceName", "instrumentation:name")
]


def _compared(span: SpanRecord, view: TraceView) -> Iterator[tuple[str, Any]]:
    """Everything by which spans are compared: intrinsics but ids and durations, and attributes with one value."""
    for name, get in _COMPARED:
        value = get(span, view)
        if value != "":
            yield name, value
    for scope, attributes in (("span.", span.attributes), ("resource.", span.resource_attributes)):
        for name, value in attributes.items():
            if isinstance(value, str | bool | int | float):
                yield scope + name, value
