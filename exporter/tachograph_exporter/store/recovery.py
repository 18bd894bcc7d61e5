"""Closes what a dead process left open: executions and steps end as ``lost``, when the process was last seen.

An execution is lost when its process is known to be gone (same host, boot and PID namespace, no such process), or when
no heartbeat came within the lease, measured on the clock of whoever looks (see `Silences`). The closing events carry
the stored ids, so spans end under their real parent, and they go through the recorder like any other event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.critical_path import critical_path_of
from tachograph.events import (
    FAILED,
    Event,
    ExecutionFinished,
    ExecutionStatus,
    Failure,
    Folded,
    SkipReason,
    StepFinished,
    StepsFolded,
    StepSkipped,
    StepStatus,
)
from tachograph.folding import Fold
from tachograph.identity import ExecutionRef, Origin, StepRef, new_span_id
from tachograph.process import identity, is_alive
from tachograph.quiet_log import QuietLog
from tachograph.recording.recorder import LEASE_SECONDS
from tachograph.reported_process import ReportedProcess
from tachograph.run_window import RunWindow, placed
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import open_spans, trace_groups
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.reported import Progress, progress_of
from tachograph_exporter.store.steps import StoredStep, by_step, steps_of

quiet = QuietLog(logging.getLogger(__name__))

INGEST_LEASE_SECONDS: Final = 3600.0
"""Lease of such an execution, from its latest span. Long, because a span arrives only when its step has ended; of spans
that arrive when they start there are leases of their own (see `open_spans`)."""
PING_PROCESS: Final = "ping"
"""The process of an execution that pings report, before a slash and its own id, if it has one."""
PING_LEASE_SECONDS: Final = 48 * 3600.0
"""Lease of such an execution, from its last ping: nobody sends heartbeats of it."""
MAX_GAP_SECONDS: Final = 15.0
"""How much silence passes between two looks at most: longer than the service takes from one to the next."""
LOST: Final = Failure("Lost", "its process died: no sign of life since")


class LostRun(NamedTuple):
    """What is stored of a lost execution."""

    execution: Row[Any]
    steps: Sequence[StoredStep]
    attempts: Sequence[Row[Any]]


class Silences:
    """How long open executions (or spans) have been silent, on this process's own clock.

    Heartbeats carry the time of the host that sent them, which may be minutes behind; so silence is how long the newest
    one has stayed the same while this process looked. Time in which it did not look (the database was away, the machine
    slept) counts as ``max_gap_seconds`` at most: nobody could be heard then.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, max_gap_seconds: float = MAX_GAP_SECONDS
    ) -> None:
        self._clock = clock
        self._max_gap_seconds = max_gap_seconds
        self._looked_at: float | None = None
        self._silent: dict[Hashable, tuple[int, float]] = {}

    def look(self, seen: Iterable[tuple[Hashable, int]]) -> dict[Hashable, float]:
        """Seconds of silence, by key. Call it again and again, with all that is open and when it was seen."""
        now = self._clock()
        passed = min(now - self._looked_at, self._max_gap_seconds) if self._looked_at is not None else 0.0
        self._looked_at = now
        silent: dict[Hashable, tuple[int, float]] = {}
        for key, now_seen_ns in seen:
            seen_ns, seconds = self._silent.get(key, (-1, 0.0))
            silent[key] = (now_seen_ns, seconds + passed if seen_ns == now_seen_ns else 0.0)
        self._silent = silent
        return {key: seconds for key, (_, seconds) in silent.items()}


def find_lost(
    connection: Connection,
    now_ns: int,
    *,
    lease_seconds: float = LEASE_SECONDS,
    silences: Silences | None = None,
) -> list[LostRun]:
    """Open executions whose process is gone, with their steps and ended attempts.

    Without ``silences``, the times of their heartbeats are compared with ``now_ns``.
    """
    lost = []
    alive: dict[str, bool | None] = {identity(): True}
    rows = execution_rows.open_executions(connection)
    reported = {row.execution_id: told for row in rows if (told := ReportedProcess.parse(row.process or ""))}
    progress = progress_of(connection, list(reported))
    seen = {row.execution_id: row.last_seen_ns for row in rows}
    for execution_id, of_steps in progress.items():
        seen[execution_id] = max(seen[execution_id], of_steps.seen_ns)
    silent = silences.look(seen.items()) if silences is not None else {}
    for row in rows:
        process = row.process or ""
        if process not in alive:
            alive[process] = is_alive(process)
        state = alive[process]
        told = reported.get(row.execution_id)
        long_lease = _long_lease(process) if told is None else _lease_of(told, progress.get(row.execution_id))
        lease, is_long = (lease_seconds, False) if long_lease is None else (long_lease, True)
        expired = seen[row.execution_id] < now_ns - round(lease * NS)
        if silences is not None:
            is_silent = silent[row.execution_id] >= min(lease, lease_seconds)
            # Spans come when their step has ended, so theirs is a silence of hours, and survives a restart; as pings.
            expired = is_silent and (expired or not is_long)
        if expired and process == INGESTED_PROCESS and row.trace_id is not None:
            # Heartbeats of its spans do not touch its row.
            told_by = trace_groups.traces_beside(connection, row.workspace_id, row.trace_id)
            expired = not any(open_spans.is_alive(connection, row.workspace_id, trace_id) for trace_id in told_by)
        # On another host, or where the process cannot be checked, the lease decides.
        if state is False or (state is None and expired):
            attempts = execution_rows.attempts(connection, row.execution_id)
            try:
                steps = steps_of(connection, row.execution_id)
            except (msgspec.MsgspecError, ValueError):  # What one row has cannot be read.
                steps, attempts = [], []
            lost.append(LostRun(row, steps, attempts))
    return lost


