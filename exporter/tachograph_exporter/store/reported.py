"""Executions that engines report: which of them are over, though no process says so.

An engine whose work waits in a queue (Celery) has no process that knows when a run ends: each knows the task that it
runs, and what that one sent. Whatever a task sends is stored as a step before the task ends. So when every step has
ended, and nothing was heard for a moment, the run has ended; if something comes late after all, the run's row follows
(see `settling`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

from sqlalchemy import Connection, Row, bindparam, case, func, select, text

from tachograph.events import Event, ExecutionFinished, ExecutionStatus, Failure, StepStatus
from tachograph.identity import ExecutionRef, Origin
from tachograph.reported_process import ReportedProcess
from tachograph_exporter.store.executions import EXECUTION_COLUMNS, IS_OPEN
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions, workspaces
from tachograph_exporter.store.steps import StoredStep, steps_of

QUIET_SECONDS: Final = 2.0
"""How long nothing may be heard of an execution whose steps have all ended until it has, too."""
MAX_QUIET: Final = 1_000
"""Executions that are ended at a time."""
_CHUNK: Final = 500
_steps = workflow_step_executions.c
_executions = workflow_executions.c


class Progress(NamedTuple):
    """What the steps of an execution say: when one last changed (unix ns), and how many are in which state.

    ``waiting``: queued, or between two attempts. ``planned``: nothing has asked for them.
    """

    seen_ns: int = 0
    steps: int = 0
    running: int = 0
    waiting: int = 0
    planned: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether there were steps, and none of them goes on."""
        return self.steps > self.planned and not self.running and not self.waiting


def _count(condition: Any) -> Any:
    return func.sum(case((condition, 1), else_=0))


_moment = func.coalesce(_steps.finished_ns, _steps.attempt_started_ns, _steps.ready_ns, 0)
_is_pending = _steps.status == StepStatus.PENDING
_PROGRESS: Final = (
    select(
        _steps.execution_id,
        func.max(_moment),
        func.count(),
        _count(_steps.status == StepStatus.RUNNING),
        _count((_steps.status == StepStatus.RETRYING) | (_is_pending & _steps.ready_ns.is_not(None))),
        _count(_is_pending & _steps.ready_ns.is_(None)),
    )
    .where(_steps.execution_id.in_(bindparam("ids", expanding=True)))
    .group_by(_steps.execution_id)
)
_OPEN: Final = (
    select(*EXECUTION_COLUMNS, workspaces.c.slug.label("workspace"))
    .join(workspaces, workspaces.c.id == _executions.workspace_id)
    .where(IS_OPEN, _executions.process.like("report/%"))
    .order_by(text("workflow_executions.last_seen_ns"))
)


class Looking(Protocol):
    """`store.recovery.Silences`."""

    def look(self, seen: Iterable[tuple[Any, int]]) -> dict[Any, float]: ...


def progress_of(connection: Connection, ids: Sequence[str]) -> dict[str, Progress]:
    """What the steps of these executions say, by execution id; those without steps are left out."""
    progress = {}
    for i in range(0, len(ids), _CHUNK):
        for row in connection.execute(_PROGRESS, {"ids": ids[i : i + _CHUNK]}):
            progress[row[0]] = Progress(*[int(value or 0) for value in row[1:]])
    return progress


class QuietRun(NamedTuple):
    """An execution that is over, and its steps."""

    execution: Row[Any]
    steps: Sequence[StoredStep]


def find_quiet(connection: Connection, silences: Looking) -> list[QuietRun]:
    """Open executions whose steps have all ended, and of which nothing was heard for `QUIET_SECONDS`."""
    rows = [
        row
        for row in connection.execute(_OPEN)
        if (process := ReportedProcess.parse(row.process)) is not None and process.queue_seconds is not None
    ]
    progress = progress_of(connection, [row.execution_id for row in rows])
    over = [row for row in rows if progress.get(row.execution_id, Progress()).has_ended]
    silent = silences.look(
        (row.execution_id, progress[row.execution_id].seen_ns + progress[row.execution_id].steps) for row in over
    )
    quiet = [row for row in over if silent[row.execution_id] >= QUIET_SECONDS]
    return [QuietRun(cast(Any, row), steps_of(connection, row.execution_id)) for row in quiet[:MAX_QUIET]]


def outcome_of(steps: Iterable[StoredStep]) -> tuple[ExecutionStatus, Failure | None]:
    """How a run ended whose steps ended like this: as the worst of them."""
    by_status: dict[str, StoredStep] = {}
    for step in sorted(steps, key=lambda step: step.finished_ns or 0):
        by_status.setdefault(step.status, step)
    for status in (ExecutionStatus.FAILED, ExecutionStatus.TIMEOUT, ExecutionStatus.LOST, ExecutionStatus.CANCELLED):
        worst = by_status.get(status.value)
        if worst is not None:
            failure = None
            if worst.error_type is not None or worst.error_message is not None:
                failure = Failure(worst.error_type or "Error", worst.error_message or "", worst.error_stack)
            return status, failure
    return ExecutionStatus.COMPLETED, None


def quiet_events(run: QuietRun) -> Iterator[Event]:
    """The end of an execution that is over. What the store knows of its steps is added there (see `settling`)."""
    execution, steps = run
    status, failure = outcome_of(steps)
    moments = [step.finished_ns for step in steps if step.finished_ns is not None]
    starts = [step.started_ns for step in steps if step.started_ns is not None]
    started_ns = execution.started_ns or min(starts, default=execution.created_ns)
    yield ExecutionFinished(
        execution=reported_ref(execution),
        time_ns=max([started_ns, *moments]),
        status=status,
        started_ns=started_ns,
        step_count=len(steps),
        completed_step_count=sum(step.status == StepStatus.COMPLETED for step in steps),
        failure=failure,
        inputs=execution.inputs,
    )


def reported_ref(execution: Row[Any]) -> ExecutionRef:
    """The reference to a reported execution. ``execution`` has its workspace's slug as ``workspace``."""
    return ExecutionRef(
        workspace=execution.workspace,
        workflow=execution.workflow,
        workflow_id=execution.workflow_id,
        execution_id=execution.execution_id,
        trace_id=execution.trace_id,
        span_id=execution.span_id,
        parent_span_id=execution.parent_span_id,
        version=execution.version,
        project=execution.project,
        origin=Origin.REPORTED,
        parent_execution_id=execution.parent_execution_id,
        parent_step_id=execution.parent_step_id,
    )
