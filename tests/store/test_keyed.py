"""Rows looked up by many keys: the same rows on both databases, and on PostgreSQL each key by the index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, bindparam, insert, select, text

from tachograph_exporter.store import locking
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.schema import span_logs

LOGS = span_logs.c
STATEMENT = keyed(
    select(LOGS.span_id, LOGS.body).where(LOGS.workspace_id == bindparam("workspace"), LOGS.trace_id == "t"),
    LOGS.span_id,
)


def fill(connection: Connection, count: int) -> None:
    row = {"workspace_id": "w", "trace_id": "t", "time_ns": 1, "id": "", "severity": 0, "service": "", "event_name": ""}
    rows = [{**row, "span_id": f"{i:05}", "body": str(i)} for i in range(count)]
    connection.execute(insert(span_logs), [*rows, {**rows[0], "workspace_id": "other"}])


def test_the_rows_of_the_keys_are_found(any_database_url: str) -> None:
    database = Database(any_database_url)
    database.run(lambda c: fill(c, 20))
    keys = ["00003", "00007", "not there", "00003"]
    rows = database.look(
        lambda c: c.execute(STATEMENT.of(c.dialect), {"workspace": "w", KEYS: sorted(set(keys))}).all()
    )
    assert sorted(map(tuple, rows)) == [("00003", "3"), ("00007", "7")]
    assert database.look(lambda c: c.execute(STATEMENT.of(c.dialect), {"workspace": "w", KEYS: []}).all()) == []
    database.close()


@pytest.mark.e2e
def test_without_statistics_each_key_is_looked_up_in_the_index(postgres: Callable[..., str]) -> None:
    database = Database(postgres())

    def plan(connection: Connection) -> str:
        locking.lock(connection)
        fill(connection, 3_000)
        keys = [f"{i:05}" for i in range(500)]
        statement = STATEMENT.each.params(workspace="w", **{KEYS: keys})
        compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        return "\n".join(connection.execute(text(f"EXPLAIN {compiled}".replace(":", r"\:"))).scalars())

    shown = database.run(plan)
    (condition,) = [line for line in shown.splitlines() if "Index Cond" in line]
    assert "span_id" in condition, shown
    database.close()
