"""Which series each recent execution changed, and by how much, noted where a series changes.

The series note it themselves, so a journal shows what `/metrics` got, not what an event said.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from tachograph.identity import ExecutionRef
from tachograph.run_notes import RunNotes

PENDING: Final = 8_192
"""Values that are noted before they are moved to the notes of their execution."""
FOLD_AT: Final = 10_000
"""Values noted of an execution before they are added up by series."""
MAX_VALUES: Final = 1_000_000
"""Values noted of all executions."""

SeriesKey = tuple[str, tuple[str, ...]]
"""(metric, label values)"""


class Series(Protocol):
    """A series that notes its changes."""

    metric: str
    labels: tuple[str, ...]


class Change(NamedTuple):
    """How often an execution changed a series, and by how much in all."""

    times: int = 0
    total: float = 0.0


class SeriesChanges:
    """The changes by one execution: a series, its amount, the next series… Those of long ago are added up."""

    __slots__ = ("changes", "is_whole", "sums")

    def __init__(self) -> None:
        self.is_whole = False
        # Times and total by series.
        self.sums: dict[Series, list[float]] = {}
        self.changes: list[Any] = []

    def add(self, changes: Sequence[Any]) -> None:
        """Add changes."""
        self.changes += changes
        if len(self.changes) > FOLD_AT:
            self.sums = _added(self.sums, self.changes)
            self.changes = []


def _added(sums: Mapping[Series, Sequence[float]], changes: Sequence[Any]) -> dict[Series, list[float]]:
    added = {series: list(entry) for series, entry in sums.items()}
    values = iter(changes)
    for series, amount in zip(values, values, strict=True):
        entry = added.get(series)
        if entry is None:
            added[series] = [1, amount]
        else:
            entry[0] += 1
            entry[1] += amount
    return added


class SeriesJournal:
    """The changes by execution. A series that changes appends itself and the amount to ``pending``.

    One thread writes, any may read.

    Attributes:
        pending: changes by ``execution`` that have not been moved to its notes.
    """

    __slots__ = ("_turns", "execution", "pending", "runs")

    def __init__(self) -> None:
        self.runs = RunNotes(SeriesChanges, MAX_VALUES)
        self.execution: ExecutionRef | None = None
        self.pending: list[Any] = []
        # Odd while changes are being moved, so that a reader notices.
        self._turns = 0

    def turn_to(self, execution: ExecutionRef, *, is_start: bool = False) -> None:
        """The changes from now on are by this execution."""
        self._turns += 1
        if self.execution is not None and self.pending:
            before = self.execution.execution_id
            self.runs.begin(before).add(self.pending)
            self.runs.grown(before, len(self.pending))
        self.pending.clear()
        self.execution = execution
        self.runs.begin(execution.execution_id, is_whole=is_start)
        self._turns += 1

    def is_whole(self, execution_id: str) -> bool | None:
        """Whether the changes by an execution are known from its start on; None: not at all."""
        noted = self.runs.of(execution_id)
        return noted.is_whole if noted is not None else None

    def by_series(self, execution_id: str) -> dict[SeriesKey, Change]:
        """The changes by an execution, by metric and label values."""
        while True:
            turns, noted, current = self._turns, self.runs.of(execution_id), self.execution
            sums, changes = (noted.sums, noted.changes[:]) if noted is not None else ({}, [])
            if current is not None and current.execution_id == execution_id:
                changes += self.pending[:]
            if turns == self._turns and not turns % 2:
                break
            time.sleep(0)
        if len(changes) % 2:
            # The last series has yet to note its amount.
            changes.pop()
        merged: dict[SeriesKey, Change] = {}
        for series, (times, total) in _added(sums, changes).items():
            # A series that expired and came back is another object with the same labels.
            other = merged.get(key := (series.metric, series.labels), Change())
            merged[key] = Change(other.times + int(times), other.total + total)
        return merged
