"""How a stored execution should have changed the Prometheus series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row

from tachograph.clock import NS
from tachograph.critical_path import critical_path, path_lengths
from tachograph.events import OPEN_STEP, Folded
from tachograph.exact_sum import ExactSum
from tachograph.metrics.families import label_value
from tachograph.metrics.journal import Change, SeriesKey
from tachograph.metrics.specs import (
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    EXECUTIONS_STARTED,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_RETRIES,
    STEP_TOKENS,
    STEP_WAIT,
    STEPS_SKIPPED,
    MetricSpec,
)
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import StoredStep, by_step


class ExpectedSeries:
    """What a run stands for, by series.

    Args:
        workspace: slug.
        measures: names of the step measures that are metrics.
    """

    def __init__(self, run: StoredRun, workspace: str, measures: Collection[str]) -> None:
        self._head = (label_value(workspace), label_value(run.execution.workflow))
        self._measures = measures
        self._changes: defaultdict[SeriesKey, list[float]] = defaultdict(lambda: [0, 0.0])
        self._count_execution(run)
        attempts, names = by_step(run.attempts), {}
        for step in run.steps:
            names[step.step_id] = step.name
            self._count_step(step, attempts.get(step.step_id, ()))
        for report in run.reports:
            self._count_report(names.get(report.step_id, ""), report)
        if run.execution.finished_ns is not None:
            path = critical_path(run.steps)
            for on_path, length in zip(path, path_lengths(path), strict=True):
                self._add(CRITICAL_PATH, length / NS, on_path.name)

    def by_series(self) -> dict[SeriesKey, Change]:
        """The changes by metric and label values."""
        return {key: Change(int(times), total) for key, (times, total) in self._changes.items()}

    def _add(self, spec: MetricSpec, amount: float, *labels: str, times: int = 1) -> None:
        entry = self._changes[spec.name, (*self._head, *map(label_value, labels))]
        entry[0] += times
        entry[1] += amount

    def _count_execution(self, run: StoredRun) -> None:
        execution = run.execution
        if execution.started_ns is not None:
            self._add(EXECUTIONS_STARTED, 1)
            self._add(EXECUTIONS_RUNNING, 1)
        if execution.finished_ns is not None:
            self._add(EXECUTIONS_RUNNING, -1)
            started = execution.started_ns if execution.started_ns is not None else execution.finished_ns
            self._add(EXECUTION_DURATION, (execution.finished_ns - started) / NS, execution.status)

    def _count_step(self, step: StoredStep, attempts: Sequence[Row[Any]]) -> None:
        if step.folded is not None:
            self._count_folded(step.name, step.folded)
            return
        if step.status == "skipped":
            self._add(STEPS_SKIPPED, 1, step.name, step.skip_reason or "")
            return
        if step.started_ns is None:
            return
        self._add(STEP_WAIT, (step.dependency_ns or 0) / NS, step.name, "dependency")
        if step.unaccounted_ns:
            self._add(STEP_WAIT, step.unaccounted_ns / NS, step.name, "unaccounted")
        has_ended = step.status not in OPEN_STEP and step.finished_ns is not None
        if has_ended:
            self._add(STEP_DURATION, ((step.finished_ns or 0) - step.started_ns) / NS, step.name, step.status)
        for attempt in attempts:
            self._add(STEP_WAIT, attempt.queue_ns / NS, step.name, "queue")
            if attempt.attempt > 1 and attempt.backoff_ns:
                self._add(STEP_WAIT, attempt.backoff_ns / NS, step.name, "backoff")
            self._add(STEP_ATTEMPTS, 1, step.name, attempt.status)
            # The last attempt was followed by another one, unless the step ended with it.
            if attempt.attempt != step.attempt or not has_ended or attempt.finished_ns != step.finished_ns:
                self._add(STEP_RETRIES, 1, step.name)
        if all(attempt.attempt != step.attempt for attempt in attempts):
            # The only attempt, or one that runs: it has no row.
            self._add(STEP_WAIT, (step.queue_ns or 0) / NS, step.name, "queue")
            if step.attempt > 1 and step.backoff_ns:
                self._add(STEP_WAIT, step.backoff_ns / NS, step.name, "backoff")
            if has_ended:
                self._add(STEP_ATTEMPTS, 1, step.name, step.status)

    def _count_folded(self, name: str, folded: Folded) -> None:
        waits = dict.fromkeys(("dependency", "queue", "unaccounted"), 0)
        for status, runs in folded.by_status.items():
            waits["dependency"] += runs.dependency_ns
            waits["queue"] += runs.queue_ns
            waits["unaccounted"] += runs.unaccounted_ns
            self._add_many(STEP_DURATION, runs.count, runs.sum_ns / NS, name, status)
            attempts = runs.count - folded.between_attempts.get(status, 0)
            self._add_many(STEP_ATTEMPTS, attempts, attempts, name, status)
        for status, count in folded.retrying.items():
            self._add_many(STEP_ATTEMPTS, count, count, name, status)
            self._add_many(STEP_RETRIES, count, count, name)
        self._add_many(STEP_WAIT, folded.count, waits["dependency"] / NS, name, "dependency")
        self._add_many(STEP_WAIT, folded.count + folded.retries_started, waits["queue"] / NS, name, "queue")
        self._add_many(STEP_WAIT, folded.unaccounted_count, waits["unaccounted"] / NS, name, "unaccounted")
        self._add_many(STEP_WAIT, folded.backoff_count, folded.backoff_ns / NS, name, "backoff")
        for model in folded.models:
            self._add_many(STEP_COST, 1, model.usd, name, model.model)
            self._add_many(STEP_TOKENS, 1, model.tokens_in, name, model.model, "input")
            self._add_many(STEP_TOKENS, 1, model.tokens_out, name, model.model, "output")
        for measure in folded.measures:
            if measure.name in self._measures:
                total = ExactSum.parse(measure.total).value
                self._add_many(STEP_MEASURE, measure.count, total, name, measure.name, measure.unit)

    def _add_many(self, spec: MetricSpec, times: int, amount: float, *labels: str) -> None:
        if times and (amount or spec.kind != "counter"):
            self._add(spec, amount, *labels, times=times)

    def _count_report(self, step: str, report: Row[Any]) -> None:
        if report.kind == "cost":
            model = report.name
            if report.value:
                self._add(STEP_COST, report.value, step, model)
            for kind, tokens in (("input", report.tokens_in), ("output", report.tokens_out)):
                if tokens:
                    self._add(STEP_TOKENS, tokens, step, model, kind)
        elif report.kind == "measure" and report.name in self._measures:
            self._add(STEP_MEASURE, report.value, step, report.name, report.unit)
