"""One series: the value (or histogram) of one label set."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

from prometheus_client.samples import Exemplar

from tachograph.histogram import ExponentialHistogram

Trace: TypeAlias = tuple[str, str, int]
"""Where a value came from: trace id, span id, unix ns. Becomes an exemplar when it is read."""


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
