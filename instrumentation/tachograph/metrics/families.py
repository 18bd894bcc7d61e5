"""Metric families that are cheap to write and fast to render: counters, gauges and histograms.

A histogram keeps classic buckets, native (exponential) buckets and the newest exemplar of each classic bucket. Every
label set caches its rendered text and a write only marks it as changed, so a scrape renders what has changed since the
last one and copies the rest. Threads may write during a scrape: a label set is read under its own lock, so its count,
sum and buckets are consistent.

The families of a `SeriesRegistry` come out of prometheus_client's own exposition like any others;
`tachograph.metrics.exposition` recognises them and renders them faster.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.samples import Sample

from tachograph.metrics.children import Child, CounterChild, GaugeChild, HistogramChild
from tachograph.metrics.limits import SeriesLimits
from tachograph.metrics.text import count_text, escape, exemplar_text, number

VALUE_LIMIT: Final = 200
"""Most characters of a label value."""
OTHER: Final = "other"


def label_value(text: str) -> str:
    """A text as a label's value: no longer than `VALUE_LIMIT`."""
    return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"


class Family(ABC):
    """A metric: its name, help, label names and label sets.

    Args:
        limits: shared by the families of a registry.
        name: with its unit; a counter's ends in ``_total``.
    """

    kind = ""

    def __init__(self, limits: SeriesLimits, name: str, help: str, labels: Sequence[str] = ()) -> None:  # noqa: A002
        self.limits = limits
        self.name = name
        self.help = help
        self.label_names = tuple(labels)
        self.limited = 0
        self.version = 0
        """Grows whenever a label set is added or removed."""
        self.created_text: tuple[int, bytes] | None = None
        self._lock = threading.Lock()
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self._child()

    @property
    def family_name(self) -> str:
        """The name without ``_total``."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    def __len__(self) -> int:
        return len(self._children)

    def children(self) -> list[Child]:
        """All label sets, oldest first."""
        with self._lock:
            return list(self._children.values())

    @abstractmethod
    def _new_child(self, labels: tuple[str, ...]) -> Child: ...

    def _child(self, *values: str) -> Child:
        child = self._children.get(values)
        return child if child is not None else self._add(values)

    def _add(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {', '.join(self.label_names)}; {len(values)} values given")
        short = tuple([label_value(str(value)) for value in values])
        with self._lock:
            child = self._children.get(short)
            if child is not None:
                return child
            has_room = len(self._children) < self.limits.family_limit and self.limits.take()
            if not has_room:
                self.limited += 1
                short = (OTHER,) * len(self.label_names)
                child = self._children.get(short)
                if child is not None:
                    return child
            self.version += 1
            child = self._children[short] = self._new_child(short)
            child.is_counted = has_room
            child.metric = self.name
            return child

    def find(self, *values: str) -> Child | None:
        """The label set with these values, if it exists."""
        return self._children.get(values)

    def remove(self, *values: str) -> None:
        """Remove a label set, if it exists."""
        with self._lock:
            child = self._children.pop(values, None)
            self.version += 1
        if child is not None and child.is_counted:
            self.limits.release()

    def expire(self, now: float, seconds: float) -> int:
        """Remove label sets that have not changed for this long. Returns their number.

        A change since the last scrape counts as a change now, so call this right before rendering.
        """
        removed = 0
        for child in self.children():
            if child.is_changed:
                child.changed_at = now
            elif now - child.changed_at > seconds and self.label_names:
                self.remove(*child.labels)
                removed += 1
        return removed

    def prefix(self, child: Child, suffix: str = "", **extra: str) -> str:
        """``name{labels}`` of a sample, with labels sorted by name."""
        pairs = [*zip(self.label_names, child.labels, strict=True), *extra.items()]
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
        """The samples, as prometheus_client represents them."""

    def _labels(self, child: Child, **extra: str) -> dict[str, str]:
        return {**dict(zip(self.label_names, child.labels, strict=True)), **extra}


class CounterFamily(Family):
    """A counter metric."""

    kind = "counter"

    def _new_child(self, labels: tuple[str, ...]) -> CounterChild:
        return CounterChild(labels)

    def labels(self, *values: str) -> CounterChild:
        """The child of these label values, created on first use."""
        child = self._child(*values)
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
    """A gauge metric."""

    kind = "gauge"

    def _new_child(self, labels: tuple[str, ...]) -> GaugeChild:
        return GaugeChild(labels)

    def labels(self, *values: str) -> GaugeChild:
        """The child of these label values, created on first use."""
        child = self._child(*values)
        assert isinstance(child, GaugeChild)  # noqa: S101
        return child

    def value_of(self, child: Child) -> float:
        """The current value of a child."""
        assert isinstance(child, GaugeChild)  # noqa: S101
        if child.source is not None:
            child.is_changed = True  # Its source is called at every scrape.
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
    """A histogram metric. ``buckets`` are the classic upper bounds, ascending, without ``+Inf``."""

    kind = "histogram"

    def __init__(
        self,
        limits: SeriesLimits,
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
        super().__init__(limits, name, help, labels)

    def _new_child(self, labels: tuple[str, ...]) -> HistogramChild:
        return HistogramChild(labels, self.bounds)

    def labels(self, *values: str) -> HistogramChild:
        """The child of these label values, created on first use."""
        child = self._child(*values)
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
