"""Rows that are taken for new ones: all of them are stored, whether one was there or not."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, select

from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_absent, insert_many, upsert
from tachograph_exporter.store.schema import trace_keys


def rows(numbers: range, home: str | None) -> list[tuple[str, str, str | None]]:
    return [("w", f"key {i:04}", home) for i in numbers]


def statement(connection: Connection) -> str:
    return str(upsert(connection.dialect, trace_keys).compile(dialect=connection.dialect))


@pytest.mark.parametrize("there", [range(0), range(1), range(20, 21), range(39, 60), range(100)])
def test_a_row_that_is_there_is_replaced_and_none_is_missing(database_url: str, there: range) -> None:
    database = Database(database_url)

    def write(connection: Connection) -> dict[str, str]:
        insert_many(connection, statement(connection), rows(there, "a" * 32))
        insert_absent(connection, statement(connection), rows(range(10, 50), "b" * 32))
        return {row.key: row.trace_id for row in connection.execute(select(trace_keys)).all()}

    try:
        stored = database.run(write)
    finally:
        database.close()
    expected = {f"key {i:04}": "a" * 32 for i in there} | {f"key {i:04}": "b" * 32 for i in range(10, 50)}
    assert stored == expected


def test_a_row_that_cannot_be_stored_is_an_error(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(Exception, match=r"(?i)null"):
        database.run(lambda c: insert_absent(c, statement(c), [*rows(range(40), "a" * 32), *rows(range(40, 41), None)]))
    assert database.look(lambda c: c.execute(select(trace_keys)).all()) == []
    database.close()