def _long_lease(process: str) -> float | None:
    """The lease of an execution of which nobody sends heartbeats; None for those of a process."""
    if process == INGESTED_PROCESS:
        return INGEST_LEASE_SECONDS
    # A process has four parts.
    is_ping = process.partition("/")[0] == PING_PROCESS and process.count("/") <= 1
    return PING_LEASE_SECONDS if is_ping else None


def _lease_of(told: ReportedProcess, steps: Progress | None) -> float | None:
    """The lease of an execution that an engine reports; None for the usual one."""
    lease: float = told.lease_seconds
    if told.queue_seconds is not None and (steps is None or not steps.running):
        # Nothing of it runs, so no process sends heartbeats.
        lease = told.queue_seconds
    return None if lease <= LEASE_SECONDS else lease


class Closing:
    """Closes lost executions, also those whose rows make no sense: such a one is closed without its steps."""

    def __init__(self) -> None:
        self._closed: dict[str, None] = {}

    def events(self, run: LostRun) -> list[Event]:
        """The events that close it."""
        execution_id = run.execution.execution_id
        if execution_id not in self._closed:
            try:
                return list(lost_events(*run))
            except Exception as error:
                quiet.exception(type(error), "the steps of the lost execution %s cannot be closed", execution_id)
        return list(lost_events(run.execution, ()))

    def delivered(self, runs: Iterable[LostRun]) -> None:
        """The store has received their events. If they are found again, it has refused some of them."""
        self._closed = dict.fromkeys(run.execution.execution_id for run in runs)


def lost_events(execution: Row[Any], steps: Sequence[StoredStep], attempts: Sequence[Row[Any]] = ()) -> Iterator[Event]:
    """The events that close a lost execution: its open steps, then itself."""
    ref = ExecutionRef(
        workspace=execution.workspace,
        workflow=execution.workflow,
        workflow_id=execution.workflow_id,
        execution_id=execution.execution_id,
        trace_id=execution.trace_id,
        span_id=execution.span_id,
        parent_span_id=execution.parent_span_id,
        version=execution.version,
        project=execution.project,
        origin=_origin_of(execution.process or ""),
        parent_execution_id=execution.parent_execution_id,
        parent_step_id=execution.parent_step_id,
    )
    attempts_by_step = by_step(attempts)
    times = [t for s in steps for t in (s.attempt_started_ns, s.finished_ns, s.ready_ns) if t]
    seen_ns = max([execution.last_seen_ns, *times, *[attempt.finished_ns for attempt in attempts]])
    started_ns = execution.started_ns or execution.created_ns
    spans = {step.step_id: step.span_id for step in steps}
    steps_by_id = {step.step_id: step for step in steps}
    counts = dict.fromkeys(StepStatus, 0)
    timed: list[StoredStep] = []
    work_ns = 0
    for step in steps:
        status = StepStatus(step.status)
        finished_ns = step.finished_ns
        if step.folded is not None:
            events = list(_lost_folded(ref, step, step.folded, spans, seen_ns))
            yield from events
            folded = cast(StepsFolded, events[-1]).folded
            for ended, runs in folded.by_status.items():
                counts[StepStatus(ended)] += runs.count
            if step.parent_step_id is None:
                work_ns += folded.run_ns
            timed.append(msgspec.structs.replace(step, finished_ns=folded.ended_ns, folded=folded))
            continue
        if not status.is_terminal and ref.origin is Origin.REPORTED and step.attempt_started_ns is None:
            # A worker may still run it. What became of it meanwhile is settled in the store, and may be replaced.
            status = StepStatus.SKIPPED
        elif not status.is_terminal:
            outer = steps_by_id.get(step.parent_step_id or "")
            origin_ns = (outer.started_ns if outer is not None else None) or started_ns
            event = _lost_step(ref, step, attempts_by_step.get(step.step_id, ()), spans, seen_ns, origin_ns)
            yield event
            status = StepStatus.SKIPPED if isinstance(event, StepSkipped) else StepStatus.LOST
            finished_ns = seen_ns
            if isinstance(event, StepFinished) and step.parent_step_id is None:
                work_ns += event.run_ns
        elif step.parent_step_id is None:
            work_ns += step.run_ns or 0
        counts[status] += 1
        timed.append(msgspec.structs.replace(step, finished_ns=finished_ns))
    yield ExecutionFinished(
        execution=ref,
        time_ns=seen_ns,
        status=ExecutionStatus.LOST,
        started_ns=started_ns,
        step_count=max(sum(counts.values()), execution.step_count),
        completed_step_count=counts[StepStatus.COMPLETED],
        failed_step_count=sum(count for status, count in counts.items() if status in FAILED),
        skipped_step_count=counts[StepStatus.SKIPPED],
        work_ns=work_ns,
        critical_path=critical_path_of(placed(timed, RunWindow(started_ns, max(started_ns, seen_ns)))),
        failure=LOST,
        inputs=execution.inputs,
    )


