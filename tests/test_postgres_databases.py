"""Tests that share a PostgreSQL server do not see each other's rows."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tests.conftest import make_execution, make_run
from tests.postgres_server import PostgresDatabases

pytestmark = pytest.mark.e2e


async def test_a_database_ends_with_its_test_even_if_its_sessions_are_stuck(
    postgres_databases: PostgresDatabases,
) -> None:
    url = postgres_databases.create()
    database = await asyncio.to_thread(Database, url)
    await asyncio.to_thread(StoreWriter(database).apply, make_run(make_execution()))
    await database.aclose()

    # As a test leaves it that failed: a transaction is open, a table locked, and another session waits for it.
    holder, waiter = await asyncpg.connect(url), await asyncpg.connect(url)
    await holder.execute("BEGIN; LOCK TABLE workflow_executions; CREATE TABLE left_over (x int)")
    waiting = asyncio.create_task(waiter.execute("DELETE FROM workflow_executions"))
    await asyncio.to_thread(postgres_databases.drop)
    # Whichever session ends first: without the lock, what waited for it may still have been executed.
    with contextlib.suppress(asyncpg.PostgresError, ConnectionError):
        await waiting
    for connection in (holder, waiter):
        connection.terminate()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)

    # The next one is as new as the first, and nobody waits for what was locked.
    connection = await asyncpg.connect(postgres_databases.create())
    try:
        assert await connection.fetchval("SELECT count(*) FROM workflow_executions") == 0
        assert await connection.fetchval("SELECT to_regclass('left_over')") is None
        await connection.execute("BEGIN; LOCK TABLE workflow_executions NOWAIT; ROLLBACK")
    finally:
        await connection.close()
    await asyncio.to_thread(postgres_databases.drop)


def test_a_statement_that_fails_says_why_and_the_next_is_executed(postgres_databases: PostgresDatabases) -> None:
    with postgres_databases.server.session() as execute:
        with pytest.raises(RuntimeError, match='database "no such" does not exist'):
            execute('DROP DATABASE "no such"')
        execute("SET work_mem = '1MB'")
