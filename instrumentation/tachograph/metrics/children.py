"""Children of metric families: the value or histogram of one label set."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

from prometheus_client.samples import Exemplar

from tachograph.histogram import ExponentialHistogram

Trace: TypeAlias = tuple[str, str, int]
"""(trace id, span id, unix ns) of an observation. Becomes an `Exemplar` only when it is read."""


class Child:
    """One label set.

    ``is_changed``: written since it was last rendered. ``is_counted``: it counts against the limit on label sets.
    ``metric`` is the name of its family.
    """

    __slots__ = (
        "changed_at", "created", "is_changed", "is_counted", "labels", "lock", "metric",
        "openmetrics", "openmetrics2", "text", "wire", "wire_labels",
    )  # fmt: skip

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.lock = threading.Lock()
        self.created = time.time()
        self.changed_at = self.created
        self.is_changed = True
        self.is_counted = True
        self.metric = ""
        self.text: str | None = None
        self.openmetrics: str | None = None
        self.openmetrics2: str | None = None
        self.wire: bytes | None = None
        self.wire_labels: bytes | None = None


class CounterChild(Child):
    """A value that only grows."""

    __slots__ = ("value",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        super().__init__(labels)
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to the value. Raises `ValueError` for a negative amount."""
        if amount < 0:
            raise ValueError(f"cannot add {amount}: a counter only grows")
        with self.lock:
            self.value += amount
            self.is_changed = True


class GaugeChild(Child):
    """A value that goes up and down, or the result of ``source`` at each scrape."""

    __slots__ = ("source", "value")

    def __init__(self, labels: tuple[str, ...]) -> None:
        super().__init__(labels)
        self.value = 0.0
        self.source: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Set the value."""
        with self.lock:
            self.value = value
            self.is_changed = True

    def inc(self, amount: float = 1.0) -> None:
        """Add to the value."""
        with self.lock:
            self.value += amount
            self.is_changed = True


class HistogramChild(Child):
    """Classic and native buckets of one label set, with an exemplar per classic bucket."""

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
        """Count a value, optionally with its exemplar. Raises `ValueError` if it is not finite."""
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
        entry = self.exemplars[index] if self.exemplars is not None else None
        if entry is None:
            return None
        value, exemplar = entry
        if isinstance(exemplar, Exemplar):
            return exemplar
        trace_id, span_id, time_ns = exemplar
        return Exemplar({"trace_id": trace_id, "span_id": span_id}, value, time_ns // 1_000_000 / 1000)
