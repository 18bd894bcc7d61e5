"""What was found, as metrics, for those who have an Alertmanager. The service that evaluates shows them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tachograph.clock import NS
from tachograph.metrics.specs import EXPECTED_START, LATE, OVERDUE, GaugeSpec
from tachograph_exporter.expectations import findings
from tachograph_exporter.expectations.watch import Watch


class ExpectationMetrics(Collector):
    """A prometheus_client collector of what a watch last found.

    Args:
        watch: what evaluates.
        limit: the maximum of workflows that are shown, by name.
    """

    def __init__(self, watch: Watch, limit: int) -> None:
        self._watch = watch
        self._limit = limit

    def collect(self) -> Iterator[Metric]:
        """The families; without series where another service evaluates."""
        start, late, overdue = (_family(spec) for spec in (EXPECTED_START, LATE, OVERDUE))
        slugs = self._watch.slugs
        for (workspace_id, workflow), watched in islice(sorted(self._watch.watched.items()), self._limit):
            labels = (slugs.get(workspace_id, workspace_id), workflow)
            evaluation, limits = watched.evaluation, watched.expected.limits
            if evaluation.expected_start_ns is not None:
                start.add_metric(labels, evaluation.expected_start_ns / NS)
                late.add_metric(labels, evaluation.of(findings.LATE) is not None)
            if limits.deadline_seconds is not None or limits.steps:
                overdue.add_metric(labels, evaluation.of(findings.OVERDUE) is not None)
        yield start
        yield late
        yield overdue

    def describe(self) -> list[Metric]:
        """No names: they come and go with the lease."""
        return []


def _family(spec: GaugeSpec) -> GaugeMetricFamily:
    return GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
