"""Many rows in few statements, in the driver's own SQL."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection

from tachograph_exporter.store import event_log as event_log

_PARAMETERS: Final = 30_000
"""Values in one statement at most (SQLite's own limit is 32,766)."""


def insert_many(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run an INSERT of one row, in the driver's own SQL, for many rows."""
    if not rows:
        return
    # Straight to the driver: SQLAlchemy looks at every row once more, which costs half as much as writing it.
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name != "sqlite":
            cursor.executemany(statement, rows)
            return
        # SQLite's driver gives up the interpreter for every statement, and while the workflow's own thread is busy it
        # takes milliseconds to get it back: many rows go into one statement.
        width = len(rows[0])
        i = 0
        for size in (_PARAMETERS // width, 32, 1):
            many = _of_many(statement, width, size)
            while len(rows) - i >= size:
                cursor.execute(many, list(chain.from_iterable(rows[i : i + size])))
                i += size
    finally:
        cursor.close()


@functools.cache
def _of_many(statement: str, width: int, count: int) -> str:
    """A statement that inserts one row, made to insert many."""
    row = f"({', '.join('?' * width)})"
    head, found, tail = statement.partition(row)
    if not found:
        raise ValueError(f"no values in: {statement}")
    return f"{head}{', '.join([row] * count)}{tail}"
