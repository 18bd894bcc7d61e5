"""Merging two versions of a row, in the database and in memory alike."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Table, case, func, literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.events import ExecutionStatus, StepStatus

INGESTED_PROCESS: Final = "otlp"
"""The process of an execution that is assembled from spans."""


class Merge(Enum):
    """How a column of an existing row merges with a new version of the row."""

    KEEP = auto()
    """Part of the key, or the same in every version."""
    FIRST = auto()
    """The first value that is not null."""
    OWNER = auto()
    """The first process that is not null; one that recorded the execution rather than one that received its spans."""
    NEWEST = auto()
    """The value of the version with the higher rank (see `execution_rank` and `step_rank`)."""
    OF_ATTEMPT = auto()
    """As `NEWEST`; of two versions of one attempt, the lowest value that is not null: one tells of its start alone."""
    LOWEST = auto()
    """The lowest value that is not null."""
    HIGHEST = auto()
    UNION = auto()
    """All members of the two lists, as JSON: each process that reports a step may know some of its dependencies."""


_EXECUTION_ORDER: Final = {status: i for i, status in enumerate(ExecutionStatus)}
_STEP_ORDER: Final = {status: i for i, status in enumerate(StepStatus)}
_LOST_STEP: Final = 1 << 40
_ENDED_STEP: Final = 1 << 41
FIRST_TERMINAL_RANK: Final = 10
FIRST_TERMINAL_STEP_RANK: Final = _LOST_STEP
"""Rows of this rank and above have ended."""
_TERMINAL_STEP_RANKS: Final = {
    status._value_: _LOST_STEP if status is StepStatus.LOST else _ENDED_STEP + order
    for status, order in _STEP_ORDER.items()
    if status.is_terminal
}


_EMPTY: Final[ColumnElement[str]] = literal_column("'[]'")
_UNION: Final = {
    "sqlite": "(SELECT json_group_array(value) FROM (SELECT value FROM json_each({table}.{column}) "
    "UNION SELECT value FROM json_each(excluded.{column}) ORDER BY 1))",
    # As compact as the encoder of the rows writes it.
    "postgresql": "(SELECT '[' || string_agg(to_json(value)::text, ',' ORDER BY value COLLATE \"C\") || ']' FROM "
    "(SELECT value FROM json_array_elements_text({table}.{column}::json) AS value "
    "UNION SELECT value FROM json_array_elements_text(excluded.{column}::json) AS value) AS ids)",
}
decode_ids: Final = msgspec.json.Decoder(list[str]).decode


def encode_ids(ids: Sequence[str]) -> str:
    """A list of ids as it is in a row."""
    return msgspec.json.encode(ids).decode()


def execution_rank(status: ExecutionStatus) -> int:
    """Higher is newer: pending, running, lost, then the outcomes. Only an outcome replaces ``lost``."""
    if status is ExecutionStatus.LOST:
        return FIRST_TERMINAL_RANK
    return (20 if status.is_terminal else 0) + _EXECUTION_ORDER[status]


def step_rank(status: StepStatus, attempt: int) -> int:
    """Higher is newer: by attempt (running before retrying), then ``lost``, then the outcomes."""
    # By its text: the hash of a member is computed in Python each time.
    ended = _TERMINAL_STEP_RANKS.get(status._value_)
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
        self._newest = [i for i, rule in enumerate(self._rules) if rule is Merge.NEWEST]
        self._first = [i for i, rule in enumerate(self._rules) if rule is Merge.FIRST]
        self._others = [
            (i, rule)
            for i, rule in enumerate(self._rules)
            if rule not in (Merge.KEEP, Merge.NEWEST, Merge.FIRST, Merge.OF_ATTEMPT)
        ]
        self._of_attempt = [i for i, rule in enumerate(self._rules) if rule is Merge.OF_ATTEMPT]
        self._attempt = self.columns.index("attempt") if "attempt" in self.columns else 0
        self._upserts: dict[str, str] = {}

    def merge(self, old: Sequence[Any], new: Sequence[Any]) -> tuple[Any, ...]:
        """The row that `upsert` leaves when ``new`` meets ``old``."""
        merged = list(old)
        for i in self._of_attempt:
            if old[self._attempt] == new[self._attempt]:
                merged[i] = _merge(Merge.LOWEST, old[i], new[i])
            elif self._rank is not None and new[self._rank] > old[self._rank]:
                merged[i] = new[i]
        if self._rank is not None and new[self._rank] > old[self._rank]:
            for i in self._newest:
                merged[i] = new[i]
        for i in self._first:
            if merged[i] is None:
                merged[i] = new[i]
        for i, rule in self._others:
            if (value := new[i]) != merged[i]:
                merged[i] = _merge(rule, merged[i], value)
        return tuple(merged)

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
            elif rule is Merge.OWNER:
                is_ours = old[name].is_(None) | (old[name] == literal_column(f"'{INGESTED_PROCESS}'"))
                sets[name] = case((is_ours, func.coalesce(new[name], old[name])), else_=old[name])
            elif rule is Merge.NEWEST:
                sets[name] = case((new.rank > old.rank, new[name]), else_=old[name])
            elif rule is Merge.OF_ATTEMPT:
                is_lower = old[name].is_(None) | (new[name] < old[name])
                is_same = new.attempt == old.attempt
                sets[name] = case(
                    (is_same & is_lower, new[name]), (is_same, old[name]), (new.rank > old.rank, new[name]),
                    else_=old[name],
                )  # fmt: skip
            elif rule is Merge.LOWEST:
                sets[name] = case((old[name].is_(None) | (new[name] < old[name]), new[name]), else_=old[name])
            elif rule is Merge.HIGHEST:
                sets[name] = case((new[name] > old[name], new[name]), else_=old[name])
            elif rule is Merge.UNION:
                union: ColumnElement[str] = literal_column(
                    _UNION[dialect.name].format(table=self.table.name, column=name)
                )
                same = (old[name] == new[name]) | (new[name] == _EMPTY)
                sets[name] = case((same, old[name]), (old[name] == _EMPTY, new[name]), else_=union)
        keys = list(self.table.primary_key)
        statement = (
            insert.on_conflict_do_update(index_elements=keys, set_=sets) if sets else insert.on_conflict_do_nothing()
        )
        return str(statement.compile(dialect=dialect))


def _merge(rule: Merge, old: Any, new: Any) -> Any:
    """Two values that differ, by a rule other than `Merge.KEEP`, `Merge.FIRST` and `Merge.NEWEST`."""
    if rule is Merge.OWNER:
        return new if new is not None and old in (None, INGESTED_PROCESS) else old
    if rule is Merge.LOWEST:
        return new if old is None else old if new is None else min(old, new)
    if rule is Merge.HIGHEST:
        return max(old, new)
    if new == "[]":
        return old
    return new if old == "[]" else encode_ids(sorted({*decode_ids(old), *decode_ids(new)}))
