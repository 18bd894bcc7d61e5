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
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from tachograph.events import Folded, PathStep


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


def critical_path(steps: Sequence[S], *, now_ns: int | None = None) -> list[S]:
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
    timed: dict[str, tuple[int, int, str, S]] = {}
    steps_by_id = {step.step_id: step for step in steps}
    for step_id, step in steps_by_id.items():
        end, started = step.finished_ns, step.started_ns
        if end is None:
            end = now_ns
        if started is not None and end is not None and step.parent_step_id is None:
            timed[step_id] = (end, started, step_id, step)
    if not timed:
        return []
    path: list[S] = []
    # Ids differ, so that no two steps are compared.
    pending: list[S] = [max(timed.values())[3]]
    seen: set[str] = set()
    has_folds = False
    while pending:
        current = pending.pop()
        if current.step_id in seen:
            continue
        path.append(current)
        seen.add(current.step_id)
        if (folded := _folded(current)) is not None:
            has_folds = True
            pending += [timed[step_id][3] for step_id in folded.after if step_id in timed]
        limit = current.started_ns or 0
        ended: tuple[int, int, str, S] | None = None
        begun: tuple[int, int, str, S] | None = None
        for step_id in _dependencies_that_ran(current, timed, steps_by_id):
            if step_id in seen:
                continue
            earlier = timed[step_id]
            if earlier[0] <= limit:
                if ended is None or earlier > ended:
                    ended = earlier
            elif earlier[1] < limit and (begun is None or earlier > begun):
                begun = earlier
        if (held := ended or begun) is not None:
            pending.append(held[3])
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
    for i, step in enumerate(path):
        started = step.started_ns or 0
        end = step.finished_ns if step.finished_ns is not None else now_ns
        if i + 1 < len(path):
            end = min(end, path[i + 1].started_ns or end)
        lengths.append(max(0, end - started))
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


def _dependencies_that_ran(step: TimedStep, ran: Container[str], steps_by_id: Mapping[str, TimedStep]) -> Sequence[str]:
    """What a step really waited for: a dependency that never ran (skipped) is replaced by its own dependencies."""
    depends_on = step.depends_on
    for step_id in depends_on:
        if step_id not in ran:
            break
    else:
        return depends_on
    waited: list[str] = []
    stack, seen = list(reversed(depends_on)), set[str]()
    while stack:
        step_id = stack.pop()
        if step_id in seen:
            continue
        seen.add(step_id)
        if step_id in ran:
            waited.append(step_id)
        elif (skipped := steps_by_id.get(step_id)) is not None:
            stack.extend(reversed(skipped.depends_on))
    return waited


def slack(steps: Sequence[TimedStep], *, end_ns: int | None = None) -> dict[str, int]:
    """Nanoseconds each finished step could have ended later without moving the end of the run, by step id.

    ``end_ns`` is the end of the run (default: the last step's). Steps without a start or an end have no entry. A step
    with a ``dependency_count`` greater than what it lists (see `tachograph.inferred_dependencies`) waited for whatever
    had ended before the first it lists. Costs O(steps + dependencies).
    """
    steps_by_id = {step.step_id: step for step in steps}
    times = {
        step_id: (started, finished)
        for step_id, step in steps_by_id.items()
        if (started := step.started_ns) is not None and (finished := step.finished_ns) is not None
    }
    if not times:
        return {}
    end = end_ns if end_ns is not None else max([finished for _, finished in times.values()])
    slacks: dict[str, int] = {}
    waited_for = {step_id: _dependencies_that_ran(steps_by_id[step_id], times, steps_by_id) for step_id in times}
    barriers: _Barriers | None = None
    for step_id in _later_first(times, waited_for):
        started, finished = times[step_id]
        step = steps_by_id[step_id]
        step_slack = slacks.get(step_id)
        if step_slack is None:
            step_slack = max(0, end - finished)
        if barriers is not None and step.parent_step_id is None:
            step_slack = min(step_slack, barriers.latest_end(finished) - finished)
        slacks[step_id] = step_slack
        waited = waited_for[step_id]
        if not waited:
            continue
        # The step was ready when the last dependency that held it back had ended.
        ready = -1
        for dependency in waited:
            ended = times[dependency][1]
            if ready < ended <= started:
                ready = ended
        if ready < 0:
            # None had ended (see `critical_path`): the last of those that had started held it back.
            ready = max((times[other][1] for other in waited if times[other][0] < started), default=-1)
        latest = step_slack + ready
        for dependency in waited:
            ended = times[dependency][1]
            if ended <= ready and slacks.get(dependency, end) > latest - ended:
                slacks[dependency] = latest - ended
        # Not in the protocol: only dependencies that were inferred are ever left out.
        if ready >= 0 and getattr(step, "dependency_count", 0) > len(step.depends_on):
            if barriers is None:
                barriers = _Barriers()
            barriers.add(min(times[dependency][1] for dependency in waited), step_slack + ready)
    return slacks


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


def _later_first(times: Mapping[str, tuple[int, int]], waited_for: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Steps in an order in which each comes after those that waited for it.

    A step that waited for another one started after that one ended, so later starts come first. Only steps of zero
    length at the same nanosecond need a closer look.
    """
    ordered = sorted(times, key=times.__getitem__, reverse=True)
    if all(started != finished for started, finished in times.values()):
        return ordered
    return _causes_last(ordered, times, waited_for)


def _causes_last(
    ordered: Sequence[str], times: Mapping[str, tuple[int, int]], waited_for: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Steps that are ordered by time; of those of no length at one nanosecond, each after those that waited for it."""
    for (started, finished), simultaneous in groupby(ordered, key=times.__getitem__):
        group = list(simultaneous)
        if len(group) == 1 or started != finished:
            yield from group
            continue
        waiting = dict.fromkeys(group, 0)
        for step_id in group:
            for dependency in waited_for[step_id]:
                if dependency in waiting:
                    waiting[dependency] += 1
        ready = [step_id for step_id in group if not waiting[step_id]]
        for step_id in ready:
            for dependency in waited_for[step_id]:
                if dependency in waiting:
                    waiting[dependency] -= 1
                    if not waiting[dependency]:
                        ready.append(dependency)
        # Steps on a cycle come in any order.
        yield from ready
        yield from waiting.keys() - set(ready)
