"""Timeline of an execution, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from sqlalchemy import Row

from tachograph.clock import NS
from tachograph.critical_path import IndexedSteps, critical_path, path_lengths, slack
from tachograph.events import FAILED, OPEN_STEP, Folded, StepStatus
from tachograph.resources import Resources, UseTotals, decoded
from tachograph.run_window import RunWindow, placed
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.failure_groups.failing import ATTEMPT, EXECUTION, STEP
from tachograph_exporter.store.steps import StoredStep, by_step, status_counts
from tachograph_exporter.store.totals import MEASURE_SEPARATOR, Totals, combined
from tachograph_exporter.store.totals import Measure as TotalMeasure
from tachograph_exporter.times import rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.expected_end import UNKNOWN, ExpectedEnd
from tachograph_exporter.views.machine import (
    average_use,
    combined_use,
    resources_of,
    resources_text,
    run_use,
    use_of_step,
)
from tachograph_exporter.views.metrics import average_seconds, measure_summaries
from tachograph_exporter.views.schemas.common import Wait
from tachograph_exporter.views.schemas.timeline import (
    Attempt,
    CriticalStep,
    FoldedSteps,
    LogLine,
    Measure,
    RunUse,
    WorkflowExecutionTimeline,
    WorkflowStepTimelineEntry,
)
from tachograph_exporter.views.spending import cost_of, folded_cost, spending_of


class TimelineFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects steps by status, by duration (ns; a step that never started has none), and by name or id.

    An empty set or None selects every step.
    """

    status: frozenset[StepStatus] = frozenset()
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    step: frozenset[str] = frozenset()


_ALL_STEPS = TimelineFilter()
_DIGITS = 16
"""Of a number that every reader of JSON keeps."""


def build_timeline(
    run: StoredRun,
    step_filter: TimelineFilter = _ALL_STEPS,
    *,
    now_ns: int,
    expected: ExpectedEnd = UNKNOWN,
    traces: Mapping[str, str] = MappingProxyType({}),
) -> WorkflowExecutionTimeline:
    """The timeline of an execution; ``now_ns`` and ``expected`` matter only while it is running. O(steps).

    ``traces``: the trace of a span, by its id, where it is another one than the execution's.
    """
    execution, steps = run.execution, run.steps
    is_open = execution.finished_ns is None
    started, finished = execution.started_ns, execution.finished_ns
    window = RunWindow.of(started if started is not None else execution.created_ns, finished, now_ns)
    within = IndexedSteps(placed(steps, window))
    path = critical_path(within, now_ns=window.end_ns if is_open else None)
    on_path = {step.step_id for step in path}
    lengths = path_lengths(path, window.end_ns)
    slacks = slack(within) if not is_open else {}
    scheduled = {step.step_id: step.scheduled_ns for step in steps if step.scheduled_ns}
    attempts, reports = by_step(run.attempts), by_step(run.reports)
    counts = status_counts(steps)
    spending = spending_of(run)
    repeated = {name for name, count in Counter(step.name for step in steps).items() if count > 1}
    running = [_run_ns(step, attempts.get(step.step_id, ()), window) for step in steps]
    work = sum(run_ns or 0 for step, run_ns in zip(steps, running, strict=True) if step.parent_step_id is None)
    elapsed = window.end_ns - window.start_ns if started is not None else None
    trace_id = execution.trace_id
    return WorkflowExecutionTimeline(
        execution_id=execution.execution_id,
        workflow_id=execution.workflow_id,
        workflow_name=execution.workflow,
        workflow_version=execution.version,
        status=execution.status,
        started_at=rfc3339_or_none(started),
        completed_at=rfc3339_or_none(finished),
        total_duration_seconds=seconds(finished - started) if finished is not None and started is not None else None,
        elapsed_seconds=seconds(elapsed) if is_open else None,
        step_count=max(counts.total(), execution.step_count),
        completed_step_count=counts["completed"],
        failed_step_count=sum(counts[status] for status in FAILED),
        skipped_step_count=counts["skipped"],
        running_step_count=counts["running"] + counts["retrying"],
        error_type=execution.error_type,
        error_message=execution.error_message,
        input_summary=_raw(execution.inputs),
        queued_seconds=_difference(started, execution.queued_ns),
        last_seen_at=rfc3339(execution.last_seen_ns) if is_open or execution.status == "lost" else None,
        trace_id=trace_id,
        span_id=execution.span_id,
        parent_execution_id=execution.parent_execution_id,
        parent_step_id=execution.parent_step_id,
        critical_path=[
            CriticalStep(step.step_id, step.name, length / NS, scheduled.get(step.step_id, 0) / NS)
            for step, length in zip(path, lengths, strict=True)
        ],
        critical_path_seconds=sum(lengths) / NS,
        unaccounted_seconds=(elapsed - sum(lengths)) / NS if elapsed is not None else None,
        work_seconds=work / NS,
        parallelism=work / elapsed if elapsed else None,
        cost_usd=spending.usd,
        tokens_in=spending.tokens_in,
        tokens_out=spending.tokens_out,
        step_timeline=[
            _entry(
                step,
                attempts.get(step.step_id, ()),
                reports.get(step.step_id, ()),
                step.step_id in on_path,
                slacks.get(step.step_id),
                traces.get(step.span_id, trace_id),
                run_ns,
                window,
                now_ns,
                run.failures,
                is_one_of_many=step.name in repeated,
            )
            for step, run_ns in zip(steps, running, strict=True)
            if _is_selected(step, step_filter)
        ],
        expected_end_at=rfc3339_or_none(expected.end_ns),
        usual_duration_seconds=expected.usual_seconds,
        resources=_run_use(run, attempts),
        failure_group=run.failures.get(("", 0, EXECUTION)),
    )


