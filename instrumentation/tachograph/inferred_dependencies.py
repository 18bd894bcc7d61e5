"""Which step waited for which, inferred from when they ran."""

from __future__ import annotations


class InferredDependencies:
    """Dependencies of steps that declare none, from the order they ran in.

    A step depends on those earlier ones that had finished when it started, except where another finished step lies
    between the two (the transitive reduction of the interval order). For plain calls one after another that is a
    chain; for calls side by side it is a fork and a join. Feed it starts and ends in the order they happen.
    """

    __slots__ = ("_finished", "_latest_start", "_starts")

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}
        self._finished: list[tuple[int, str]] = []
        self._latest_start = -1

    def started(self, step: str, time_ns: int) -> tuple[str, ...]:
        """What the step that starts now depends on, as step ids."""
        self._starts[step] = time_ns
        return tuple(found for _, found in self._finished)

    def finished(self, step: str, time_ns: int) -> None:
        """Note that a step ended; earlier ones that it had waited for are no longer anyone's direct dependency."""
        start = self._starts.pop(step, time_ns)
        if start > self._latest_start:
            self._latest_start = start
            self._finished = [pair for pair in self._finished if pair[0] > start]
        self._finished.append((time_ns, step))
