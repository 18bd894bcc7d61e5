"""Dependencies between steps, inferred from when they ran."""

from __future__ import annotations

from collections.abc import Iterable


class InferredDependencies:
    """Dependencies of steps that declare none, from the order in which they ran.

    A step depends on the steps that had finished when it started, except where another finished step lies between the
    two (the transitive reduction of the interval order). Sequential calls become a chain, concurrent calls a fork and
    a join. Report starts and ends in the order they happen.
    """

    __slots__ = ("_finished", "_latest_start", "_starts")

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}
        self._finished: list[tuple[int, str]] = []
        self._latest_start = -1

    def started(self, step: str, time_ns: int) -> tuple[str, ...]:
        """Record a start. Returns the ids of the steps that the step depends on."""
        self._starts[step] = time_ns
        return tuple(finished for _, finished in self._finished)

    @property
    def last_end_ns(self) -> int:
        """When the last step ended that a step starting now depends on; 0: there is none."""
        return self._finished[-1][0] if self._finished else 0

    def frontier(self) -> list[tuple[int, str]]:
        """(end, step id) of the steps that a step starting now depends on."""
        return list(self._finished)

    def continue_from(self, frontier: Iterable[tuple[int, str]]) -> None:
        """Start where another process was: from its `frontier`."""
        self._finished = list(frontier)
        # What it contains has begun before any of it ended.
        self._latest_start = min((time_ns for time_ns, _ in self._finished), default=-1) - 1

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
        self._finished = [pair for pair in finished if pair[1] != step]
        self.finished(step, time_ns)

    def finished(self, step: str, time_ns: int) -> None:
        """Record an end. Steps that it waited for are no longer direct dependencies of later steps."""
        start = self._starts.pop(step, time_ns)
        if start > self._latest_start:
            self._latest_start = start
            self._finished = [pair for pair in self._finished if pair[0] > start]
        self._finished.append((time_ns, step))