def _entry(
    step: StoredStep,
    attempts: Sequence[Row[Any]],
    reports: Sequence[Row[Any]],
    is_critical: bool,
    slack_ns: int | None,
    trace_id: str,
    run_ns: int | None,
    window: RunWindow,
    now_ns: int,
    failures: Mapping[tuple[str, int, int], str],
    *,
    is_one_of_many: bool,
) -> WorkflowStepTimelineEntry:
    started, finished, folded = step.started_ns, step.finished_ns, step.folded
    started_at = rfc3339(started) if started is not None else None
    completed_at = rfc3339(finished) if finished is not None else None
    wait = wait_seconds = duration = None
    outside_ns = 0
    if started is not None:
        if started < window.start_ns or (finished or started) > window.end_ns:
            outside_ns = window.place(started, finished).outside_ns
        if finished is not None:
            duration = (finished - started) / NS
        dependency, queue, backoff, unaccounted, scheduled = _waits(step, attempts)
        wait = Wait(dependency / NS, queue / NS, backoff / NS, unaccounted / NS, scheduled / NS)
        wait_seconds = (dependency + queue + backoff + unaccounted + scheduled) / NS
    if not attempts and started_at is not None and step.attempt == 1:
        # The only attempt of a step that never retried is in the step's row.
        resources = resources_of(decoded(step.resources), duration) if step.resources is not None else None
        timeline_attempts: tuple[Attempt, ...] = (
            Attempt(
                1, step.status, started_at, completed_at, duration, (step.queue_ns or 0) / NS, 0.0,
                step.error_type, step.error_message, resources,
                failures.get((step.step_id, 1, STEP)) if failures else None,
            ),
        )  # fmt: skip
    else:
        timeline_attempts = _attempts(step, attempts, failures)
        resources = (
            timeline_attempts[0].resources
            if len(timeline_attempts) == 1
            else resources_of(use_of_step(step, attempts), run_ns / NS if run_ns is not None else None)
        )
    measures: tuple[Measure, ...] = ()
    logs: tuple[LogLine, ...] = ()
    cost = None
    if reports:
        measures = tuple([Measure(r.name, r.value, r.unit, rfc3339(r.time_ns)) for r in reports if r.kind == "measure"])
        logs = tuple([LogLine(r.unit, r.name, rfc3339(r.time_ns)) for r in reports if r.kind == "log"])
        cost = cost_of(reports)
    if folded is not None:
        logs = tuple([LogLine(log.level, log.message, rfc3339(log.time_ns)) for log in folded.logs])
        cost = folded_cost(folded)
    # By position: with this many fields, names would take longer than all the rest.
    return WorkflowStepTimelineEntry(
        step.step_id,
        step.name,
        _index(step, is_one_of_many=is_one_of_many),
        step.step_type,
        step.step_order,
        step.status,
        started_at,
        completed_at,
        duration,
        max(0, now_ns - started) / NS if started is not None and finished is None else None,  # elapsed_seconds
        run_ns / NS if run_ns is not None else None,
        folded.retries if folded is not None else max(0, step.attempt - 1),
        step.error_type,
        step.error_message,
        step.error_stack,
        step.skip_reason,
        _raw(step.inputs),
        _raw(step.output),
        wait_seconds,
        wait,
        step.depends_on,
        step.dependency_count or len(step.depends_on),
        step.parent_step_id,
        step.child_execution_id,
        timeline_attempts,
        is_critical,
        slack_ns / NS if slack_ns is not None else None,
        outside_ns / NS,
        trace_id,
        step.span_id,
        measures,
        cost,
        logs,
        _folded(folded) if folded is not None else None,
        resources,
        failures.get((step.step_id, step.attempt, STEP)) if failures else None,
    )


def _index(step: StoredStep, *, is_one_of_many: bool) -> int | str | None:
    if step.map_index is not None:
        return int(step.map_index) if step.map_index.isdecimal() and len(step.map_index) < _DIGITS else step.map_index
    return step.repetition if is_one_of_many else None


