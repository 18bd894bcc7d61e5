"""Stored series as children of metric families, within the limits on label sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tachograph.clock import NS
from tachograph.distribution import Distribution, quotient
from tachograph.histogram import ExponentialHistogram
from tachograph.metrics.children import Child, CounterChild, GaugeChild, HistogramChild
from tachograph.metrics.families import CounterFamily, Family, GaugeFamily, HistogramFamily, label_value
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import METRICS
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.series.values import KINDS, LATEST, MEASURE, SEPARATOR, STARTED, Code, Series, Value


class ShownValue(NamedTuple):
    """What ``/metrics`` shows of a series. ``values``: how many, of a histogram. ``total``: their sum, or the value."""

    values: int | None
    total: float


class ShownMetrics(NamedTuple):
    """What ``/metrics`` of this service shows of a workflow: series by step and code, and gauges by metric."""

    series: Mapping[tuple[str, Code], ShownValue]
    gauges: Mapping[str, float | None]


class SeriesKey(NamedTuple):
    """Which series: of a step (or of executions, ""), by its code."""

    workflow: Key
    step: str
    code: Code


class _Shown:
    """A series and its child.

    Attributes:
        before: what a child that several series share has got from this one so far.
        is_back: it had expired, and is shown as it was then until that has been seen: as a new one is shown as zero.
    """

    __slots__ = ("before", "child", "is_back", "is_shared", "scale", "series")

    def __init__(self, series: Series, child: Child, scale: int, *, is_shared: bool) -> None:
        self.series = series
        self.child = child
        self.scale = scale
        self.is_shared = is_shared
        self.before: Value | None = None
        self.is_back = False


class ShownSeries:
    """The families of ``registry``, and the children that show stored series.

    Args:
        measures: names of step measures that are shown.
    """

    def __init__(self, registry: SeriesRegistry, measures: Iterable[str] = ()) -> None:
        self.registry = registry
        self.families: dict[str, Family] = {spec.name: registry.family(spec) for spec in METRICS}
        self.measures = frozenset(measures)
        self._shown: dict[SeriesKey, _Shown] = {}
        self._owners: dict[Child, SeriesKey] = {}
        # As they were when label sets last expired; those that did not expire are among them.
        self._earlier: dict[SeriesKey, _Shown] = {}
        self._generation = registry.generation

    def __iter__(self) -> Iterator[SeriesKey]:
        return iter(self._shown)

    def show(self, key: SeriesKey, series: Series, name: tuple[str, str]) -> None:
        """Show a series as it is now: its value if it is born, else zero. ``name``: workspace and workflow."""
        if self._generation != self.registry.generation:
            # Label sets expired. Those of series that change now come back, with all they ever counted.
            self._generation = self.registry.generation
            self._earlier |= self._shown
            self._shown.clear()
            self._owners.clear()
        shown = self._shown.get(key)
        if shown is None:
            shown = self._bind(key, series, name)
            if shown is None:
                return
        elif key.code in LATEST and not series.value:
            self.remove([key])  # Its only one was taken back.
            return
        elif shown.series is not series:
            if shown.is_shared and shown.series.created < series.created:
                shown.before = None  # Its workflow was deleted and is back.
            shown.series = series
        if shown.is_shared and key.code == STARTED:
            return  # With those that run, see `show_started`.
        # A gauge says what is now: it has no increase that a zero would have to come before.
        if (series.born and not shown.is_back) or isinstance(shown.child, GaugeChild):
            _show_shared(shown) if shown.is_shared else _show(shown.child, series, shown.scale)

    def _bind(self, key: SeriesKey, series: Series, name: tuple[str, str]) -> _Shown | None:
        short, *rest = key.code.split(SEPARATOR)
        kind = KINDS[short]
        if short == MEASURE and rest[0] not in self.measures:
            return None
        if short in LATEST and not series.value:
            return None
        labels = (*name, *((key.step,) if kind.of_step else ()), *rest)
        child = child_of(self.families[kind.spec.name], labels)
        is_shared = self._owners.setdefault(child, key) != key or child.labels != tuple(map(label_value, labels))
        if not is_shared:
            child.created = series.created
        shown = self._shown[key] = _Shown(series, child, kind.scale, is_shared=is_shared)
        earlier = self._earlier.pop(key, None)
        if earlier is not None and earlier.series.created == series.created:
            if earlier.child is child:
                shown.before, shown.is_back = earlier.before, earlier.is_back
            elif series.born and not is_shared and not earlier.is_shared:
                _copy(earlier.child, child)
                shown.is_back = True
        return shown

    def is_back(self, key: SeriesKey) -> bool:
        """Whether a series is shown again as it was when it expired."""
        shown = self._shown.get(key)
        return shown is not None and shown.is_back

    def seen(self, key: SeriesKey) -> None:
        """What is shown of a new series, or of one that is back, has been seen."""
        if (shown := self._shown.get(key)) is not None:
            shown.is_back = False

    def child(self, key: SeriesKey) -> Child | None:
        """The child that shows a series."""
        shown = self._shown.get(key)
        return shown.child if shown is not None else None

    def show_started(self, key: SeriesKey, uncounted: int) -> None:
        """Show how many executions have started: those that are stored, and those that are not counted yet.

        It never becomes smaller.
        """
        shown = self._shown.get(key)
        if shown is None or shown.is_back or not shown.series.born:
            return
        child, value = shown.child, shown.series.value
        assert isinstance(child, CounterChild)  # noqa: S101
        assert isinstance(value, int)  # noqa: S101
        value += uncounted
        before = shown.before if isinstance(shown.before, int) else 0
        if shown.is_shared and value > before:
            shown.before = value
            with child.lock:
                child.value += quotient(value - before, 1)
                child.is_changed = True
        elif not shown.is_shared and value > child.value:
            with child.lock:
                child.value = quotient(value, 1)
                child.is_changed = True

    def is_shared(self, key: SeriesKey) -> bool:
        """Whether the child of a series shows others, too."""
        shown = self._shown.get(key)
        return shown is not None and shown.is_shared

    def is_older(self, key: SeriesKey, series: Series) -> bool:
        """Whether what is shown counts since an earlier time than a stored series, so it is another one."""
        shown = self._shown[key]
        return not shown.is_shared and shown.child.created < series.created

    def remove(self, keys: Iterable[SeriesKey]) -> None:
        """Show these series no longer. What they added to a child that they share stays: it must not become smaller."""
        for key in keys:
            shown = self._shown.pop(key)
            if self._owners.get(shown.child) == key:
                del self._owners[shown.child]
                if not shown.is_shared:
                    self.families[shown.child.metric].remove(*shown.child.labels)


def child_of(family: Family, labels: tuple[str, ...]) -> Child:
    """The child with these labels, or that of all label sets beyond the limit."""
    if isinstance(family, CounterFamily | GaugeFamily | HistogramFamily):
        return family.labels(*labels)
    raise TypeError(f"{family.name} has no children")


def _show(child: Child, series: Series, scale: int) -> None:
    value = series.value
    with child.lock:
        if isinstance(child, HistogramChild):
            assert isinstance(value, Distribution)  # noqa: S101
            _fill(child, value)
            if series.exemplars:
                exemplars = child.exemplars or [None] * len(child.counts)
                for index, (value_ns, trace_id, span_id, time_ns) in series.exemplars.items():
                    exemplars[index] = (value_ns / NS, (trace_id, span_id, time_ns))
                child.exemplars = exemplars
        elif isinstance(child, CounterChild | GaugeChild):
            assert isinstance(value, int)  # noqa: S101
            exact = quotient(value, scale)
            child.value = max(child.value, exact) if isinstance(child, CounterChild) else exact
        child.is_changed = True


def _copy(expired: Child, child: Child) -> None:
    """Show what a label set showed before it expired."""
    with child.lock:
        if isinstance(child, HistogramChild) and isinstance(expired, HistogramChild):
            child.counts, child.total, child.native = expired.counts, expired.total, expired.native
            child.exemplars = expired.exemplars
        elif isinstance(child, CounterChild) and isinstance(expired, CounterChild):
            child.value = expired.value
        child.is_changed = True


def _fill(child: HistogramChild, values: Distribution) -> None:
    counts = [0] * len(child.counts)
    for index, count in values.classic.items():
        counts[index] = count
    child.counts, child.total = counts, values.sum
    native = ExponentialHistogram(schema=values.native.schema)
    native.count, native.zero_count = values.native.count, values.native.zero_count
    native.positive, native.negative = dict(values.native.positive), dict(values.native.negative)
    child.native = native


def _show_shared(shown: _Shown) -> None:
    """Add what a series has grown by to the child that it shares; a gauge, which is a time, shows the latest."""
    child, value = shown.child, shown.series.value
    with child.lock:
        if isinstance(child, HistogramChild):
            assert isinstance(value, Distribution)  # noqa: S101
            grown = value.copy()
            if isinstance(shown.before, Distribution):
                grown.add(shown.before, -1)
            shown.before = value.copy()
            whole = _distribution(child, grown)
            whole.add(grown)
            total = child.total + grown.sum
            _fill(child, whole)
            child.total = total
        elif isinstance(child, GaugeChild):
            assert isinstance(value, int)  # noqa: S101
            child.value = max(child.value, quotient(value, shown.scale))
        elif isinstance(child, CounterChild):
            assert isinstance(value, int)  # noqa: S101
            before = shown.before if isinstance(shown.before, int) else 0
            child.value += quotient(value - before, shown.scale)
            shown.before = value
        child.is_changed = True


def _distribution(child: HistogramChild, like: Distribution) -> Distribution:
    whole = Distribution(like.total)
    whole.native = child.native.copy()
    whole.classic = {index: count for index, count in enumerate(child.counts) if count}
    return whole
