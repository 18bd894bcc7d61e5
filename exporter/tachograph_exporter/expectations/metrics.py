"""What was found, as metrics, for those who have an Alertmanager. The service that evaluates shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tachograph.clock import NS
from tachograph.metrics.families import label_value
from tachograph.metrics.specs import EXPECTED_START, FLAPPING, LATE, OVERDUE, STEP_OVERDUE, GaugeSpec
from tachograph_exporter.expectations import findings
from tachograph_exporter.expectations.watch import Watch, Watched

Values = dict[tuple[str, ...], float]


class ExpectationMetrics(Collector):
    """A prometheus_client collector of what a watch last found.

    Args:
        watch: what evaluates.
        limit: the maximum of workflows that are shown, by name; and of steps, those that run for too long first.
    """

    def __init__(self, watch: Watch, limit: int) -> None:
        self._watch = watch
        self._limit = limit

    def collect(self) -> Iterator[Metric]:
        """The families; without series where another service evaluates."""
        values: dict[str, Values] = {spec.name: {} for spec in (EXPECTED_START, LATE, OVERDUE, STEP_OVERDUE, FLAPPING)}
        slugs = self._watch.slugs
        for (workspace_id, workflow), watched in islice(sorted(self._watch.watched.items()), self._limit):
            labels = (label_value(slugs.get(workspace_id, workspace_id)), label_value(workflow))
            for spec, value in _of_workflow(watched).items():
                _add(values[spec.name], labels, value)
            for step, is_long in _of_steps(watched).items():
                _add(values[STEP_OVERDUE.name], (*labels, label_value(step)), is_long)
        yield _family(EXPECTED_START, values)
        yield _family(LATE, values)
        yield _family(OVERDUE, values)
        steps = sorted(values[STEP_OVERDUE.name].items(), key=lambda item: (-item[1], item[0]))
        yield _family(STEP_OVERDUE, {STEP_OVERDUE.name: dict(steps[: self._limit])})
        yield _family(FLAPPING, values)

    def describe(self) -> list[Metric]:
        """No names: they come and go with the lease."""
        return []


def _of_workflow(watched: Watched) -> dict[GaugeSpec, float]:
    evaluation, limits = watched.evaluation, watched.expected.limits
    values: dict[GaugeSpec, float] = {}
    if not limits.is_paused:
        values[FLAPPING] = evaluation.is_flapping
    if evaluation.expected_start_ns is not None:
        values[EXPECTED_START] = evaluation.expected_start_ns / NS
        # As it is told: not while an execution hangs, and not of what may still arrive.
        values[LATE] = findings.LATE in watched.open_kinds
    if limits.deadline_seconds is not None:
        current = (f for f in evaluation.findings if f.kind == findings.OVERDUE and f.until_ns is None)
        values[OVERDUE] = any(finding.key == finding.execution_id for finding in current)
    return values


def _of_steps(watched: Watched) -> dict[str, bool]:
    steps = watched.expected.limits.steps
    with_deadline = [name for name, step in steps.items() if step.deadline_seconds is not None]
    return dict.fromkeys(with_deadline, False) | dict.fromkeys(watched.evaluation.long_steps, True)


def _add(values: Values, labels: tuple[str, ...], value: float) -> None:
    """Long names are cut, and may then be the same."""
    values[labels] = max(values.get(labels, value), value)


def _family(spec: GaugeSpec, values: Mapping[str, Values]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, value in values[spec.name].items():
        family.add_metric(labels, value)
    return family