def _origin_of(process: str) -> Origin:
    if process == INGESTED_PROCESS:
        return Origin.INGESTED
    return Origin.RECORDED if ReportedProcess.parse(process) is None else Origin.REPORTED


def _lost_folded(
    ref: ExecutionRef, row: StoredStep, folded: Folded, spans: Mapping[str, str], seen_ns: int
) -> Iterator[StepFinished | StepsFolded]:
    """The ends of the repetitions that ran, and what all of them add up to: no more than was said in time."""
    step = msgspec.structs.replace(_step_ref(ref, row, spans), folded_as=row.name)
    if folded.running:
        fold = Fold.resumed(step, folded)
        since_ns = min(folded.running_since_ns, seen_ns)
        for _ in range(folded.running):
            lost = StepAttempts.resumed(
                msgspec.structs.replace(step, span_id=new_span_id()),
                attempt=1,
                started_ns=since_ns,
                attempt_started_ns=since_ns,
                since_ns=since_ns,
                is_running=True,
            ).finished(seen_ns, StepStatus.LOST, LOST)
            fold.note(lost)
            yield lost
        folded = fold.folded()
    yield StepsFolded(step=step, time_ns=seen_ns, folded=folded, is_final=True)


def _lost_step(
    ref: ExecutionRef,
    row: StoredStep,
    stored: Sequence[Row[Any]],
    spans: Mapping[str, str],
    seen_ns: int,
    origin_ns: int,
) -> StepFinished | StepSkipped:
    step = _step_ref(ref, row, spans)
    if row.attempt_started_ns is None:
        if ref.origin is not Origin.INGESTED:
            return StepSkipped(step=step, time_ns=seen_ns, reason=SkipReason.EXECUTION_LOST)
        # It was asked for. Whether it ran only a span of it could say, and that comes when it has ended.
        unheard = StepAttempts(step, origin_ns)
        unheard.ready(row.ready_ns or seen_ns)
        unheard.started(seen_ns)
        return unheard.finished(seen_ns, StepStatus.LOST, LOST)
    is_running = row.status != StepStatus.RETRYING
    started_ns = row.started_ns or row.attempt_started_ns
    ended = [attempt for attempt in stored if attempt.attempt < row.attempt or not is_running]
    last_ended_ns = max([attempt.finished_ns for attempt in ended], default=row.attempt_started_ns)
    since_ns = row.attempt_started_ns if is_running else last_ended_ns
    # Until a step ends, its row has the waits of its newest attempt only; those of the others are in their own rows.
    queue_ns = row.queue_ns or 0
    later_queue_ns = queue_ns if row.attempt > 1 else 0
    for attempt in ended:
        if attempt.attempt != row.attempt:
            queue_ns += attempt.queue_ns
            later_queue_ns += attempt.queue_ns if attempt.attempt > 1 else 0
    elapsed_ns = max(0, since_ns - started_ns)
    run_ns = min(sum(max(0, attempt.finished_ns - attempt.started_ns) for attempt in ended), elapsed_ns)
    attempts = StepAttempts.resumed(
        step,
        attempt=row.attempt,
        started_ns=started_ns,
        attempt_started_ns=row.attempt_started_ns,
        since_ns=since_ns,
        is_running=is_running,
        dependency_ns=row.dependency_ns or 0,
        unaccounted_ns=row.unaccounted_ns or 0,
        scheduled_ns=row.scheduled_ns or 0,
        queue_ns=queue_ns,
        # What is left of the time since the first attempt; so the parts add up, though an attempt was not stored.
        backoff_ns=max(0, elapsed_ns - run_ns - later_queue_ns),
        run_ns=run_ns,
        last_queue_ns=row.queue_ns or 0,
        last_backoff_ns=row.backoff_ns or 0,
        inputs=row.inputs,
    )
    return attempts.finished(seen_ns, StepStatus.LOST, LOST)


def _step_ref(ref: ExecutionRef, row: StoredStep, spans: Mapping[str, str]) -> StepRef:
    depends_on = tuple(row.depends_on)
    return StepRef(
        execution=ref,
        step_id=row.step_id,
        name=row.name,
        span_id=row.span_id,
        parent_span_id=row.parent_span_id,
        step_type=row.step_type,
        step_order=row.step_order,
        index=row.repetition,
        depends_on=depends_on,
        links=tuple(spans[d] for d in depends_on if d in spans),
        parent_step_id=row.parent_step_id,
        child_execution_id=row.child_execution_id,
        dependency_count=row.dependency_count,
        map_index=row.map_index,
    )
