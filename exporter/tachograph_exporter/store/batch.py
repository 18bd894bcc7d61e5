"""A group of events, folded into the rows to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from tachograph.clock import MAX_NS
from tachograph.events import (
    UNSUCCESSFUL,
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    StepCost,
    StepFinished,
    StepLines,
    StepLogged,
    StepMeasured,
    StepReady,
    StepReport,
    StepRetrying,
    StepsFolded,
    StepSkipped,
    StepStacks,
    StepStarted,
    StepStatus,
    WorkflowExpected,
)
from tachograph.expectation import Expectation, merged
from tachograph.folded_stacks import StackWish
from tachograph.identity import ExecutionRef, Origin, StepRef, workspace_id
from tachograph.resources import Resources
from tachograph_exporter.store import partitions, stacks
from tachograph_exporter.store.expectations import CODE, ENGINE, ENGINES
from tachograph_exporter.store.merging import Rows, execution_rank, folded_rank, step_rank
from tachograph_exporter.store.schema import EXECUTION_ROWS, STEP_ROWS
from tachograph_exporter.store.span_index import Notes
from tachograph_exporter.store.span_values import Noted

_encode: Final = msgspec.json.Encoder().encode
_NO_DEPENDENCIES: Final = "[]"
_NO_ERROR: Final = (None, None, None)
_WORKFLOW_ID: Final = [column.name for column in EXECUTION_ROWS.table.columns].index("workflow_id")


def reassigned(events: Sequence[Event], workflow_ids: Mapping[str, str]) -> Sequence[Event]:
    """The events, with executions of some workflows given to others, by id."""
    if not workflow_ids:
        return events
    refs: dict[str, ExecutionRef] = {}

    def ref_of(ref: ExecutionRef) -> ExecutionRef:
        other = refs.get(ref.execution_id)
        if other is None:
            other = refs[ref.execution_id] = replace(ref, workflow_id=workflow_ids[ref.workflow_id])
        return other

    changed: list[Event] = []
    for event in events:
        if event.execution.workflow_id not in workflow_ids:
            changed.append(event)
        elif (step := getattr(event, "step", None)) is not None:
            changed.append(replace(event, step=replace(step, execution=ref_of(step.execution))))
        else:
            changed.append(replace(event, execution=ref_of(event.execution)))
    return changed


class Batch:
    """A group of events, folded into rows. Rows are tuples in column order (see `schema`).

    Repetitions that share a row have it from `StepsFolded` alone; their own events are left out.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.workflows: dict[tuple[str, str, str], ExecutionRef] = {}
        self.refs: dict[str, ExecutionRef] = {}
        """The executions that its events tell of, by id."""
        self.is_contradictory = False
        """Whether events give one execution to two workflows."""
        self.executions: dict[Any, tuple[Any, ...]] = {}
        self.steps: dict[Any, tuple[Any, ...]] = {}
        self.attempts: dict[Any, tuple[Any, ...]] = {}
        self.reports: list[tuple[Any, ...]] = []
        self.lines: list[tuple[Any, ...]] = []
        self.seen: dict[str, int] = {}
        self.heartbeats: dict[str, Heartbeat] = {}
        self.stacks: dict[tuple[str, str, int, str], dict[str, Any]] = {}
        self.wishes: list[StackWish] = []
        """What is asked of the processes whose heartbeats are in it, once it is stored."""
        self.reported: set[str] = set()
        """Ids of executions that engines report, maybe from several processes that each know a part."""
        self.ended: set[str] = set()
        self.resumed: list[ExecutionStarted] = []
        """That executions go on which had ended, as far as could be known."""
        self.months: set[partitions.Month] = set()
        self.expects: dict[tuple[str, str, str], Expectation | None] = {}
        """What code and engines say is expected, by workspace (a slug), workflow (a name) and source."""
        self.notes: Notes | None = None
        """What its spans say that was not in the index, if anything."""
        self.inputs: list[Noted] = []
        """What of their inputs was noted."""
        self.ended_first: set[str] = set()
        """Span ids of steps that end with their first attempt.

        The end of such a step repeats everything its earlier events said, unless several processes report it.
        """
        events = list(events)
        refs = self.refs
        latest: ExecutionRef | None = None
        is_reported = any_reported = False
        for event in events:
            ref = event.execution
            if ref is not latest:
                latest = ref
                known = refs.setdefault(ref.execution_id, ref)
                if known is not ref and (known.workflow_id, known.workspace) != (ref.workflow_id, ref.workspace):
                    self.is_contradictory = True
                is_reported = ref.origin is Origin.REPORTED
                any_reported |= is_reported
            if type(event) is StepFinished and event.attempt == 1 and not is_reported:
                self.ended_first.add(event.step.span_id)
        fold = Batch.add if any_reported else _fold
        for event in events:
            kind = type(event)
            if kind in _OF_REPETITIONS:
                step: StepRef = event.step  # type: ignore[union-attr]
                if step.folded_as is not None:
                    continue
                if (kind is StepStarted or kind is StepReady) and step.span_id in self.ended_first:
                    continue
            fold(self, event)

    @property
    def touched(self) -> set[str]:
        """Ids of the executions that have rows here."""
        return {
            *self.executions,
            *[key[0] for key in self.steps],
            *[row[0] for row in self.reports],
            *[row[0] for row in self.lines],
        }

    def forget(self, ids: set[str]) -> None:
        """Remove all rows of these executions."""
        for rows in (self.executions, self.steps, self.attempts):
            for key in [key for key, row in rows.items() if row[0] in ids]:
                del rows[key]
        self.stacks = {key: row for key, row in self.stacks.items() if key[0] not in ids}
        self.reports = [row for row in self.reports if row[0] not in ids]
        self.lines = [row for row in self.lines if row[0] not in ids]
        self.ended -= ids
        self.reported -= ids

    def reassign(self, workflow_ids: Mapping[str, str]) -> None:
        """Give executions of some workflows to others, by id."""
        if not workflow_ids:
            return
        for key, row in self.executions.items():
            if (other := workflow_ids.get(row[_WORKFLOW_ID])) is not None:
                self.executions[key] = (*row[:_WORKFLOW_ID], other, *row[_WORKFLOW_ID + 1 :])

    def add(self, event: Event) -> None:
        """Fold one event in; none of a repetition that shares its row."""
        if event.execution.origin is Origin.REPORTED:
            self.reported.add(event.execution.execution_id)
        _fold(self, event)

    def _execution(self, ref: ExecutionRef, row: tuple[Any, ...]) -> None:
        self.workflows.setdefault((ref.workspace, ref.project, ref.workflow_id), ref)
        _put(self.executions, EXECUTION_ROWS, ref.execution_id, row)

    def queued(self, event: ExecutionQueued) -> None:
        at = event.time_ns
        row = _execution_row(
            event.execution, at, ExecutionStatus.PENDING, queued=at, process=event.process, inputs=event.inputs
        )
        self._execution(event.execution, row)

    def started(self, event: ExecutionStarted) -> None:
        at = event.time_ns
        row = _execution_row(
            event.execution, at, ExecutionStatus.RUNNING,
            started=at, process=event.process, inputs=event.inputs, counts=(event.step_count, 0, 0, 0),
        )  # fmt: skip
        self._execution(event.execution, row)
        if event.expects is not None:
            self._code_expects(event.execution, event.expects)

    def _code_expects(self, ref: ExecutionRef, expects: Expectation) -> None:
        key = ref.workspace, ref.workflow, CODE
        self.expects[key] = merged(self.expects.get(key), expects)

    def expected(self, event: WorkflowExpected) -> None:
        ref = event.execution
        self.workflows.setdefault((ref.workspace, ref.project, ref.workflow_id), ref)
        if event.source == CODE:
            if event.expects is not None:
                self._code_expects(ref, event.expects)
            return
        source = event.source if event.source in ENGINES else ENGINE
        self.expects[ref.workspace, ref.workflow, source] = event.expects

    def finished(self, event: ExecutionFinished) -> None:
        self.ended.add(event.execution.execution_id)
        row = _execution_row(
            event.execution, event.started_ns, event.status,
            started=event.started_ns, finished=event.time_ns, inputs=event.inputs, failure=event.failure,
            counts=(event.step_count, event.completed_step_count, event.failed_step_count, event.skipped_step_count),
            work=min(event.work_ns, MAX_NS),
            critical=min(sum(part.duration_ns for part in event.critical_path), MAX_NS),
            path=_encode([part.step_id for part in event.critical_path]).decode(),
        )  # fmt: skip
        self._execution(event.execution, row)

    def heartbeat(self, event: Heartbeat) -> None:
        key = event.execution.execution_id
        self.seen[key] = max(event.time_ns, self.seen.get(key, 0))
        before = self.heartbeats.get(key)
        if before is not None and before.long:
            # Several processes work for one execution, and each names its own attempts.
            event = replace(event, long=tuple({a.step_id: a for a in (*before.long, *event.long)}.values()))
        self.heartbeats[key] = event

    def step_stacks(self, event: StepStacks) -> None:
        key = (event.execution.execution_id, event.step.step_id, event.attempt, event.kind.value)
        known = self.stacks.get(key)
        if known is None or known["time_ns"] <= event.time_ns:
            self.stacks[key] = stacks.row_of(event)

    def _step(self, row: tuple[Any, ...]) -> None:
        _put(self.steps, STEP_ROWS, (row[0], row[1]), row)

    def step_ready(self, event: StepReady) -> None:
        self._step(
            _step_row(
                event.step,
                StepStatus.PENDING,
                0,
                ready=None if event.is_planned else event.time_ns,
                asked=event.asked_ns,
            )
        )

    def step_started(self, event: StepStarted) -> None:
        first = event.attempt == 1
        self._step(
            _step_row(
                event.step, StepStatus.RUNNING, event.attempt,
                ready=event.time_ns - event.queue_ns if first else None,
                asked=event.time_ns - event.queue_ns - event.scheduled_ns if first and event.scheduled_ns else None,
                started=event.time_ns if first else None, attempt_started=event.time_ns,
                waits=(event.dependency_ns if first else None, event.queue_ns, event.backoff_ns),
                unaccounted=event.unaccounted_ns if first else None,
                scheduled=event.scheduled_ns if first else None,
                inputs=event.inputs,
            )
        )  # fmt: skip

    def step_retrying(self, event: StepRetrying) -> None:
        first = event.attempt == 1
        self._step(
            _step_row(
                event.step, StepStatus.RETRYING, event.attempt,
                started=event.started_ns if first else None, attempt_started=event.started_ns,
                waits=(event.dependency_ns if first else None, event.queue_ns, event.backoff_ns),
                unaccounted=event.unaccounted_ns if first else None,
                scheduled=event.scheduled_ns if first else None,
                failure=event.failure,
            )
        )  # fmt: skip
        self._attempt(
            event.step, event.attempt, event.status, event.started_ns, event.time_ns,
            event.queue_ns, event.backoff_ns, event.failure, event.resources,
        )  # fmt: skip

    def step_finished(self, event: StepFinished) -> None:
        # Not `_step_row`: every step ends here, so this is the hot path.
        step, status, failure, attempt = event.step, event.status, event.failure, event.attempt
        execution_id, step_id = step.execution.execution_id, step.step_id
        started: int | None = event.started_ns
        attempt_started: int | None = event.attempt_started_ns
        if not attempt:
            # Taken back before it started: no attempt was made.
            started = attempt_started = None
        error_type, error_message, error_stack = _NO_ERROR
        if failure is not None:
            error_type, error_message, error_stack = failure.type[:300], failure.message, failure.stack
        row = (
            execution_id, step_id, step.name, step.step_type, step.step_order, step.index, step.parent_step_id,
            step.span_id, step.parent_span_id,
            _encode(step.depends_on).decode() if step.depends_on else _NO_DEPENDENCIES,
            step_rank(status, attempt), status._value_, attempt,
            event.started_ns - event.queue_ns if attempt == 1 else None,
            started, attempt_started, event.time_ns,
            event.dependency_ns, event.queue_ns, event.backoff_ns, event.run_ns,
            error_type, error_message, error_stack,
            None, event.inputs, event.output, step.child_execution_id, step.dependency_count, event.unaccounted_ns,
            None, None, step.map_index, None if event.resources is None else _resources(event.resources),
            event.scheduled_ns,
            event.started_ns - event.queue_ns - event.scheduled_ns if event.scheduled_ns and attempt == 1 else None,
        )  # fmt: skip
        key = (execution_id, step_id)
        old = self.steps.get(key)
        self.steps[key] = row if old is None else STEP_ROWS.merge(old, row)
        if attempt > 1 and not event.between_attempts:
            self._attempt(
                step, attempt, status, event.attempt_started_ns, event.time_ns,
                event.last_queue_ns, event.last_backoff_ns, failure, event.resources,
            )  # fmt: skip

    def step_skipped(self, event: StepSkipped) -> None:
        row = _step_row(
            event.step, StepStatus.SKIPPED, event.attempt, finished=event.time_ns, skip_reason=event.reason._value_
        )
        if event.started_ns is not None:
            times = {
                "started_ns": event.started_ns, "attempt_started_ns": event.started_ns,
                "dependency_ns": event.dependency_ns, "queue_ns": event.queue_ns, "backoff_ns": event.backoff_ns,
                "run_ns": event.run_ns, "unaccounted_ns": event.unaccounted_ns,
                "scheduled_ns": event.scheduled_ns,
            }  # fmt: skip
            row = tuple(times.get(str(name), value) for name, value in zip(STEP_ROWS.columns, row, strict=True))
        self._step(row)

    def steps_folded(self, event: StepsFolded) -> None:
        step, folded, status = event.step, event.folded, event.folded.status
        failure = folded.failure if status in UNSUCCESSFUL else None
        runs = folded.by_status.values()
        row = (
            step.execution.execution_id, step.step_id, step.name, step.step_type, step.step_order, step.index,
            step.parent_step_id, step.span_id, step.parent_span_id,
            _encode(step.depends_on).decode() if step.depends_on else _NO_DEPENDENCIES,
            folded_rank(folded.sequence, is_final=event.is_final), status._value_, 1, None,
            folded.started_ns, folded.started_ns, None if folded.running else folded.ended_ns,
            folded.dependency_ns, sum(r.queue_ns for r in runs), sum(r.backoff_ns for r in runs), folded.run_ns,
            *(_NO_ERROR if failure is None else (failure.type[:300], failure.message, failure.stack)),
            None, None, None, None, step.dependency_count, folded.unaccounted_ns,
            _encode(folded).decode(), folded.count, step.map_index, None, folded.scheduled_ns, None,
        )  # fmt: skip
        self._step(row)

    def _attempt(
        self, step: StepRef, attempt: int, status: StepStatus, started: int, finished: int, queue: int, backoff: int,
        failure: Failure | None, resources: Resources | None,
    ) -> None:  # fmt: skip
        row = (
            step.execution.execution_id, step.step_id, attempt, status._value_, started, finished, queue, backoff,
            failure.type[:300] if failure else None, failure.message if failure else None,
            failure.stack if failure else None, _resources(resources),
        )  # fmt: skip
        self.attempts.setdefault(row[:3], row)

    def report(self, event: StepReport) -> None:
        step = event.step
        head = (step.execution.execution_id, step.step_id, event.sequence, event.attempt)
        if isinstance(event, StepMeasured):
            self.reports.append((*head, "measure", event.time_ns, event.name, event.unit, event.value, 0, 0))
        elif isinstance(event, StepCost):
            tokens = (event.tokens_in, event.tokens_out)
            self.reports.append((*head, "cost", event.time_ns, event.model, "USD", event.usd, *tokens))
        else:
            self.reports.append((*head, "log", event.time_ns, event.message, event.level, 0.0, 0, 0))

    def step_lines(self, event: StepLines) -> None:
        head = (event.step.execution.execution_id, event.step.step_id, event.attempt, event.writer)
        self.lines += [
            (
                *head, line.number, line.time_ns, line.severity, line.logger, line.message,
                *(_NO_ERROR if (error := line.failure) is None else (error.type[:300], error.message, error.stack)),
            )
            for line in event.lines
        ]  # fmt: skip


