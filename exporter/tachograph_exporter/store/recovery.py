"""What a dead process left open is closed as ``lost``, at the time it was last seen.

An execution is lost when its process is known to be gone (same host and boot, no such process), or when no heartbeat
came within the lease. The closing events carry the ids stored when things started, so spans end under their real
parent, and they go through the recorder like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.critical_path import path_of
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStatus,
    Failure,
    SkipReason,
    StepFinished,
    StepSkipped,
    StepStatus,
)
from tachograph.identity import ExecutionRef, Origin, StepRef
from tachograph.process import identity, is_alive
from tachograph.recording.recorder import LEASE_SECONDS
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.steps import StoredStep, steps_of

INGESTED: Final = "otlp"
"""What stands for the process of an execution that is put together from spans."""
INGEST_LEASE_SECONDS: Final = 3600.0
"""After how long without a new span such an execution counts as lost: a step tells of itself when it has ended."""
LOST: Final = Failure("Lost", "its process died: no sign of life since")


def find_lost(
    connection: Connection, now_ns: int, *, lease_seconds: float = LEASE_SECONDS
) -> list[tuple[Row[Any], list[StoredStep]]]:
    """Open executions whose process is gone, with their steps."""
    found = []
    alive: dict[str, bool | None] = {identity(): True}
    for row in execution_rows.open_executions(connection):
        process = row.process or ""
        if process not in alive:
            alive[process] = is_alive(process)
        state = alive[process]
        lease = INGEST_LEASE_SECONDS if process == INGESTED else lease_seconds
        expired = row.last_seen_ns < now_ns - round(lease * NS)
        # Another host, or one that cannot tell: the lease decides.
        if state is False or (state is None and expired):
            found.append((row, steps_of(connection, row.execution_id)))
    return found


def lost_events(execution: Row[Any], steps: Sequence[StoredStep]) -> Iterator[Event]:
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
        origin=Origin.INGESTED if execution.process == INGESTED else Origin.RECORDED,
    )
    seen = max(
        [execution.last_seen_ns, *(t for s in steps for t in (s.attempt_started_ns, s.finished_ns, s.ready_ns) if t)]
    )
    spans = {step.step_id: step.span_id for step in steps}
    counts = dict.fromkeys(StepStatus, 0)
    timed: list[StoredStep] = []
    work = 0
    for step in steps:
        status = StepStatus(step.status)
        finished = step.finished_ns
        if not status.is_terminal:
            event = _lost_step(ref, step, spans, seen)
            yield event
            status = StepStatus.SKIPPED if isinstance(event, StepSkipped) else StepStatus.LOST
            finished = seen
            work += event.run_ns if isinstance(event, StepFinished) else 0
        elif step.parent_step_id is None:
            work += step.run_ns or 0
        counts[status] += 1
        timed.append(msgspec.structs.replace(step, finished_ns=finished))
    yield ExecutionFinished(
        execution=ref,
        time_ns=seen,
        status=ExecutionStatus.LOST,
        started_ns=execution.started_ns or execution.created_ns,
        step_count=max(len(steps), execution.step_count),
        completed_step_count=counts[StepStatus.COMPLETED],
        failed_step_count=counts[StepStatus.FAILED] + counts[StepStatus.TIMEOUT],
        skipped_step_count=counts[StepStatus.SKIPPED],
        work_ns=work,
        critical_path=path_of(timed),
        failure=LOST,
        inputs=execution.inputs,
    )


def _lost_step(ref: ExecutionRef, row: StoredStep, spans: Mapping[str, str], seen: int) -> StepFinished | StepSkipped:
    depends_on = tuple(row.depends_on)
    step = StepRef(
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
    )
    if row.attempt_started_ns is None:
        return StepSkipped(step=step, time_ns=seen, reason=SkipReason.EXECUTION_LOST)
    started = row.started_ns or row.attempt_started_ns
    is_between = row.status == StepStatus.RETRYING
    return StepFinished(
        step=step,
        time_ns=seen,
        status=StepStatus.LOST,
        attempt=row.attempt,
        started_ns=started,
        attempt_started_ns=row.attempt_started_ns,
        dependency_ns=row.dependency_ns or 0,
        queue_ns=row.queue_ns or 0,
        backoff_ns=row.backoff_ns or 0,
        run_ns=0 if is_between else seen - row.attempt_started_ns,
        last_queue_ns=row.queue_ns or 0,
        last_backoff_ns=row.backoff_ns or 0,
        between_attempts=is_between,
        failure=LOST,
        inputs=row.inputs,
    )
