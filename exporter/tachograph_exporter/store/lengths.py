"""What took long: traces and executions by how long they took, the newest first, without reading the others.

Their indexes have the part of time in which something started, 2^40 ns (some 18 minutes), and then how long it took:
the long ones of a part follow one another. A part with very many of them is read by time instead, where they are near.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, literal_column, select

from tachograph_exporter.store.schema import (
    EXECUTION_LENGTH,
    PART_CREATED,
    PART_STARTED,
    TRACE_LENGTH,
    traces,
    workflow_executions,
)
from tachograph_exporter.store.span_criteria import Window, within

_BITS: Final = 40
_MAX_ROWS: Final = 2_000
"""Long ones of a part, or of several, that are read at once."""
_MAX_PARTS: Final = 256
FIRST_ROWS: Final = 1_000
"""Rows that are read at first."""
_MOST_ROWS: Final = 16_000
"""Rows that are read at once, later."""


class Lengths(NamedTuple):
    """What a table has for this: when something started, the part of time of that, and how long it took."""

    workspace: ColumnElement[str]
    start: ColumnElement[int]
    part: ColumnElement[int]
    length: ColumnElement[int]


TRACES: Final = Lengths(
    traces.c.workspace_id, traces.c.start_ns, literal_column(f"({PART_STARTED})", BigInteger),
    literal_column(f"({TRACE_LENGTH})", BigInteger),
)  # fmt: skip
EXECUTIONS: Final = Lengths(
    workflow_executions.c.workspace_id, workflow_executions.c.created_ns,
    literal_column(f"({PART_CREATED})", BigInteger), literal_column(f"({EXECUTION_LENGTH})", BigInteger),
)  # fmt: skip


def long(
    connection: Connection, workspace_id: str, statement: Select[Any], of: Lengths, window: Window, least_ns: int
) -> Generator[Any, None, None]:
    """Rows of what took at least so many nanoseconds and started in the window, the newest first; some of them twice.

    ``statement`` selects the start as its first column.
    """
    own = of.workspace == workspace_id
    ends = [
        connection.execute(select(of.start).where(own).order_by(order).limit(1)).scalar()
        for order in (of.start.asc(), of.start.desc())
    ]
    if ends[0] is None or ends[1] is None:
        return
    low = max(ends[0], window.start_ns or 0)
    high = ends[1] if window.end_ns is None else min(ends[1], window.end_ns)
    statement = statement.where(own, of.length >= least_ns)
    last, count = high >> _BITS, 1
    while last >= low >> _BITS:
        first = max(last - count + 1, low >> _BITS)
        yield from _of_parts(connection, statement, of, (low, high), range(last, first - 1, -1))
        last, count = first - 1, min(count * 2, _MAX_PARTS)


def _of_parts(
    connection: Connection, statement: Select[Any], of: Lengths, between: tuple[int, int], parts: Sequence[int]
) -> Generator[Any, None, None]:
    rows = connection.execute(statement.where(of.part.in_(parts)).limit(_MAX_ROWS + 1)).all()
    low, high = between
    if len(rows) <= _MAX_ROWS:
        yield from sorted([row for row in rows if low <= row[0] <= high], key=lambda row: -row[0])
    elif len(parts) > 1:
        middle = len(parts) // 2
        yield from _of_parts(connection, statement, of, between, parts[:middle])
        yield from _of_parts(connection, statement, of, between, parts[middle:])
    else:
        window = Window(max(low, parts[0] << _BITS), min(high, ((parts[0] + 1) << _BITS) - 1))
        yield from newest_first(connection, within(statement, of.start, window).order_by(of.start.desc()), of.start)


def newest_first(connection: Connection, statement: Any, start: Any) -> Generator[Any, None, None]:
    """Rows of a statement that orders them by ``start``, its first column; some of them twice.

    They are read with limits: PostgreSQL plans a statement without one for reading all of it, and sorts.
    """
    size, later = FIRST_ROWS, statement
    while True:
        rows = connection.execute(later.limit(size)).all()
        yield from rows
        if len(rows) < size:
            return
        # Of very many that start at the same moment, the next part has more.
        size = size * 4 if rows[0][0] == rows[-1][0] else min(size * 4, max(size, _MOST_ROWS))
        later = statement.where(start <= rows[-1][0])