_FOLD: Final = cast(
    "dict[type[Event], Callable[[Batch, Any], None]]",
    {
        ExecutionQueued: Batch.queued,
        ExecutionStarted: Batch.started,
        ExecutionFinished: Batch.finished,
        Heartbeat: Batch.heartbeat,
        WorkflowExpected: Batch.expected,
        StepReady: Batch.step_ready,
        StepStarted: Batch.step_started,
        StepRetrying: Batch.step_retrying,
        StepFinished: Batch.step_finished,
        StepSkipped: Batch.step_skipped,
        StepsFolded: Batch.steps_folded,
        StepStacks: Batch.step_stacks,
        StepMeasured: Batch.report,
        StepCost: Batch.report,
        StepLogged: Batch.report,
        StepLines: Batch.step_lines,
    },
)


def _fold(batch: Batch, event: Event) -> None:
    _FOLD[type(event)](batch, event)


_OF_REPETITIONS: Final = frozenset(
    {StepReady, StepStarted, StepRetrying, StepFinished, StepSkipped, StepMeasured, StepCost, StepLogged}
)


def _resources(resources: Resources | None) -> str | None:
    return None if resources is None else _encode(resources).decode()


def _put(rows: dict[Any, tuple[Any, ...]], kind: Rows, key: Any, row: tuple[Any, ...]) -> None:
    old = rows.get(key)
    rows[key] = row if old is None else kind.merge(old, row)


