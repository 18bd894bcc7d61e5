"""Dependencies between steps, inferred from when they ran."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Final, TypeAlias

MAX_DEPENDENCIES: Final = 32
"""Dependencies that are listed for a step; more are only counted."""

Dependencies: TypeAlias = tuple[tuple[str, ...], int]
"""``depends_on`` and ``dependency_count`` of a `StepRef`: the ids listed, and 0 or, where some were left out, the
number of all."""

_NONE: Final[Dependencies] = ((), 0)


class InferredDependencies:
    """Dependencies of steps that declare none, from the order in which they ran.

    A step depends on the steps that had finished when it started, except where another finished step lies between the
    two (the transitive reduction of the interval order). Sequential calls become a chain, concurrent calls a fork and
    a join. Report starts and ends in the order they happen.

    After a barrier of n steps each of the m next ones depends on all n. Those n·m edges are not written out: a step
    lists the `MAX_DEPENDENCIES` that ended last, since they held it back, and the number of all. A start or an end
    takes the same time whatever n is, and steps that start together share one list.
    """

    __slots__ = ("_current", "_finished", "_latest_start", "_starts")

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}
        # By the moment they ended, earliest first.
        self._finished: deque[tuple[int, str]] = deque()
        self._latest_start = -1
        self._current: Dependencies | None = _NONE

    def started(self, step: str, time_ns: int) -> Dependencies:
        """Record a start. Returns what the step depends on, in the order of the ends."""
        self._starts[step] = time_ns
        current = self._current
        if current is None:
            finished = self._finished
            count = len(finished)
            if count == 1:
                current = ((finished[0][1],), 0)
            elif count <= MAX_DEPENDENCIES:
                current = (tuple([step_id for _, step_id in finished]), 0)
            else:
                last = [step_id for _, step_id in itertools.islice(reversed(finished), MAX_DEPENDENCIES)]
                current = (tuple(reversed(last)), count)
            self._current = current
        return current

    @property
    def last_end_ns(self) -> int:
        """When the last step ended that a step starting now depends on; 0: there is none."""
        return self._finished[-1][0] if self._finished else 0

    def frontier(self) -> list[tuple[int, str]]:
        """(end, step id) of the steps that a step starting now depends on: those that would be listed."""
        finished = self._finished
        return list(itertools.islice(finished, max(0, len(finished) - MAX_DEPENDENCIES), None))

    def continue_from(self, frontier: Iterable[tuple[int, str]]) -> None:
        """Start where another process was: from its `frontier`."""
        self._finished = deque(frontier)
        # What it contains has begun before any of it ended.
        self._latest_start = min((time_ns for time_ns, _ in self._finished), default=0) - 1
        self._current = None

    @property
    def last(self) -> str:
        """The step that ended last of those that a step starting now depends on; empty: there is none."""
        return self._finished[-1][1] if self._finished else ""

    def finished_again(self, step: str, started_ns: int, time_ns: int) -> None:
        """Record that a step, which is several repetitions, ended (again): one that ran since ``started_ns``."""
        finished = self._finished
        if len(finished) == 1 and finished[0][1] == step and step not in self._starts:
            # The usual loop: one call after the other.
            finished[0] = (time_ns, step)
            self._latest_start = max(self._latest_start, started_ns)
            return
        self._starts[step] = started_ns
        self._finished = deque(pair for pair in finished if pair[1] != step)
        self.finished(step, time_ns)

    def finished(self, step: str, time_ns: int) -> None:
        """Record an end. Steps that it waited for are no longer direct dependencies of later steps."""
        start = self._starts.pop(step, time_ns)
        finished = self._finished
        if start > self._latest_start:
            self._latest_start = start
            while finished and finished[0][0] <= start:
                finished.popleft()
        self._current = None
        if not finished or finished[-1][0] <= time_ns:
            finished.append((time_ns, step))
            return
        # Threads may report their ends in another order than they read the clock.
        position = len(finished) - 1
        while position and finished[position - 1][0] > time_ns:
            position -= 1
        finished.insert(position, (time_ns, step))
