"""Critical path and slack of timed steps, as pure functions.

They take steps from any source (a live run, stored rows, foreign spans), of runs that are complete, broken or still
running: a step that has not started or ended lacks that time.

Definitions. The *critical path* is found by walking back from the step that finished last, each time to the
dependency that finished last: delaying any step on it would have delayed the end of the run. A step's *slack* is how
much later it could have finished without moving the end of the run, all else unchanged: the minimum, over the steps
that waited for it, of their slack plus the time they went on waiting for something else.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, Generic, Protocol, TypeVar

from tachograph.events import Folded, PathStep

_NEVER: Final = -(1 << 64)
"""The end of a step that did not run, or is not looked at: before all times."""


class TimedStep(Protocol):
    """What critical path and slack are computed from. Times are unix nanoseconds."""

    @property
    def step_id(self) -> str: ...
    @property
    def depends_on(self) -> Sequence[str]: ...
    @property
    def started_ns(self) -> int | None: ...
    @property
    def finished_ns(self) -> int | None: ...
    @property
    def parent_step_id(self) -> str | None: ...


S = TypeVar("S", bound=TimedStep)


class IndexedSteps(Generic[S]):
    """Steps with their dependencies as positions: made once for all that is computed from the same steps.

    Attributes:
        steps: one for each id, in their order; of several with the same id the last.
        depends_on: of each step, the positions of its dependencies that are among them.
        position: of each step, by its id.
    """

    __slots__ = ("depends_on", "position", "steps")

    def __init__(self, steps: Sequence[S]) -> None:
        position = {step.step_id: i for i, step in enumerate(steps)}
        if len(position) < len(steps):
            steps = [steps[i] for i in position.values()]
            position = {step.step_id: i for i, step in enumerate(steps)}
        self.steps = steps
        self.position = position
        self.depends_on: list[list[int]] = []
        for step in steps:
            try:
                self.depends_on.append([position[step_id] for step_id in step.depends_on])
            except KeyError:
                self.depends_on.append([position[step_id] for step_id in step.depends_on if step_id in position])

    def waited_for(self, i: int, ends: Sequence[int]) -> Sequence[int]:
        """What a step really waited for: a dependency that never ran (skipped) is replaced by its own dependencies.

        ``ends`` has `_NEVER` for steps that never ran.
        """
        depends_on = self.depends_on[i]
        for other in depends_on:
            if ends[other] == _NEVER:
                break
        else:
            return depends_on
        waited: list[int] = []
        stack, seen = list(reversed(depends_on)), set[int]()
        while stack:
            other = stack.pop()
            if other in seen:
                continue
            seen.add(other)
            if ends[other] != _NEVER:
                waited.append(other)
            else:
                stack.extend(reversed(self.depends_on[other]))
        return waited


def critical_path(steps: Sequence[S] | IndexedSteps[S], *, now_ns: int | None = None) -> list[S]:
    """Steps whose delay would have delayed the end of the run, first to last.

    Folded steps (see `tachograph.folding`) are one step, which contains holes: what their repetitions waited for in
    between is on the path too.

    Only steps that started count. Steps inside another step do not: their time belongs to the outer step. With
    ``now_ns``, a running step counts as lasting until then.

    A dependency that finished after the step started (a rule such as *one success*) did not hold it back and is not
    followed. If that is true of all dependencies that started before the step, clocks differ, or a task's span
    outlasts the start of its successor: then the last of them is followed. A dependency that never ran is replaced by
    its own dependencies. Ties are broken by the later start, then by the greater id, so the order of ``steps`` does
    not matter.
    """
    run = steps if isinstance(steps, IndexedSteps) else IndexedSteps(steps)
    every = run.steps
    starts = [_NEVER if (started := step.started_ns) is None else started for step in every]
    ends = [
        _NEVER
        if started == _NEVER
        or ((end := step.finished_ns) is None and (end := now_ns) is None)
        or step.parent_step_id is not None
        else end
        for step, started in zip(every, starts, strict=True)
    ]
    last_ns = max(ends, default=_NEVER)
    if last_ns == _NEVER:
        return []

    def is_later(one: int, other: int) -> bool:
        """Of two steps that ended together."""
        return (starts[one], every[one].step_id) > (starts[other], every[other].step_id)

    last = -1
    for i, end in enumerate(ends):
        if end == last_ns and (last < 0 or is_later(i, last)):
            last = i
    path: list[S] = []
    pending = [last]
    seen = bytearray(len(every))
    has_folds = False
    while pending:
        i = pending.pop()
        if seen[i]:
            continue
        seen[i] = 1
        current = every[i]
        path.append(current)
        if (folded := _folded(current)) is not None:
            has_folds = True
            within = [run.position[step_id] for step_id in folded.after if step_id in run.position]
            pending += [other for other in within if ends[other] != _NEVER]
        limit = starts[i]
        ended = begun = -1
        for other in run.waited_for(i, ends):
            if seen[other]:
                continue
            end = ends[other]
            if end <= limit:
                if ended < 0 or end > ends[ended] or (end == ends[ended] and is_later(other, ended)):
                    ended = other
            elif starts[other] < limit and (
                begun < 0 or end > ends[begun] or (end == ends[begun] and is_later(other, begun))
            ):
                begun = other
        if ended >= 0 or begun >= 0:
            pending.append(ended if ended >= 0 else begun)
    path.reverse()
    if has_folds:
        path.sort(key=lambda step: (step.started_ns or 0, step.step_id))
    return path


def path_lengths(path: Sequence[TimedStep], now_ns: int = 0) -> list[int]:
    """Nanoseconds that each step contributes to a critical path: until it ended or the next one started, if earlier.

    A step that has not ended lasts until ``now_ns``. Folded steps contribute the time in which one of them ran; where
    the rest of the path leaves less than that (they ran beside each other), what it leaves.
    """
    if any(_folded(step) is not None for step in path):
        return _lengths_with_folds(path, now_ns)
    return _lengths(path, now_ns)


def _lengths_with_folds(path: Sequence[TimedStep], now_ns: int) -> list[int]:
    ends = [step.finished_ns if step.finished_ns is not None else now_ns for step in path]
    plain = iter(_lengths([step for step in path if _folded(step) is None], now_ns))
    lengths = []
    busy_ns = 0
    for step, end in zip(path, ends, strict=True):
        folded = _folded(step)
        if folded is None:
            lengths.append(next(plain))
        else:
            running_ns = max(0, end - folded.running_since_ns) if step.finished_ns is None else 0
            lengths.append(folded.busy_ns + running_ns)
            busy_ns += lengths[-1]
    left_ns = max(0, max(ends) - min(step.started_ns or 0 for step in path) - (sum(lengths) - busy_ns))
    if busy_ns > left_ns:
        lengths = [
            length if _folded(step) is None else length * left_ns // busy_ns
            for step, length in zip(path, lengths, strict=True)
        ]
    return lengths


def _folded(step: TimedStep) -> Folded | None:
    return getattr(step, "folded", None)


def _lengths(path: Sequence[TimedStep], now_ns: int) -> list[int]:
    lengths = []
    next_ns = 0
    # Last to first, so that each step finds the start of the one after it.
    for step in reversed(path):
        started, end = step.started_ns or 0, step.finished_ns
        if end is None:
            end = now_ns
        if next_ns and end > next_ns:
            end = next_ns
        lengths.append(end - started if end > started else 0)
        next_ns = started
    lengths.reverse()
    return lengths


class NamedStep(TimedStep, Protocol):
    """A timed step with a name."""

    @property
    def name(self) -> str: ...


def critical_path_of(steps: Sequence[NamedStep]) -> tuple[PathStep, ...]:
    """The critical path of a finished run, as in `ExecutionFinished`."""
    path = critical_path(steps)
    return tuple(
        PathStep(step.step_id, step.name, length) for step, length in zip(path, path_lengths(path), strict=True)
    )


def slack(steps: Sequence[S] | IndexedSteps[S], *, end_ns: int | None = None) -> dict[str, int]:
    """Nanoseconds each finished step could have ended later without moving the end of the run, by step id.

    ``end_ns`` is the end of the run (default: the last step's). Steps without a start or an end have no entry. A step
    with a ``dependency_count`` greater than what it lists (see `tachograph.inferred_dependencies`) waited for whatever
    had ended before the first it lists. Costs O(steps + dependencies).
    """
    run = steps if isinstance(steps, IndexedSteps) else IndexedSteps(steps)
    every = run.steps
    starts = [_NEVER if (started := step.started_ns) is None else started for step in every]
    ends = [
        _NEVER if started == _NEVER or (end := step.finished_ns) is None else end
        for step, started in zip(every, starts, strict=True)
    ]
    last_ns = max(ends, default=_NEVER)
    if last_ns == _NEVER:
        return {}
    if end_ns is None:
        end_ns = last_ns
    slacks = [_NEVER] * len(every)
    barriers: _Barriers | None = None
    for i in _later_first(run, starts, ends):
        started, finished = starts[i], ends[i]
        step_slack = slacks[i]
        if step_slack == _NEVER:
            step_slack = max(0, end_ns - finished)
        if barriers is not None and every[i].parent_step_id is None:
            step_slack = min(step_slack, barriers.latest_end(finished) - finished)
        slacks[i] = step_slack
        waited = run.waited_for(i, ends)
        if not waited:
            continue
        # The step was ready when the last dependency that held it back had ended.
        ready = -1
        for other in waited:
            if ready < (ended := ends[other]) <= started:
                ready = ended
        if ready < 0:
            # None had ended (see `critical_path`): the last of those that had started held it back.
            ready = max((ends[other] for other in waited if starts[other] < started), default=-1)
        latest = step_slack + ready
        for other in waited:
            if (ended := ends[other]) <= ready:
                before = slacks[other]
                if (end_ns if before == _NEVER else before) > latest - ended:
                    slacks[other] = latest - ended
        # Not in the protocol: only dependencies that were inferred are ever left out.
        step = every[i]
        if ready >= 0 and getattr(step, "dependency_count", 0) > len(step.depends_on):
            if barriers is None:
                barriers = _Barriers()
            barriers.add(min(ends[other] for other in waited), step_slack + ready)
    return {step.step_id: step_slack for step, step_slack in zip(every, slacks, strict=True) if step_slack != _NEVER}


class _Barriers:
    """Steps that waited for more than they list, as (what had ended by then held them back, how late it could have)."""

    def __init__(self) -> None:
        # Both ascending: an entry that another one makes superfluous is left out.
        self._moments: list[int] = []
        self._latest: list[int] = []

    def add(self, moment_ns: int, latest_ns: int) -> None:
        moments, latest = self._moments, self._latest
        position = bisect_left(moments, moment_ns)
        if position < len(moments) and latest[position] <= latest_ns:
            return
        if position < len(moments) and moments[position] == moment_ns:
            position += 1
        first = position
        while first and latest[first - 1] >= latest_ns:
            first -= 1
        moments[first:position], latest[first:position] = [moment_ns], [latest_ns]

    def latest_end(self, finished_ns: int) -> int:
        """How late a step that ended at ``finished_ns`` could have ended without holding back any of them."""
        position = bisect_left(self._moments, finished_ns)
        return self._latest[position] if position < len(self._moments) else sys.maxsize


def _later_first(run: IndexedSteps[S], starts: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """Steps that ran, in an order in which each comes after those that waited for it.

    A step that waited for another one started after that one ended, so later starts come first. Only steps of zero
    length at the same nanosecond need a closer look.
    """
    times = list(zip(starts, ends, strict=True))
    ordered = sorted([i for i, end in enumerate(ends) if end != _NEVER], key=times.__getitem__, reverse=True)
    if any(starts[i] == ends[i] for i in ordered):
        return list(_causes_last(ordered, times, run, ends))
    return ordered


def _causes_last(
    ordered: Sequence[int], times: Sequence[tuple[int, int]], run: IndexedSteps[S], ends: Sequence[int]
) -> Iterator[int]:
    """Steps that are ordered by time; of those of no length at one nanosecond, each after those that waited for it."""
    for (started, finished), simultaneous in groupby(ordered, key=times.__getitem__):
        group = list(simultaneous)
        if len(group) == 1 or started != finished:
            yield from group
            continue
        waiting = dict.fromkeys(group, 0)
        for i in group:
            for other in run.waited_for(i, ends):
                if other in waiting:
                    waiting[other] += 1
        ready = [i for i in group if not waiting[i]]
        for i in ready:
            for other in run.waited_for(i, ends):
                if other in waiting:
                    waiting[other] -= 1
                    if not waiting[other]:
                        ready.append(other)
        # Steps on a cycle come in any order.
        yield from ready
        yield from waiting.keys() - set(ready)