def _execution_row(
    ref: ExecutionRef,
    created: int,
    status: ExecutionStatus,
    *,
    queued: int | None = None,
    started: int | None = None,
    finished: int | None = None,
    process: str | None = None,
    counts: tuple[int, int, int, int] = (0, 0, 0, 0),
    work: int | None = None,
    critical: int | None = None,
    failure: Failure | None = None,
    inputs: str | None = None,
    path: str | None = None,
) -> tuple[Any, ...]:
    return (
        ref.execution_id, workspace_id(ref.workspace), ref.project, ref.workflow_id, ref.workflow, ref.version,
        ref.trace_id, ref.span_id, ref.parent_span_id, created, execution_rank(status), status._value_,
        queued, started, finished, finished or created, process or None, *counts, work, critical,
        failure.type[:300] if failure else None,
        failure.message if failure else None,
        failure.stack if failure else None,
        inputs, path, ref.parent_execution_id, ref.parent_step_id, None,
    )  # fmt: skip


def _step_row(
    step: StepRef,
    status: StepStatus,
    attempt: int,
    *,
    ready: int | None = None,
    started: int | None = None,
    attempt_started: int | None = None,
    finished: int | None = None,
    waits: tuple[int | None, int | None, int | None] = (None, None, None),
    unaccounted: int | None = None,
    scheduled: int | None = None,
    asked: int | None = None,
    failure: Failure | None = None,
    skip_reason: str | None = None,
    inputs: str | None = None,
) -> tuple[Any, ...]:
    """The row of a step that has not finished: no run time and no output (see `Batch.step_finished`)."""
    error: tuple[str | None, str | None, str | None] = _NO_ERROR
    if failure is not None:
        error = (failure.type[:300], failure.message, failure.stack)
    depends_on = _encode(step.depends_on).decode() if step.depends_on else _NO_DEPENDENCIES
    return (
        step.execution.execution_id, step.step_id, step.name, step.step_type, step.step_order, step.index,
        step.parent_step_id, step.span_id, step.parent_span_id, depends_on, step_rank(status, attempt),
        status._value_, attempt, ready, started, attempt_started, finished, *waits, None, *error,
        skip_reason, inputs, None, step.child_execution_id, step.dependency_count, unaccounted, None, None,
        step.map_index, None, scheduled, asked,
    )  # fmt: skip
