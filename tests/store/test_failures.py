"""One classifier tells "away" from "bad data", by what the drivers really raise."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, exc

from tachograph.errors import DatabaseUnavailable
from tachograph_exporter.store import failures
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_many

AWAY = ["08006", "25006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "57P03", "58030", "XX000",
        "42501", "42P01", "42703", "42883"]  # fmt: skip
BAD = ["22001", "22003", "22P05", "23502", "23505", "42601", "42804"]


def raising(state: str) -> Callable[[Connection], Any]:
    return lambda c: c.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")


@pytest.mark.e2e
@pytest.mark.parametrize("state", AWAY + BAD)
async def test_a_state_of_postgresql_is_away_or_bad_data_on_every_way_in(
    postgres: Callable[[], str], state: str
) -> None:
    database = Database(postgres())
    expected = DatabaseUnavailable if state in AWAY else exc.DBAPIError
    work = raising(state)
    try:
        for call in (database.run, database.look):
            with pytest.raises(expected, match="no"):
                await asyncio.to_thread(call, work)
        for answer in (database.read(work), database.write(work)):
            with pytest.raises(expected, match="no"):
                await answer
    finally:
        await database.aclose()


@pytest.mark.e2e
def test_a_value_that_postgresqls_driver_refuses_is_bad_data(postgres: Callable[[], str]) -> None:
    database = Database(postgres())
    statement = "INSERT INTO store_state (name, value, updated_ns) VALUES ($1, $2, $3)"
    for row in (("a", "v", 1 << 70), ("a", "nul \0", 1), ("a", 5, 1)):
        with pytest.raises(Exception) as raised:
            database.run(lambda c, row=row: insert_many(c, statement, [row]))  # type: ignore[misc]
        assert not isinstance(raised.value, DatabaseUnavailable), row
        assert not failures.is_away(raised.value)
    database.close()


@pytest.mark.parametrize(
    ("statement", "values", "is_away"),
    [
        ("INSERT INTO t VALUES (?)", (1 << 70,), False),
        ("INSERT INTO t VALUES (?)", (object(),), False),
        ("INSERT INTO t VALUES (?)", ("\ud800",), False),
        ("INSERT INTO t VALUES (?)", (None,), False),
        ("INSERT INTO t VALUES (?)", (1, 2), False),
        ("SELECT * FROM no_such_table", (), True),
    ],
    ids=["too large", "no value", "no text", "null", "too many", "no table"],
)
def test_what_sqlites_driver_raises(statement: str, values: tuple[Any, ...], is_away: bool) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a NOT NULL)")
    with pytest.raises(Exception) as raised:
        connection.execute(statement, values)
    assert failures.is_away(raised.value) is is_away
    connection.close()


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (OSError("no route to host"), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (exc.TimeoutError("QueuePool limit reached"), True),
        (sqlite3.DatabaseError("file is not a database"), True),
        (sqlite3.OperationalError("disk I/O error"), True),
        (KeyError("status"), False),
        (ValueError("no such step"), False),
        (RuntimeError("deque mutated"), False),
        (sqlite3.ProgrammingError("Error binding parameter"), False),
    ],
    ids=repr,
)
def test_other_errors(error: Exception, is_away: bool, database_url: str) -> None:
    assert failures.is_away(error) is is_away

    def work(_connection: Connection) -> None:
        raise error

    database = Database(database_url)
    expected = DatabaseUnavailable if is_away else type(error)
    for call in (database.run, database.look):
        with pytest.raises(expected):
            call(work)
    assert bool(database.condition.write_fault) is is_away
    database.close()
