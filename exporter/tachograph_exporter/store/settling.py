"""Settles reported executions that have ended: what no single process knew of them.

Each process reports what it sees of a run: one its start, others a step each. What concerns several of them follows
from the moments in the rows, and is computed here whenever such rows change: the waits of each step, how many steps
ended how, the work and the critical path; and what became of steps that never ended.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace
from sqlalchemy import BigInteger, Connection, Row, bindparam, func, select, update

from tachograph.critical_path import critical_path_of
from tachograph.events import FAILED, UNSUCCESSFUL, ExecutionStatus, Failure, SkipReason, StepStatus
from tachograph.identity import ExecutionRef, StepRef
from tachograph.recording.open_execution import ABANDONED
from tachograph.reported_process import ReportedProcess
from tachograph.run_window import RunWindow, placed
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.store import executions
from tachograph_exporter.store.merging import (
    FIRST_TERMINAL_RANK,
    FIRST_TERMINAL_STEP_RANK,
    encode_ids,
    execution_rank,
    step_rank,
)
from tachograph_exporter.store.reported import outcome_of
from tachograph_exporter.store.schema import workflow_executions, workflow_step_attempts, workflow_step_executions
from tachograph_exporter.store.steps import StoredStep, by_step, status_counts, steps_of

_CHUNK: Final = 500
_executions = workflow_executions.c
_steps = workflow_step_executions.c
_ENDED: Final = select(workflow_executions).where(
    _executions.rank >= FIRST_TERMINAL_RANK, _executions.execution_id.in_(bindparam("ids", expanding=True))
)
_CLOSED_HERE: Final = select(_steps.step_id).where(
    _steps.execution_id == bindparam("id"),
    _steps.rank == FIRST_TERMINAL_STEP_RANK,
    _steps.status.in_((StepStatus.SKIPPED, StepStatus.COMPLETED)) | (_steps.error_type == ABANDONED.type),
)
_ENDS_WITH_ALL: Final = frozenset({"airflow"})
"""Engines that call a run completed only when all that ran in it has ended, and that do not tell of each end: of a task
of Airflow that its trigger ends, no hook hears."""
_STEP_FIELDS: Final = (
    "status", "finished_ns", "dependency_ns", "unaccounted_ns", "scheduled_ns", "queue_ns", "backoff_ns", "run_ns",
    "skip_reason", "error_type", "error_message",
)  # fmt: skip
_SET_STEP: Final = (
    update(workflow_step_executions)
    .where(_steps.execution_id == bindparam("of_execution"), _steps.step_id == bindparam("of_step"))
    .values(
        {name: bindparam(f"new_{name}") for name in _STEP_FIELDS}
        | {"rank": func.coalesce(bindparam("new_rank", type_=BigInteger), _steps.rank)}
    )
)
_OF_END: Final = ("finished_ns", "skip_reason", "error_type", "error_message", "error_stack", "run_ns")
"""What only a step has that has ended."""
_attempts: Final = workflow_step_attempts.c
_SET_ATTEMPT: Final = (
    update(workflow_step_attempts)
    .where(
        _attempts.execution_id == bindparam("of_execution"),
        _attempts.step_id == bindparam("of_step"),
        _attempts.attempt == bindparam("of_attempt"),
    )
    .values(started_ns=bindparam("new_started_ns"))
)
_EXECUTION_FIELDS: Final = (
    "rank", "status", "finished_ns", "step_count", "completed_step_count", "failed_step_count", "skipped_step_count",
    "work_ns", "critical_path_ns", "critical_path", "error_type", "error_message", "error_stack",
)  # fmt: skip
_SET_EXECUTION: Final = (
    update(workflow_executions)
    .where(_executions.execution_id == bindparam("of_execution"))
    .values({name: bindparam(f"new_{name}") for name in _EXECUTION_FIELDS})
)
_STOPPED: Final = {
    ExecutionStatus.CANCELLED: SkipReason.EXECUTION_CANCELLED,
    ExecutionStatus.TIMEOUT: SkipReason.EXECUTION_TIMEOUT,
    ExecutionStatus.LOST: SkipReason.EXECUTION_LOST,
}
# The accounting of moments needs no step, only the events that it makes do.
_REF: Final = StepRef(
    execution=ExecutionRef(workspace="", workflow="", workflow_id="", execution_id="", trace_id="", span_id=""),
    step_id="", name="", span_id="", parent_span_id="",
)  # fmt: skip


class Settled(NamedTuple):
    """What is to be written of an execution: values of its own row, and of rows of its steps by step id."""

    execution: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]
    attempts: Mapping[tuple[str, int], int]
    """When attempts began of which only others than those who told of their end said that: by step id and number."""


class _Try(NamedTuple):
    """An attempt that has ended."""

    attempt: int
    started_ns: int
    finished_ns: int
    queue_ns: int


def settle(connection: Connection, ids: Collection[str], over: Container[str] = ()) -> dict[str, int]:
    """Settle those of these reported executions that have ended. The caller holds the writers' lock.

    ``over``: those that had ended before. Returns those of them that go on, and when they had started: that they had
    ended was only inferred, and something has begun since. They are open again.
    """
    ordered = sorted(ids)
    resumed: dict[str, int] = {}
    for i in range(0, len(ordered), _CHUNK):
        for row in connection.execute(_ENDED, {"ids": ordered[i : i + _CHUNK]}).all():
            of_execution = row.execution_id
            attempts = by_step(executions.attempts(connection, of_execution))
            closed_here = set(connection.execute(_CLOSED_HERE, {"id": of_execution}).scalars())
            steps = steps_of(connection, of_execution)
            if of_execution in over and _goes_on(row, steps, closed_here):
                _resume(connection, of_execution, [step for step in steps if step.step_id in closed_here])
                resumed[of_execution] = row.started_ns or row.created_ns
                continue
            settled = settled_run(row, steps, attempts, closed_here)
            if settled.steps:
                parameters = [
                    {"of_execution": of_execution, "of_step": step_id, **{f"new_{k}": v for k, v in values.items()}}
                    for step_id, values in settled.steps.items()
                ]
                connection.execute(_SET_STEP, parameters)
            if settled.attempts:
                connection.execute(
                    _SET_ATTEMPT,
                    [
                        {
                            "of_execution": of_execution,
                            "of_step": step_id,
                            "of_attempt": number,
                            "new_started_ns": began,
                        }
                        for (step_id, number), began in settled.attempts.items()
                    ],
                )
            new = {f"new_{name}": value for name, value in settled.execution.items()}
            connection.execute(_SET_EXECUTION, {"of_execution": of_execution, **new})
    return resumed


def _goes_on(execution: Row[Any], steps: Iterable[StoredStep], closed_here: Container[str]) -> bool:
    """Whether a step has begun, or was asked for, since it was inferred that an execution had ended."""
    process = ReportedProcess.parse(execution.process or "")
    if process is None or process.queue_seconds is None or execution.status == ExecutionStatus.LOST:
        return False
    for step in steps:
        if step.step_id in closed_here:
            # It was not said to start; its row keeps what was inferred of it, and when it started after all.
            if step.status == StepStatus.SKIPPED and step.started_ns is not None:
                return True
        elif not StepStatus(step.status).is_terminal and (step.attempt_started_ns or step.ready_ns) is not None:
            return True
    return False


def _resume(connection: Connection, execution_id: str, closed: Iterable[StoredStep]) -> None:
    """Open an execution again. ``closed``: those of its steps that had only ended because it had."""
    for step in closed:
        has_begun = step.started_ns is not None
        attempt = max(step.attempt, 1) if has_begun else 0
        status = StepStatus.RUNNING if has_begun else StepStatus.PENDING
        values: dict[str, Any] = dict.fromkeys(_OF_END)
        values |= {"status": status, "rank": step_rank(status, attempt), "attempt": attempt}
        values["attempt_started_ns"] = step.attempt_started_ns or step.started_ns
        is_step = (_steps.execution_id == execution_id) & (_steps.step_id == step.step_id)
        connection.execute(update(workflow_step_executions).where(is_step).values(values))
    new: dict[str, Any] = {f"new_{name}": 0 if name.endswith("_count") else None for name in _EXECUTION_FIELDS}
    new |= {"new_rank": execution_rank(ExecutionStatus.RUNNING), "new_status": ExecutionStatus.RUNNING}
    connection.execute(_SET_EXECUTION, {"of_execution": execution_id, **new})


def settled_run(
    execution: Row[Any],
    steps: Sequence[StoredStep],
    attempts: Mapping[str, Sequence[Row[Any]]],
    closed_here: Collection[str] = (),
) -> Settled:
    """What follows from the moments that are stored of an ended execution.

    ``attempts``: by step id. ``closed_here``: ids of steps that nobody ended, and that were settled before.
    """
    started_ns, finished_ns = execution.started_ns or execution.created_ns, execution.finished_ns
    process = ReportedProcess.parse(execution.process or "")
    status, rank = ExecutionStatus(execution.status), execution.rank
    error = (execution.error_type, execution.error_message, execution.error_stack)
    if process is not None and process.queue_seconds is not None:
        # No process said how it ended: it follows from its steps, also from those that were heard of late. What was
        # only assumed of the others says nothing; but a lost run is lost as long as nobody has ended what it asked for.
        told = [step for step in steps if StepStatus(step.status).is_terminal and step.step_id not in closed_here]
        if status is not ExecutionStatus.LOST or _are_ended(steps, {step.step_id for step in told}):
            status, failure = outcome_of(told)
            rank = execution_rank(status)
            finished_ns = max([started_ns, *[step.finished_ns for step in told if step.finished_ns is not None]])
            error = (failure.type, failure.message, failure.stack) if failure is not None else (None, None, None)
    window = RunWindow(started_ns, max(started_ns, finished_ns))
    has_all_ended = process is not None and process.engine in _ENDS_WITH_ALL and status is ExecutionStatus.COMPLETED
    closed = _closed(steps, closed_here, status, window.end_ns, has_all_ended=has_all_ended)
    by_id = {step.step_id: step for step in closed}
    changes: dict[str, dict[str, Any]] = {}
    began: dict[tuple[str, int], int] = {}
    for i, (before, step) in enumerate(zip(steps, closed, strict=True)):
        is_taken_back = step.status == StepStatus.CANCELLED and step.attempt == 0 and step.ready_ns is not None
        if (step.started_ns is not None or is_taken_back) and step.folded is None:
            stored = attempts.get(step.step_id, ())
            tries = [_tried(step, attempt) for attempt in stored]
            for attempt, known in zip(stored, tries, strict=True):
                if known.started_ns != attempt.started_ns:
                    began[step.step_id, known.attempt] = known.started_ns
            step = closed[i] = replace(step, **_waits(step, by_id, tries, window))
        if step != before:
            values = {name: getattr(step, name) for name in _STEP_FIELDS}
            # A real outcome, if one comes after all, replaces it.
            values["rank"] = FIRST_TERMINAL_STEP_RANK if step.status != before.status else None
            changes[step.step_id] = values
    counts = status_counts(closed)
    path = critical_path_of(placed(closed, window))
    return Settled(
        {
            "rank": rank,
            "status": status.value,
            "finished_ns": finished_ns,
            "step_count": sum(counts.values()),
            "completed_step_count": counts["completed"],
            "failed_step_count": sum(count for name, count in counts.items() if name in FAILED),
            "skipped_step_count": counts["skipped"],
            "work_ns": sum(step.run_ns or 0 for step in closed if step.parent_step_id is None),
            "critical_path_ns": sum(part.duration_ns for part in path),
            "critical_path": encode_ids([part.step_id for part in path]),
            "error_type": error[0],
            "error_message": error[1],
            "error_stack": error[2],
        },
        changes,
        began,
    )


def _tried(step: StoredStep, attempt: Row[Any]) -> _Try:
    """An attempt as it is stored. Who told of its end may not have known when it began, but others did."""
    begins = {step.attempt: step.attempt_started_ns, 1: step.started_ns}
    known_ns = begins.get(attempt.attempt)
    started_ns = attempt.started_ns if known_ns is None else min(known_ns, attempt.started_ns)
    return _Try(attempt.attempt, started_ns, attempt.finished_ns, attempt.queue_ns)


def _are_ended(steps: Sequence[StoredStep], ended: Collection[str]) -> bool:
    """Whether all steps that were asked for are among those that have ended."""
    asked = [step.step_id for step in steps if step.ready_ns is not None or step.attempt_started_ns is not None]
    return bool(ended) and all(step_id in ended for step_id in asked)


def _closed(
    steps: Sequence[StoredStep],
    closed_here: Collection[str],
    outcome: ExecutionStatus,
    end_ns: int,
    *,
    has_all_ended: bool,
) -> list[StoredStep]:
    """The steps as they are once their execution has ended: none of them goes on.

    ``has_all_ended``: what started has ended well, though nobody told when: at the latest when the next step started.
    """
    unsuccessful = UNSUCCESSFUL | {"cancelled"}
    told = [step for step in steps if step.step_id not in closed_here]
    below_failed = _below(steps, [step.step_id for step in told if step.status in unsuccessful])
    below_skipped = _below(steps, [step.step_id for step in told if step.status == StepStatus.SKIPPED])
    closed = []
    for step in steps:
        if not StepStatus(step.status).is_terminal or step.step_id in closed_here:
            if step.attempt_started_ns is not None and has_all_ended:
                begun = [
                    other.started_ns
                    for other in steps
                    if step.step_id in other.depends_on and (other.started_ns or 0) >= step.attempt_started_ns
                ]
                step = _ended(step, StepStatus.COMPLETED, min([end_ns, *[each for each in begun if each is not None]]))
            elif step.attempt_started_ns is not None:
                step = _ended(step, StepStatus.LOST, end_ns, failure=ABANDONED)
            elif outcome in _STOPPED:
                step = _ended(step, StepStatus.SKIPPED, end_ns, reason=_STOPPED[outcome])
            elif step.step_id in below_failed:
                step = _ended(step, StepStatus.SKIPPED, end_ns, reason=SkipReason.UPSTREAM_FAILED)
            elif step.step_id in below_skipped:
                step = _ended(step, StepStatus.SKIPPED, end_ns, reason=SkipReason.UPSTREAM_SKIPPED)
            else:
                step = _ended(step, StepStatus.SKIPPED, end_ns, reason=SkipReason.CONDITION)
        closed.append(step)
    return closed


def _ended(
    step: StoredStep,
    status: StepStatus,
    end_ns: int,
    *,
    failure: Failure | None = None,
    reason: SkipReason | None = None,
) -> StoredStep:
    return replace(
        step,
        status=status.value,
        finished_ns=max(end_ns, step.attempt_started_ns or 0),
        skip_reason=None if reason is None else reason.value,
        error_type=None if failure is None else failure.type,
        error_message=None if failure is None else failure.message,
    )


def _below(steps: Sequence[StoredStep], sources: Iterable[str]) -> set[str]:
    """Ids of the steps that depend on these, directly or not."""
    dependents: dict[str, list[str]] = {}
    for step in steps:
        for dependency in step.depends_on:
            dependents.setdefault(dependency, []).append(step.step_id)
    waiting, below = list(sources), set[str]()
    while waiting:
        for dependent in dependents.get(waiting.pop(), ()):
            if dependent not in below:
                below.add(dependent)
                waiting.append(dependent)
    return below


def _waits(
    step: StoredStep, steps: Mapping[str, StoredStep], stored: Sequence[_Try], window: RunWindow
) -> dict[str, int]:
    """The waits and the running time of a step, from the moments of its run. ``stored``: its attempts.

    Of a step that never started (it was taken back): its waits until its end.
    """
    cut = window.cut
    outer = steps.get(step.parent_step_id or "")
    origin_ns = cut(outer.started_ns) if outer is not None and outer.started_ns is not None else window.start_ns
    started_ns = max(origin_ns, cut(step.started_ns if step.started_ns is not None else step.finished_ns or 0))
    before = [steps[dependency].finished_ns for dependency in step.depends_on if dependency in steps]
    ends = [end for moment in before if moment is not None and (end := cut(moment)) <= started_ns]
    met_ns = max([origin_ns, *ends])
    attempts = StepAttempts(_REF, origin_ns)
    if step.ready_ns is not None:
        ready_ns = min(cut(step.ready_ns), started_ns)
        # An engine may ask for a step before what it depends on has ended.
        attempts.ready(max(ready_ns, met_ns), met_ns, None if step.asked_ns is None else cut(step.asked_ns))
    attempts.started(started_ns, ready_ns=met_ns)
    finished_ns = step.finished_ns or 0
    is_between = bool(stored) and stored[-1].attempt == step.attempt and stored[-1].finished_ns < finished_ns
    queues = {attempt.attempt: attempt.queue_ns for attempt in stored}
    ended = [attempt for attempt in stored if attempt.attempt < step.attempt or is_between]
    for i, attempt in enumerate(ended):
        attempts.retrying(cut(attempt.finished_ns), StepStatus.FAILED, 0, ABANDONED)
        if i + 1 < len(ended):
            number, next_ns = ended[i + 1].attempt, ended[i + 1].started_ns
        elif not is_between:
            number, next_ns = step.attempt, step.attempt_started_ns or 0
        else:
            break
        attempts.backed_off(cut(next_ns - queues.get(number, 0)))
        attempts.started(cut(next_ns))
    if not ended and step.attempt > 1:
        # Nothing is known of its earlier attempts but that they were.
        attempts.started(cut(step.attempt_started_ns or 0))
    event = attempts.finished(cut(finished_ns), StepStatus.COMPLETED)
    return {
        "dependency_ns": event.dependency_ns,
        "unaccounted_ns": event.unaccounted_ns,
        "scheduled_ns": event.scheduled_ns,
        "queue_ns": event.queue_ns,
        "backoff_ns": event.backoff_ns,
        "run_ns": event.run_ns,
    }
