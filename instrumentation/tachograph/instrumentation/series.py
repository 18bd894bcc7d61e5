"""Metric families made to be written often and rendered fast: counters, gauges, and histograms with both faces.

A histogram keeps classic buckets, native (exponential) buckets and the newest exemplar of every classic bucket. Each
label set keeps its rendered text; writing to it only marks it as changed, so a scrape renders what has changed since
the last one and copies the rest. Threads may write while a scrape reads: a label set is read under its own lock, so its
count, sum and buckets belong together.

`SeriesRegistry` is a prometheus_client collector. Registered there, its families come out of prometheus_client's own
exposition like any other; `tachograph.instrumentation.exposition` recognises them and takes the fast way.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, TypeAlias, TypeVar

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from tachograph.histogram import ExponentialHistogram

FAMILY_LIMIT: Final = 10_000
"""Label sets of one metric; further ones share the one in which every label says ``other``."""
TOTAL_LIMIT: Final = 100_000
VALUE_LIMIT: Final = 200
"""Characters of a label value."""
OTHER: Final = "other"

_SMALL: Final = tuple(f"{n}.0" for n in range(4096))

Trace: TypeAlias = tuple[str, str, int]
"""Where a value came from: trace id, span id, unix ns. Becomes an exemplar when it is read."""


def number(value: float) -> str:
    """A value as the exposition formats write it."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def count_text(value: int) -> str:
    """A whole number, zero or more, as the exposition formats write it: a float, with an exponent from a million on."""
    if value < 4096:
        return _SMALL[value]
    return f"{value}.0" if value < 1_000_000 else number(value)


def escape(value: str) -> str:
    """A label value as the exposition formats quote it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Child:
    """One label set. ``is_changed``: written to since it was last rendered; ``is_counted``: it takes a place in all."""

    __slots__ = (
        "changed_at", "created", "is_changed", "is_counted", "labels", "lock", "openmetrics", "text", "wire",
        "wire_labels",
    )  # fmt: skip

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.lock = threading.Lock()
        self.created = time.time()
        self.changed_at = self.created
        self.is_changed = True
        self.is_counted = True
        self.text: str | None = None
        self.openmetrics: str | None = None
        self.wire: bytes | None = None
        self.wire_labels: bytes | None = None


class CounterChild(Child):
    """A number that grows."""

    __slots__ = ("value",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        super().__init__(labels)
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add an amount, zero or more."""
        if amount < 0:
            raise ValueError("a counter only grows")
        with self.lock:
            self.value += amount
            self.is_changed = True