def _folded(folded: Folded) -> FoldedSteps:
    counts = {status: runs.count for status, runs in folded.by_status.items()}
    totals = combined(Totals.of_folded(runs) for runs in folded.by_status.values())
    durations = totals.histogram()
    return FoldedSteps(
        count=folded.count,
        completed=counts.get("completed", 0),
        failed=sum(counts.get(status, 0) for status in FAILED),
        cancelled=counts.get("cancelled", 0),
        lost=counts.get("lost", 0),
        running=folded.running,
        retry_count=folded.retries,
        run_seconds=folded.run_ns / NS,
        busy_seconds=folded.busy_ns / NS,
        average_seconds=average_seconds(totals.sum_ns, totals.count),
        p50=durations.quantile(0.5),
        p95=durations.quantile(0.95),
        max=totals.max_ns / NS if totals.count else None,
        measures=measure_summaries(
            {
                f"{m.name}{MEASURE_SEPARATOR}{m.unit}": TotalMeasure(m.count, m.total, m.min, m.max)
                for m in folded.measures
            }
        ),
        resources=average_use(combined_use(r.use for r in folded.by_status.values() if r.use is not None)),
    )


def _attempts(
    step: StoredStep, stored: Sequence[Row[Any]], failures: Mapping[tuple[str, int, int], str]
) -> tuple[Attempt, ...]:
    """The attempts that have rows, and the current one (or the last one of a lost step), which has none."""
    attempts = [
        Attempt(
            attempt=a.attempt,
            status=a.status,
            started_at=rfc3339(a.started_ns),
            completed_at=rfc3339(a.finished_ns),
            duration_seconds=(a.finished_ns - a.started_ns) / NS,
            queue_seconds=a.queue_ns / NS,
            backoff_seconds=a.backoff_ns / NS,
            error_type=a.error_type,
            error_message=a.error_message,
            resources=resources_of(decoded(resources_text(a)), (a.finished_ns - a.started_ns) / NS),
            failure_group=failures.get((step.step_id, a.attempt, ATTEMPT))
            or failures.get((step.step_id, a.attempt, STEP)),
        )
        for a in stored
    ]
    started, ended = step.attempt_started_ns, step.finished_ns
    if started is not None and all(a.attempt != step.attempt for a in stored):
        attempts.append(
            Attempt(
                attempt=step.attempt,
                status=step.status,
                started_at=rfc3339(started),
                completed_at=rfc3339(ended) if ended is not None else None,
                duration_seconds=(ended - started) / NS if ended is not None else None,
                queue_seconds=(step.queue_ns or 0) / NS,
                backoff_seconds=(step.backoff_ns or 0) / NS,
                error_type=step.error_type,
                error_message=step.error_message,
                resources=resources_of(decoded(step.resources), (ended - started) / NS if ended is not None else None),
                failure_group=failures.get((step.step_id, step.attempt, STEP)),
            )
        )
    return tuple(attempts)


def _run_use(run: StoredRun, attempts: Mapping[str, Sequence[Row[Any]]]) -> RunUse | None:
    uses: list[tuple[Resources | UseTotals, bool]] = []
    for step in run.steps:
        is_outermost = step.parent_step_id is None
        if step.folded is not None:
            uses += [(runs.use, is_outermost) for runs in step.folded.by_status.values() if runs.use is not None]
        elif (use := use_of_step(step, attempts.get(step.step_id, ()))) is not None:
            uses.append((use, is_outermost))
    return run_use(uses)


def _run_ns(step: StoredStep, attempts: Sequence[Row[Any]], window: RunWindow) -> int | None:
    if step.started_ns is None:
        return None
    if step.run_ns is not None and (step.folded is not None or step.status not in OPEN_STEP):
        return step.run_ns
    total = 0
    for attempt in attempts:
        total += max(0, window.cut(attempt.finished_ns) - window.cut(attempt.started_ns))
    if step.status == "running" and step.attempt_started_ns is not None:
        total += window.end_ns - window.cut(step.attempt_started_ns)
    # Attempts have the times that their machines say; waits are those within the run.
    return max(0, min(total, window.end_ns - window.start_ns - sum(_waits(step, attempts))))


def _waits(step: StoredStep, attempts: Sequence[Row[Any]]) -> tuple[int, int, int, int, int]:
    """(dependency, queue, backoff, unaccounted, scheduled) of all attempts, as in `Wait`."""
    queue, backoff = step.queue_ns or 0, step.backoff_ns or 0
    if attempts and step.status in OPEN_STEP:
        # Until the step ends, its row has the waits of the current attempt only.
        queue += sum(a.queue_ns for a in attempts if a.attempt != step.attempt)
        backoff += sum(a.backoff_ns for a in attempts if a.attempt != step.attempt)
    return step.dependency_ns or 0, queue, backoff, step.unaccounted_ns or 0, step.scheduled_ns or 0


def _is_selected(step: StoredStep, step_filter: TimelineFilter) -> bool:
    if step_filter.status and step.status not in step_filter.status:
        return False
    if step_filter.step and step.name not in step_filter.step and step.step_id not in step_filter.step:
        return False
    low, high = step_filter.min_duration_ns, step_filter.max_duration_ns
    if low is None and high is None:
        return True
    if step.started_ns is None:
        return False
    duration = (step.finished_ns or step.started_ns) - step.started_ns
    return (low is None or duration >= low) and (high is None or duration <= high)


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)


def _difference(later: int | None, earlier: int | None) -> float | None:
    return None if later is None or earlier is None else (later - earlier) / NS
