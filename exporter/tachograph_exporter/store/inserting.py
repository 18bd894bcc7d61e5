"""Inserting rows: many with few statements, directly through the driver, or in place of those with their keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import chain
from sqlite3 import IntegrityError
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.util import await_only

from tachograph_exporter.store import locking, planner_statistics

MIN_COPIED: Final = 50
"""Of fewer rows, COPY is not worth its preparation."""
_EXISTS: Final = "23505"
_MAX_PARAMETERS: Final = 30_000
"""Most values in one statement (SQLite's own limit is 32,766)."""


def insert_many(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run a single-row INSERT, written in the driver's own SQL, for many rows."""
    if not rows:
        return
    # Straight to the driver: SQLAlchemy inspects every row again, which costs half as much as writing it.
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name != "sqlite":
            # Not arrays: to encode one for each column takes this process twice the time, and all its threads wait.
            cursor.executemany(statement, rows)
            planner_statistics.written(connection, _table_of(statement), len(rows))
            return
        # SQLite's driver releases the GIL for every statement, and getting it back takes milliseconds while the
        # workflow's own thread is busy. So many rows go into one statement.
        width = len(rows[0])
        i = 0
        for size in (_MAX_PARAMETERS // width, 32, 1):
            multi_row = _multi_row(statement, width, size)
            while len(rows) - i >= size:
                cursor.execute(multi_row, list(chain.from_iterable(rows[i : i + size])))
                i += size
    finally:
        cursor.close()


def insert_absent(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """As `insert_many`, of rows that are hardly ever there already."""
    if connection.dialect.name == "sqlite":
        try:
            insert_many(connection, _plain(statement), rows)
        except IntegrityError:
            # One is there. What was written before it is not undone, and is written again.
            insert_many(connection, statement, rows)
    else:
        insert_many(connection, statement, rows)


def insert_new(connection: Connection, table: Table, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows that nobody else can have written, with all columns, in a transaction that others write beside.

    PostgreSQL gets many of them by COPY. Raises `locking.NotAlone` if one is there after all; whoever writes alone uses
    the statement, which says what becomes of it.
    """
    if len(rows) < MIN_COPIED or not locking.is_shared(connection):
        insert_absent(connection, statement, rows)
        return
    driver: Any = connection.connection.driver_connection
    try:
        await_only(
            driver.copy_records_to_table(table.name, records=rows, columns=[column.name for column in table.columns])
        )
    except Exception as error:
        if getattr(error, "sqlstate", None) == _EXISTS:
            raise locking.NotAlone from error
        raise
    planner_statistics.written(connection, table.name, len(rows))


@functools.cache
def _table_of(statement: str) -> str:
    """The name of the table that a statement inserts into."""
    into, name = statement.split(maxsplit=3)[1:3]
    if into.upper() != "INTO":
        raise ValueError(f"no INSERT INTO: {statement}")
    return name


@functools.cache
def _plain(statement: str) -> str:
    """An INSERT without what becomes of a row that is there: it fails then, and its other rows stay.

    So SQLite need not be able to undo a part of it: to keep the pages for that takes almost as long as to write them.
    """
    head, conflict, _ = statement.partition(" ON CONFLICT ")
    return head.replace("INSERT INTO", "INSERT OR FAIL INTO", 1) if conflict else statement


@functools.cache
def _multi_row(statement: str, width: int, count: int) -> str:
    """A single-row INSERT as one that inserts ``count`` rows."""
    row = f"({', '.join('?' * width)})"
    head, values, tail = statement.partition(row)
    if not values:
        raise ValueError(f"no row of {width} parameters in: {statement}")
    return f"{head}{', '.join([row] * count)}{tail}"


def upsert(dialect: Dialect, table: Table) -> Any:
    """An INSERT that replaces a row with the same primary key."""
    return _upsert(dialect.name, table)


@functools.cache
def _upsert(dialect_name: str, table: Table) -> Any:
    insert = (postgresql if dialect_name == "postgresql" else sqlite).insert(table)
    values = [column.name for column in table.columns if not column.primary_key]
    return insert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={value: insert.excluded[value] for value in values}
    )