class GaugeChild(Child):
    """A number that goes up and down; or whatever ``source`` says when somebody looks."""

    __slots__ = ("source", "value")

    def __init__(self, labels: tuple[str, ...]) -> None:
        super().__init__(labels)
        self.value = 0.0
        self.source: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Set it."""
        with self.lock:
            self.value = value
            self.is_changed = True

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        with self.lock:
            self.value += amount
            self.is_changed = True


class HistogramChild(Child):
    """Classic and native buckets of one label set, and an exemplar for each classic one."""

    __slots__ = ("bounds", "counts", "exemplars", "native", "templates", "total")

    def __init__(self, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        super().__init__(labels)
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.native = ExponentialHistogram()
        self.exemplars: list[tuple[float, Exemplar | Trace] | None] | None = None
        self.templates: tuple[str, str] | None = None

    def observe(self, value: float, exemplar: Exemplar | Trace | None = None) -> None:
        """Count a value; ``exemplar``: what it came from. Raises `ValueError` for one that is not finite."""
        with self.lock:
            self.native.observe(value)
            index = bisect_left(self.bounds, value)
            self.counts[index] += 1
            self.total += value
            self.is_changed = True
            if exemplar is not None:
                if self.exemplars is None:
                    self.exemplars = [None] * len(self.counts)
                self.exemplars[index] = (value, exemplar)

    def exemplar(self, index: int) -> Exemplar | None:
        """The newest exemplar of a classic bucket."""
        found = self.exemplars[index] if self.exemplars is not None else None
        if found is None:
            return None
        value, exemplar = found
        if isinstance(exemplar, Exemplar):
            return exemplar
        trace_id, span_id, time_ns = exemplar
        return Exemplar({"trace_id": trace_id, "span_id": span_id}, value, time_ns // 1_000_000 / 1000)


class Family(ABC):
    """A metric: its name, meaning, label names and label sets.

    Args:
        registry: whose limits it keeps.
        name: as scraped, with unit; a counter's ends in ``_total``.
    """

    kind = ""

    def __init__(self, registry: SeriesRegistry, name: str, help: str, labels: Sequence[str] = ()) -> None:  # noqa: A002
        self.registry = registry
        self.name = name
        self.help = help
        self.label_names = tuple(labels)
        self.limited = 0
        self.version = 0
        """Grows whenever a label set comes or goes."""
        self.created_text: tuple[int, bytes] | None = None
        self._lock = threading.Lock()
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self._labelled()

    @property
    def family_name(self) -> str:
        """The name of the family: without ``_total``."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    def __len__(self) -> int:
        return len(self._children)

    def children(self) -> list[Child]:
        """All label sets, in the order they came."""
        with self._lock:
            return list(self._children.values())

    @abstractmethod
    def _make(self, labels: tuple[str, ...]) -> Child:
        """A new label set."""

    def _labelled(self, *values: str) -> Child:
        child = self._children.get(values)
        return child if child is not None else self._add(values)

    def _add(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {', '.join(self.label_names)}; {len(values)} values given")
        short = tuple(
            [value if len(value) <= VALUE_LIMIT else value[: VALUE_LIMIT - 1] + "…" for value in map(str, values)]
        )
        with self._lock:
            child = self._children.get(short)
            if child is not None:
                return child
            has_room = len(self._children) < self.registry.family_limit and self.registry.take()
            if not has_room:
                self.limited += 1
                short = (OTHER,) * len(self.label_names)
                child = self._children.get(short)
                if child is not None:
                    return child
            self.version += 1
            child = self._children[short] = self._make(short)
            child.is_counted = has_room
            return child

    def remove(self, *values: str) -> None:
        """Drop a label set; nothing happens when it is not there."""
        with self._lock:
            child = self._children.pop(values, None)
            self.version += 1
        if child is not None and child.is_counted:
            self.registry.give_back()

    def expire(self, now: float, seconds: float) -> int:
        """Drop label sets that have not changed for this long; how many.

        What changed since the last scrape counts as changed now, so this is called before one is rendered.
        """
        dropped = 0
        for child in self.children():
            if child.is_changed:
                child.changed_at = now
            elif now - child.changed_at > seconds and self.label_names:
                self.remove(*child.labels)
                dropped += 1
        return dropped

    # --- rendering --------------------------------------------------------------------------------------------------

    def prefix(self, child: Child, suffix: str = "", **more: str) -> str:
        """``name{labels}`` of a sample, labels sorted by name."""
        pairs = [*zip(self.label_names, child.labels, strict=True), *more.items()]
        if not pairs:
            return self.family_name + suffix
        inside = ",".join([f'{name}="{escape(value)}"' for name, value in sorted(pairs)])
        return f"{self.family_name}{suffix}{{{inside}}}"

    @abstractmethod
    def text_of(self, child: Child) -> str:
        """The child's lines in text format 0.0.4, without ``_created``."""

    @abstractmethod
    def openmetrics_of(self, child: Child) -> str:
        """The child's lines in OpenMetrics 1.0.0."""

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """The samples as prometheus_client would make them."""

    def _labels(self, child: Child, **more: str) -> dict[str, str]:
        return {**dict(zip(self.label_names, child.labels, strict=True)), **more}


class CounterFamily(Family):
    """A counter."""

    kind = "counter"

    def _make(self, labels: tuple[str, ...]) -> CounterChild:
        return CounterChild(labels)

    def labels(self, *values: str) -> CounterChild:
        """The label set with these values, made if it is new."""
        child = self._labelled(*values)
        assert isinstance(child, CounterChild)  # noqa: S101
        return child

    def text_of(self, child: Child) -> str:
        assert isinstance(child, CounterChild)  # noqa: S101
        return f"{self.prefix(child, '_total')} {number(child.value)}\n"

    def openmetrics_of(self, child: Child) -> str:
        return f"{self.text_of(child)}{self.prefix(child, '_created')} {number(child.created)}\n"

    def samples(self) -> Iterator[Sample]:
        for child in self.children():
            assert isinstance(child, CounterChild)  # noqa: S101
            labels = self._labels(child)
            yield Sample(self.family_name + "_total", labels, child.value)
            yield Sample(self.family_name + "_created", labels, child.created)


class GaugeFamily(Family):
    """A gauge."""

    kind = "gauge"

    def _make(self, labels: tuple[str, ...]) -> GaugeChild:
        return GaugeChild(labels)

    def labels(self, *values: str) -> GaugeChild:
        """The label set with these values, made if it is new."""
        child = self._labelled(*values)
        assert isinstance(child, GaugeChild)  # noqa: S101
        return child

    def value_of(self, child: Child) -> float:
        """What it says now."""
        assert isinstance(child, GaugeChild)  # noqa: S101
        if child.source is not None:
            child.is_changed = True  # Asked again every time.
            return float(child.source())
        return child.value

    def text_of(self, child: Child) -> str:
        return f"{self.prefix(child)} {number(self.value_of(child))}\n"

    def openmetrics_of(self, child: Child) -> str:
        return self.text_of(child)

    def samples(self) -> Iterator[Sample]:
        for child in self.children():
            yield Sample(self.name, self._labels(child), self.value_of(child))


class HistogramFamily(Family):
    """A histogram; ``buckets`` are the upper bounds of the classic ones (``+Inf`` is added)."""

    kind = "histogram"

    def __init__(
        self,
        registry: SeriesRegistry,
        name: str,
        help: str,  # noqa: A002
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
    ) -> None:
        self.bounds = tuple(float(bound) for bound in buckets)
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"the buckets of {name} are not in order")
        self.bound_texts = [*map(number, self.bounds), "+Inf"]
        super().__init__(registry, name, help, labels)

    def _make(self, labels: tuple[str, ...]) -> HistogramChild:
        return HistogramChild(labels, self.bounds)

    def labels(self, *values: str) -> HistogramChild:
        """The label set with these values, made if it is new."""
        child = self._labelled(*values)
        assert isinstance(child, HistogramChild)  # noqa: S101
        return child

    def _templates(self, child: HistogramChild) -> tuple[str, str]:
        if child.templates is None:
            lines = [self.prefix(child, "_bucket", le=le) for le in self.bound_texts]
            lines += [self.prefix(child, "_count"), self.prefix(child, "_sum")]
            text = "".join([line.replace("%", "%%") + " %s\n" for line in lines])
            created = f"{self.prefix(child, '_created')} {number(child.created)}\n".replace("%", "%%")
            child.templates = (text, text + created)
        return child.templates

    def text_of(self, child: Child) -> str:
        assert isinstance(child, HistogramChild)  # noqa: S101
        template = self._templates(child)[0]
        *below, count = accumulate(child.counts)
        return template % (*map(count_text, below), count_text(count), count_text(count), number(child.total))

    def openmetrics_of(self, child: Child) -> str:
        assert isinstance(child, HistogramChild)  # noqa: S101
        template = self._templates(child)[1]
        counts = [count_text(count) for count in accumulate(child.counts)]
        count = counts[-1]
        if child.exemplars is not None:
            for i in range(len(counts)):
                if (exemplar := child.exemplar(i)) is not None:
                    counts[i] += exemplar_text(exemplar)
        return template % (*counts, count, number(child.total))

    def samples(self) -> Iterator[Sample]:
        for child in self.children():
            assert isinstance(child, HistogramChild)  # noqa: S101
            with child.lock:
                counts, total = list(accumulate(child.counts)), child.total
                exemplars = [child.exemplar(i) for i in range(len(counts))]
            for le, count, exemplar in zip(self.bound_texts, counts, exemplars, strict=True):
                yield Sample(self.name + "_bucket", self._labels(child, le=le), float(count), None, exemplar)
            labels = self._labels(child)
            yield Sample(self.name + "_count", labels, float(counts[-1]))
            yield Sample(self.name + "_sum", labels, total)
            yield Sample(self.name + "_created", labels, child.created)


