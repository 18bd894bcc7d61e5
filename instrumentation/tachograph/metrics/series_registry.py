"""Metric families that share limits, as one prometheus_client collector."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from tachograph.distribution import DURATION_BUCKETS, MEASURE_BUCKETS, MEMORY_BUCKETS
from tachograph.metrics.families import CounterFamily, Family, GaugeFamily, HistogramFamily
from tachograph.metrics.limits import FAMILY_LIMIT, TOTAL_LIMIT, SeriesLimits
from tachograph.metrics.specs import STEP_MEASURE, STEP_MEMORY, CounterSpec, HistogramSpec, MetricSpec


class FamilyMetric(Metric):
    """A family as a prometheus_client metric; its samples are built on demand."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.name = family.family_name
        self.documentation = family.help
        self.unit = ""
        self.type = family.kind
        self._samples: list[Sample] | None = None

    @property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """The family's samples."""
        if self._samples is None:
            self._samples = list(self.family.samples())
        return self._samples


class SeriesRegistry(Collector):
    """Metric families and the limits they share. A prometheus_client collector.

    Args:
        family_limit: most label sets of one metric.
        total_limit: most label sets of all metrics together.
        expire_seconds: remove label sets that have not changed for this long (None: never).
    """

    def __init__(
        self,
        *,
        family_limit: int = FAMILY_LIMIT,
        total_limit: int = TOTAL_LIMIT,
        expire_seconds: float | None = None,
    ) -> None:
        self.limits = SeriesLimits(family_limit, total_limit)
        self.expire_seconds = expire_seconds
        self.generation = 0
        """Grows when label sets expire. Callers that cache children then look them up again."""
        self._families: list[Family] = []

    @property
    def families(self) -> list[Family]:
        """All families, oldest first."""
        return list(self._families)

    @property
    def label_sets(self) -> int:
        """The current number of label sets."""
        return self.limits.label_sets

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> CounterFamily:  # noqa: A002
        """A new counter."""
        return self._register(CounterFamily(self.limits, name, help, labels))

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> GaugeFamily:  # noqa: A002
        """A new gauge."""
        return self._register(GaugeFamily(self.limits, name, help, labels))

    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
    ) -> HistogramFamily:
        """A new histogram."""
        return self._register(HistogramFamily(self.limits, name, help, labels, buckets=buckets))

    def family(self, spec: MetricSpec, *, buckets: Sequence[float] = DURATION_BUCKETS) -> Family:
        """A new metric as it is specified. ``buckets``: of a histogram of durations."""
        description = (spec.name, spec.help, spec.labels)
        if isinstance(spec, HistogramSpec):
            return self.histogram(*description, buckets=_OTHER_BUCKETS.get(spec.name, buckets))
        return self.counter(*description) if isinstance(spec, CounterSpec) else self.gauge(*description)

    def _register(self, family: F) -> F:
        if any(other.name == family.name for other in self._families):
            raise ValueError(f"metric {family.name} already exists")
        self._families.append(family)
        return family

    def collect(self) -> Iterator[Metric]:
        """The families as metrics, after removing expired label sets."""
        if self.expire_seconds is not None:
            now = time.time()
            if sum([family.expire(now, self.expire_seconds) for family in self._families]):
                self.generation += 1
        for family in self._families:
            yield FamilyMetric(family)

    def describe(self) -> Iterator[Metric]:
        """The same; prometheus_client asks for it at registration."""
        return self.collect()


F = TypeVar("F", bound=Family)
_OTHER_BUCKETS: Final = {STEP_MEASURE.name: MEASURE_BUCKETS, STEP_MEMORY.name: MEMORY_BUCKETS}
"""Of histograms that are not of durations."""
