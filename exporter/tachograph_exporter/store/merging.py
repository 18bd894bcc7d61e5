"""Merging two versions of a row, in the database and in memory alike."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Final

from sqlalchemy import Table, case, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.events import ExecutionStatus, StepStatus


class Merge(Enum):
    """How a column of an existing row merges with a new version of the row."""

    KEEP = auto()
    """Part of the key, or the same in every version."""
    FIRST = auto()
    """The first value that is not null."""
    NEWEST = auto()
    """The value of the version with the higher rank (see `execution_rank` and `step_rank`)."""
    LOWEST = auto()
    HIGHEST = auto()


_EXECUTION_ORDER: Final = {status: i for i, status in enumerate(ExecutionStatus)}
_STEP_ORDER: Final = {status: i for i, status in enumerate(StepStatus)}
_LOST_STEP: Final = 1 << 40
_ENDED_STEP: Final = 1 << 41
FIRST_TERMINAL_RANK: Final = 10
FIRST_TERMINAL_STEP_RANK: Final = _LOST_STEP
"""Rows of this rank and above have ended."""
_TERMINAL_STEP_RANKS: Final = {
    status: _LOST_STEP if status is StepStatus.LOST else _ENDED_STEP + order
    for status, order in _STEP_ORDER.items()
    if status.is_terminal
}


def execution_rank(status: ExecutionStatus) -> int:
    """Higher is newer: pending, running, lost, then the outcomes. Only an outcome replaces ``lost``."""
    if status is ExecutionStatus.LOST:
        return FIRST_TERMINAL_RANK
    return (20 if status.is_terminal else 0) + _EXECUTION_ORDER[status]


def step_rank(status: StepStatus, attempt: int) -> int:
    """Higher is newer: by attempt (running before retrying), then ``lost``, then the outcomes."""
    ended = _TERMINAL_STEP_RANKS.get(status)
    if ended is not None:
        return ended
    return attempt * 2 + (status is StepStatus.RETRYING)


def folded_rank(sequence: int, *, is_final: bool) -> int:
    """The rank of a row that repetitions share: higher for a later state, and ended when it is final."""
    return min(sequence, _LOST_STEP - 1) + (_ENDED_STEP if is_final else 0)


class Rows:
    """The rows of a run table, as tuples in column order, merged by the `Merge` of each column."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.columns = [column.name for column in table.columns]
        self.key = [self.columns.index(column.name) for column in table.primary_key]
        self._rules: list[Merge] = [column.info["merge"] for column in table.columns]
        self._rank = self.columns.index("rank") if "rank" in self.columns else None
        self._upserts: dict[str, str] = {}

    def merge(self, old: Sequence[Any], new: Sequence[Any]) -> tuple[Any, ...]:
        """The row that `upsert` leaves when ``new`` meets ``old``."""
        is_newer = self._rank is not None and new[self._rank] > old[self._rank]
        return tuple(_merge(rule, a, b, is_newer) for rule, a, b in zip(self._rules, old, new, strict=True))

    def upsert(self, dialect: Dialect) -> str:
        """SQL that inserts a row or merges it into the existing row; for the driver's ``executemany``."""
        if dialect.name not in self._upserts:
            self._upserts[dialect.name] = self._compile_upsert(dialect)
        return self._upserts[dialect.name]

    def _compile_upsert(self, dialect: Dialect) -> str:
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert(self.table)
        new, old = insert.excluded, self.table.c
        sets: dict[str, Any] = {}
        for name, rule in zip(self.columns, self._rules, strict=True):
            if rule is Merge.FIRST:
                sets[name] = func.coalesce(old[name], new[name])
            elif rule is Merge.NEWEST:
                sets[name] = case((new.rank > old.rank, new[name]), else_=old[name])
            elif rule is not Merge.KEEP:
                replaces = new[name] < old[name] if rule is Merge.LOWEST else new[name] > old[name]
                sets[name] = case((replaces, new[name]), else_=old[name])
        keys = list(self.table.primary_key)
        statement = (
            insert.on_conflict_do_update(index_elements=keys, set_=sets) if sets else insert.on_conflict_do_nothing()
        )
        return str(statement.compile(dialect=dialect))


def _merge(rule: Merge, old: Any, new: Any, is_newer: bool) -> Any:
    if rule is Merge.FIRST:
        return new if old is None else old
    if rule is Merge.NEWEST:
        return new if is_newer else old
    if rule is Merge.LOWEST:
        return min(old, new)
    if rule is Merge.HIGHEST:
        return max(old, new)
    return old