def exemplar_text(exemplar: Exemplar) -> str:
    """An exemplar as OpenMetrics writes it behind a value."""
    inside = ",".join([f'{name}="{escape(value)}"' for name, value in sorted(exemplar.labels.items())])
    stamp = f" {exemplar.timestamp}" if exemplar.timestamp is not None else ""
    return f" # {{{inside}}} {number(exemplar.value)}{stamp}"


class FamilyMetric(Metric):
    """A family as prometheus_client sees it; its samples are made when somebody asks for them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.name = family.family_name
        self.documentation = family.help
        self.unit = ""
        self.type = family.kind
        self._samples: list[Sample] | None = None

    @property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """See `prometheus_client.metrics_core.Metric`."""
        if self._samples is None:
            self._samples = list(self.family.samples())
        return self._samples


class SeriesRegistry(Collector):
    """Families, and the limits they share. A prometheus_client collector.

    Args:
        family_limit: label sets of one metric.
        total_limit: label sets of all metrics together.
        expire_seconds: drop label sets that have not changed for this long (None: never).
    """

    def __init__(
        self,
        *,
        family_limit: int = FAMILY_LIMIT,
        total_limit: int = TOTAL_LIMIT,
        expire_seconds: float | None = None,
    ) -> None:
        self.family_limit = family_limit
        self.total_limit = total_limit
        self.expire_seconds = expire_seconds
        self.generation = 0
        """Grows when label sets expire, unknown to who keeps them: who does looks them up again."""
        self._families: list[Family] = []
        self._label_sets = 0
        self._lock = threading.Lock()

    @property
    def families(self) -> list[Family]:
        """All families, in the order they were made."""
        return list(self._families)

    @property
    def label_sets(self) -> int:
        """How many label sets there are."""
        return self._label_sets

    def take(self) -> bool:
        """Room for one more label set?"""
        with self._lock:
            if self._label_sets >= self.total_limit:
                return False
            self._label_sets += 1
            return True

    def give_back(self) -> None:
        """One label set less."""
        with self._lock:
            self._label_sets -= 1

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> CounterFamily:  # noqa: A002
        """A new counter."""
        return self._new(CounterFamily(self, name, help, labels))

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> GaugeFamily:  # noqa: A002
        """A new gauge."""
        return self._new(GaugeFamily(self, name, help, labels))

    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
    ) -> HistogramFamily:
        """A new histogram."""
        return self._new(HistogramFamily(self, name, help, labels, buckets=buckets))

    def _new(self, family: F) -> F:
        if any(known.name == family.name for known in self._families):
            raise ValueError(f"there is a metric {family.name} already")
        self._families.append(family)
        return family

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        if self.expire_seconds is not None:
            now = time.time()
            if sum([family.expire(now, self.expire_seconds) for family in self._families]):
                self.generation += 1
        for family in self._families:
            yield FamilyMetric(family)

    def describe(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return self.collect()


F = TypeVar("F", bound=Family)
