"""The rows of lines that code wrote while it did a step's work: the last ones of each attempt.

A line that arrives again changes nothing. Each writer's last line is kept as long as few write to an attempt: the
numbers of its lines say how many there were, and so how many are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, func, literal, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.events import OUTPUT_WRITER
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.keyed import change_each
from tachograph_exporter.store.schema import workflow_step_lines

MAX_LINES: Final = 200
"""Lines of an attempt that are kept, the last ones."""
MAX_WRITERS: Final = 1_000
"""Processes of an attempt whose number of lines is remembered."""
_CHUNK: Final = 500

_lines = workflow_step_lines.c

Attempt = tuple[str, str, int]
"""(execution id, step id, attempt)."""


class LineRow(NamedTuple):
    """A row of ``workflow_step_lines``, but for its execution."""

    step_id: str
    attempt: int
    writer: str
    number: int
    time_ns: int
    severity: int
    logger: str
    message: str
    error_type: str | None
    error_message: str | None
    error_stack: str | None

    @property
    def place(self) -> Place:
        """Its place in the order of an execution's lines."""
        return Place(self.time_ns, self.step_id, self.attempt, self.writer, self.number)


class Place(NamedTuple):
    """A line's place in the order of an execution's lines."""

    time_ns: int
    step_id: str
    attempt: int
    writer: str
    number: int


class StepLineRows:
    """Writes lines."""

    def __init__(self, dialect: Dialect) -> None:
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._insert = str(insert(workflow_step_lines).on_conflict_do_nothing().compile(dialect=dialect))

    def put(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Store lines, rows in column order, and remove what is too much of their attempts."""
        insert_many(connection, self._insert, rows)
        for execution_id in {row[0] for row in rows}:
            _prune(connection, execution_id, {row[1] for row in rows if row[0] == execution_id})


_COUNTS: Final = (
    select(_lines.step_id, _lines.attempt)
    .where(_lines.execution_id == bindparam("execution"), _lines.step_id.in_(bindparam("steps", expanding=True)))
    .group_by(_lines.step_id, _lines.attempt)
    .having(func.count() > MAX_LINES)
)
_PLACES: Final = (
    select(_lines.writer, _lines.number)
    .where(
        _lines.execution_id == bindparam("execution"), _lines.step_id == bindparam("step"),
        _lines.attempt == bindparam("attempt"),
    )
    .order_by(_lines.time_ns.desc(), _lines.number.desc(), _lines.writer.desc())
)  # fmt: skip


def _prune(connection: Connection, execution_id: str, step_ids: Iterable[str]) -> None:
    ids = sorted(step_ids)
    for i in range(0, len(ids), _CHUNK):
        parameters = {"execution": execution_id, "steps": ids[i : i + _CHUNK]}
        for step_id, attempt in connection.execute(_COUNTS, parameters).all():
            _prune_attempt(connection, (execution_id, step_id, attempt))


def _prune_attempt(connection: Connection, attempt: Attempt) -> None:
    parameters = dict(zip(("execution", "step", "attempt"), attempt, strict=True))
    newest: set[str] = set()
    surplus: dict[str, list[int]] = {}
    for i, (writer, number) in enumerate(connection.execute(_PLACES, parameters)):
        is_last = writer not in newest
        newest.add(writer)
        if i >= MAX_LINES and not (is_last and len(newest) <= MAX_WRITERS):
            surplus.setdefault(writer, []).append(number)
    for writer, numbers in surplus.items():
        of_writer = delete(workflow_step_lines).where(
            _lines.execution_id == attempt[0], _lines.step_id == attempt[1], _lines.attempt == attempt[2],
            _lines.writer == writer,
        )  # fmt: skip
        change_each(connection, of_writer, workflow_step_lines.c.number, numbers)


_ORDER: Final = (_lines.time_ns, _lines.step_id, _lines.attempt, _lines.writer, _lines.number)
_OF_EXECUTION: Final = select(*workflow_step_lines.columns[1:]).where(_lines.execution_id == bindparam("execution"))
_OUTPUT: Final = _OF_EXECUTION.where(
    _lines.step_id.in_(bindparam("steps", expanding=True)), _lines.writer == OUTPUT_WRITER
)


def page(
    connection: Connection,
    execution_id: str,
    step_ids: Sequence[str] | None,
    *,
    after: Place | None,
    min_severity: int,
    limit: int,
) -> list[LineRow]:
    """Lines of an execution, or of some of its steps, in order after a place; without what its commands wrote."""
    statement = _OF_EXECUTION.where(_lines.severity >= min_severity, _lines.writer != OUTPUT_WRITER)
    if after is not None:
        statement = statement.where(tuple_(*_ORDER) > tuple_(*map(literal, after)))
    statement = statement.order_by(*_ORDER).limit(limit)
    parameters = {"execution": execution_id}
    if step_ids is None:
        return [LineRow(*row) for row in connection.execute(statement, parameters)]
    rows: list[LineRow] = []
    for i in range(0, len(step_ids), _CHUNK):
        of_steps = statement.where(_lines.step_id.in_(step_ids[i : i + _CHUNK]))
        rows += [LineRow(*row) for row in connection.execute(of_steps, parameters)]
    rows.sort(key=lambda row: row.place)
    return rows[:limit]


def output_of(connection: Connection, execution_id: str, step_ids: Sequence[str]) -> list[LineRow]:
    """The stored lines of what the commands wrote that these steps of an execution are."""
    rows: list[LineRow] = []
    for i in range(0, len(step_ids), _CHUNK):
        parameters = {"execution": execution_id, "steps": list(step_ids[i : i + _CHUNK])}
        rows += [LineRow(*row) for row in connection.execute(_OUTPUT, parameters)]
    return rows


_MISSING: Final = (
    select((func.max(_lines.number) - func.count()).label("missing"))
    .where(_lines.execution_id == bindparam("execution"))
    .group_by(_lines.step_id, _lines.attempt, _lines.writer)
    .subquery()
)
_DROPPED: Final = select(func.sum(_MISSING.c.missing))


def dropped_of(connection: Connection, execution_id: str) -> int:
    """How many lines of an execution were written and are not kept."""
    return int(connection.execute(_DROPPED, {"execution": execution_id}).scalar() or 0)


def archived_line(part: Mapping[str, Any]) -> LineRow:
    """A line as the archive has it."""
    return LineRow(**{name: part.get(name) for name in LineRow._fields})  # type: ignore[arg-type]


def kept_and_dropped(rows: Iterable[LineRow | Row[Any]]) -> tuple[list[LineRow], int]:
    """(the last `MAX_LINES` lines of each attempt, in order of time, how many other ones there were)."""
    by_attempt: dict[tuple[str, int], list[Any]] = {}
    highest: dict[tuple[str, int, str], int] = {}
    for row in rows:
        by_attempt.setdefault((row.step_id, row.attempt), []).append(row)
        key = (row.step_id, row.attempt, row.writer)
        highest[key] = max(row.number, highest.get(key, 0))
    kept: list[LineRow] = []
    for of_attempt in by_attempt.values():
        of_attempt.sort(key=lambda row: (row.time_ns, row.number, row.writer))
        kept += of_attempt[-MAX_LINES:]
    kept.sort(key=lambda row: (row.time_ns, row.step_id, row.attempt, row.number, row.writer))
    return kept, max(0, sum(highest.values()) - len(kept))
