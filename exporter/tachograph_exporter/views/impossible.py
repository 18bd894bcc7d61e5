"""Values that no run can have: times outside it, negative ones, and parts that do not add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tachograph.events import StepStatus
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.schemas.reconciliation import Difference


def impossible(run: StoredRun, *, has_one_clock: bool, is_settled: bool = True) -> Iterator[Difference]:
    """The values of a run that cannot be. ``has_one_clock``: no step can lie outside the run.

    ``is_settled``: the waits of its steps are final.
    """
    values: dict[str, Any]
    execution, steps = run.execution, run.steps
    began, ended = execution.started_ns, execution.finished_ns
    by_id = {step.step_id: step for step in steps}
    last_attempts: dict[str, int] = {}
    for attempt in run.attempts:
        last_attempts[attempt.step_id] = max(last_attempts.get(attempt.step_id, 0), attempt.attempt)
    for step in steps:
        yield from _impossible_step(step, began, ended, execution.status)
        if has_one_clock:
            yield from _outside(step, began, ended)
        if step.parent_step_id is not None and step.parent_step_id not in by_id:
            values = {"timeline": step.parent_step_id, "rows": None}
            yield Difference(step.step_id, "parent_step_id", values, message="there is no such step")
        if step.status in _ENDED and last_attempts.get(step.step_id, step.attempt) != step.attempt:
            values = {"step": step.attempt, "attempts": last_attempts[step.step_id]}
            yield Difference(step.step_id, "attempts", values)
        if is_settled:
            yield from _unbalanced(step, by_id, began, ended)
    if began is None or ended is None:
        return
    elapsed = ended - began
    if elapsed < 0:
        yield Difference(
            "", "finished_ns", {"execution": ended, "started_ns": began}, message="it ended before it began"
        )
    if (execution.critical_path_ns or 0) > elapsed:
        values = {"execution": execution.critical_path_ns, "possible": elapsed}
        yield Difference("", "critical_path_ns", values, message="the critical path is longer than the run")
    if any(step.folded is not None for step in steps):
        return  # How many repetitions ran at once is not kept.
    possible = elapsed * _most_at_once(steps)
    if (execution.work_ns or 0) > possible:
        values = {"execution": execution.work_ns, "possible": possible}
        yield Difference("", "work_ns", values, message="more work than its steps had time for")


def _impossible_step(
    step: StoredStep, began: int | None, ended: int | None, execution_status: str
) -> Iterator[Difference]:
    key, start, end = step.step_id, step.started_ns, step.finished_ns
    values: dict[str, Any]
    if ended is not None and step.status not in _ENDED:
        values = {"timeline": step.status, "execution": execution_status}
        yield Difference(key, "status", values, message="its execution has ended, but the step has not")
    if step.status in _ENDED and end is None:
        yield Difference(key, "finished_ns", {"timeline": None, "status": step.status}, message="it ended at no time")
    if start is not None and end is not None:
        if end < start:
            yield Difference(
                key, "finished_ns", {"timeline": end, "started_ns": start}, message="ended before it began"
            )
        elif step.folded is None and (step.run_ns or 0) > end - start:
            values = {"timeline": step.run_ns, "possible": end - start}
            yield Difference(key, "run_ns", values, message="it ran longer than it lasted")
    if step.folded is not None:
        return  # Its parts are sums over repetitions, which may have run at once.
    for name in _PARTS:
        part = getattr(step, name)
        if part is not None and part < 0:
            yield Difference(key, name, {"timeline": part, "possible": 0}, message="negative")
        elif part is not None and began is not None and ended is not None and part > max(0, ended - began):
            yield Difference(key, name, {"timeline": part, "possible": ended - began}, message="longer than the run")


def _outside(step: StoredStep, began: int | None, ended: int | None) -> Iterator[Difference]:
    key, start, end = step.step_id, step.started_ns, step.finished_ns
    if start is not None and began is not None and start < began:
        yield Difference(key, "started_ns", {"timeline": start, "execution": began}, message="it began before the run")
    if end is not None and ended is not None and end > ended:
        yield Difference(key, "finished_ns", {"timeline": end, "execution": ended}, message="it ended after the run")


_ENDED: Final = frozenset(status.value for status in StepStatus if status.is_terminal)
_PARTS: Final = ("dependency_ns", "queue_ns", "backoff_ns", "run_ns", "unaccounted_ns", "scheduled_ns")
"""What the time of a step is made of."""


def _unbalanced(
    step: StoredStep, by_id: Mapping[str, StoredStep], began: int | None, ended: int | None
) -> Iterator[Difference]:
    """The parts of a step's time add up to the time from the start of the run (or the step around it) to its end."""
    if step.started_ns is None or step.finished_ns is None or step.run_ns is None or step.status == StepStatus.LOST:
        return
    if step.folded is not None:
        return
    origin = began
    if step.parent_step_id is not None:
        outer = by_id.get(step.parent_step_id)
        # Which attempt of the outer step it was in is not stored.
        origin = outer.started_ns if outer is not None and outer.attempt == 1 else None
    if origin is None or origin > step.started_ns or (ended is not None and step.finished_ns > ended):
        return
    parts = sum(getattr(step, name) or 0 for name in _PARTS)
    if parts != step.finished_ns - origin:
        values = {"timeline": parts, "possible": step.finished_ns - origin}
        yield Difference(step.step_id, "wait_ns + run_ns", values, message="the parts do not add up to the whole")


def _most_at_once(steps: Iterable[StoredStep]) -> int:
    """The largest number of outer steps that were open at the same time."""
    moments: list[tuple[int, int]] = []
    for step in steps:
        if step.parent_step_id is None and step.started_ns is not None and step.finished_ns is not None:
            moments += ((step.started_ns, 1), (step.finished_ns, -1))
    most = count = 0
    for _, change in sorted(moments):
        count += change
        most = max(most, count)
    return most
