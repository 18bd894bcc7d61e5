"""What a listener did for the newest executions, kept so that the views of an execution can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

MAX_EXECUTIONS: Final = 512


class Notes(Protocol):
    """What was noted of one execution. ``is_whole``: from its start on."""

    is_whole: bool


N = TypeVar("N", bound=Notes)


class RunNotes(Generic[N]):
    """Notes by execution: of the newest `MAX_EXECUTIONS`, and of fewer when they have more than ``limit`` notes in all.

    Without a lock, so that a forked child cannot inherit one that is held. Threads may begin executions concurrently.

    Args:
        new: makes the notes of one execution.
        limit: most notes of all executions, as counted by `grown`.
    """

    def __init__(self, new: Callable[[], N], limit: int) -> None:
        self._new = new
        self._limit = limit
        self._runs: dict[str, N] = {}
        self._sizes: dict[str, int] = {}
        self._count = 0

    def begin(self, execution_id: str, *, is_whole: bool = False) -> N:
        """The notes of an execution, new if it has none. ``is_whole``: it has just started."""
        notes = self._runs.get(execution_id)
        if notes is None:
            notes = self._new()
            notes.is_whole = is_whole
            notes = self._runs.setdefault(execution_id, notes)
            if len(self._runs) > MAX_EXECUTIONS:
                self._drop_oldest()
        return notes

    def grown(self, execution_id: str, count: int) -> None:
        """Count what was added to an execution's notes, and forget old executions if there are too many."""
        if execution_id in self._runs:
            self._count += count
            self._sizes[execution_id] = self._sizes.get(execution_id, 0) + count
            while self._count > self._limit and len(self._runs) > 1:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            oldest = next(iter(self._runs))
            del self._runs[oldest]
        except (KeyError, RuntimeError, StopIteration):
            return  # Another thread was faster.
        self._count -= self._sizes.pop(oldest, 0)

    def of(self, execution_id: str) -> N | None:
        """The notes of an execution; None if there are none, or no longer."""
        return self._runs.get(execution_id)
