"""Pure functions on timed steps: critical path, slack, work against elapsed time.

They work on steps from any source (a live run, stored rows, foreign spans) and on runs that broke or still go on:
a step that has not started or not ended simply has no such time.

Definitions. The *critical path* is found by walking back from the step that finished last, each time to the
dependency that finished last: delaying any step on it would have delayed the end of the run. A step's *slack* is how
much later it could have finished without moving the end of the run, everything else staying as it was: the smallest,
over the steps that waited for it, of their own slack plus the time they went on waiting for something else. *Work* is
all running time added up; *parallelism* is work per elapsed second.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from tachograph.events import PathStep


class TimedStep(Protocol):
    """What the analysis needs to know of a step. Times are unix nanoseconds."""

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

    Only steps that started count, and only those not inside another step (their time is the outer step's). With
    ``now_ns``, a step still running counts as reaching up to that moment. A dependency that finished after the step
    started (a rule such as *one success*) did not hold it back and is not followed, unless that is true of all that
    had started before it: then clocks differ, or a task's span outlasts the start of its successor, and the last of
    them is followed. Dependencies on steps that never ran are passed over to what those waited for. Of steps that
    finished at the same nanosecond the one that started last is taken, then the one with the greater id, so that the
    order of ``steps`` is no matter.
    """
    timed: dict[str, tuple[int, S]] = {}
    every = {step.step_id: step for step in steps}
    for step in steps:
        end = step.finished_ns if step.finished_ns is not None else now_ns
        if step.started_ns is not None and end is not None and step.parent_step_id is None:
            timed[step.step_id] = (end, step)
    if not timed:
        return []
    path: list[S] = []
    current: S | None = max(timed.values(), key=_lateness)[1]
    seen: set[str] = set()
    while current is not None:
        path.append(current)
        seen.add(current.step_id)
        limit = current.started_ns or 0
        before = [timed[found] for found in _dependencies_that_ran(current, timed, every) if found not in seen]
        held = [pair for pair in before if pair[0] <= limit] or [p for p in before if (p[1].started_ns or 0) < limit]
        current = max(held, key=_lateness)[1] if held else None
    path.reverse()
    return path


def path_lengths(path: Sequence[TimedStep], now_ns: int = 0) -> list[int]:
    """Nanoseconds of each step of a critical path: until it ended, or until the next one began if that was earlier.

    A step that has not ended lasts until ``now_ns``.
    """
    found = []
    for i, step in enumerate(path):
        started = step.started_ns or 0
        end = step.finished_ns if step.finished_ns is not None else now_ns
        if i + 1 < len(path):
            end = min(end, path[i + 1].started_ns or end)
        found.append(max(0, end - started))
    return found


def _lateness(pair: tuple[int, TimedStep]) -> tuple[int, int, str]:
    return (pair[0], pair[1].started_ns or 0, pair[1].step_id)


class NamedStep(TimedStep, Protocol):
    """A timed step with a name."""

    @property
    def name(self) -> str: ...


def path_of(steps: Sequence[NamedStep]) -> tuple[PathStep, ...]:
    """The critical path of a finished run, as its last event tells it."""
    path = critical_path(steps)
    return tuple(
        PathStep(step.step_id, step.name, length) for step, length in zip(path, path_lengths(path), strict=True)
    )


def _dependencies_that_ran(step: TimedStep, ran: Container[str], every: Mapping[str, TimedStep]) -> Sequence[str]:
    """The steps a step really waited for: where a dependency never ran (skipped), whatever that one waited for."""
    depends_on = step.depends_on
    for found in depends_on:
        if found not in ran:
            break
    else:
        return depends_on
    waited: list[str] = []
    stack, seen = list(reversed(depends_on)), set[str]()
    while stack:
        found = stack.pop()
        if found in seen:
            continue
        seen.add(found)
        if found in ran:
            waited.append(found)
        elif (skipped := every.get(found)) is not None:
            stack.extend(reversed(skipped.depends_on))
    return waited


def slack(steps: Sequence[TimedStep], *, end_ns: int | None = None) -> dict[str, int]:
    """Nanoseconds each finished step could have ended later without moving the end of the run, by step id.

    ``end_ns`` is the end of the run (default: the last step's). Steps that never ran or still run have no entry.
    Costs O(steps + dependencies).
    """
    every = {step.step_id: step for step in steps}
    times = {
        step.step_id: (step.started_ns, step.finished_ns)
        for step in steps
        if step.started_ns is not None and step.finished_ns is not None
    }
    if not times:
        return {}
    end = end_ns if end_ns is not None else max(finished for _, finished in times.values())
    result: dict[str, int] = {}
    waited_for = {step_id: _dependencies_that_ran(every[step_id], times, every) for step_id in times}
    for step_id in _later_first(times, waited_for):
        started, finished = times[step_id]
        own = result.get(step_id)
        if own is None:
            own = result[step_id] = max(0, end - finished)
        waited = waited_for[step_id]
        # It was ready when the last of those that held it back had ended.
        ready = -1
        for dependency in waited:
            ended = times[dependency][1]
            if ready < ended <= started:
                ready = ended
        if ready < 0:
            # None had (see `critical_path`): the last of those that had begun held it back.
            ready = max((times[one][1] for one in waited if times[one][0] < started), default=-1)
        for dependency in waited:
            behind = ready - times[dependency][1]
            if behind >= 0 and result.get(dependency, end) > own + behind:
                result[dependency] = own + behind
    return result


def _later_first(times: Mapping[str, tuple[int, int]], waited_for: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Steps in such an order that who waited for one comes before it.

    Who waited for a step can only have started after it ended, so later starts come first. Only steps of no length that
    ran at the same nanosecond have to be looked at more closely.
    """
    ordered = sorted(times, key=times.__getitem__, reverse=True)
    for (started, finished), several in groupby(ordered, key=times.__getitem__):
        group = list(several)
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
        # Those that wait for each other in a circle come in any order.
        yield from ready
        yield from waiting.keys() - set(ready)
