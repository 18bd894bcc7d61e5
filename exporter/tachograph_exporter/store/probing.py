"""Whether the database is fit for work: it answers, reads its own pages, and takes writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from tachograph.errors import StoreUnavailable
from tachograph_exporter.store import failures, refused, state
from tachograph_exporter.store.database import Database, Lane, is_current
from tachograph_exporter.store.engines import SqliteFile
from tachograph_exporter.store.schema import workflow_executions

PROBE_SECONDS: Final = 1.5
"""How long a probe waits for the database."""
_LOCK_SECONDS: Final = 0.2
_CHECK_SECONDS: Final = 1.0
_TOUCHED: Final = "probed"
"""The fact in ``store_state`` that is written to see whether writes go through again."""


class Probed(NamedTuple):
    """``fault``: why the database is not fit for work; empty: it is. ``refused``: records that are set aside."""

    fault: str
    refused: int = 0


class Probe:
    """Probes ``database``. One probe at a time: whoever asks meanwhile gets the same answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: asyncio.Task[Probed] | None = None

    async def check(self) -> Probed:
        """How the database is, within `PROBE_SECONDS`."""
        if self._pending is None or self._pending.done():
            self._pending = asyncio.create_task(self._probe(), name="tachograph probe")
        done, _ = await asyncio.wait({self._pending}, timeout=PROBE_SECONDS)
        if not done:
            return Probed(f"the database does not answer within {PROBE_SECONDS:g} s")
        return self._pending.result()

    async def _probe(self) -> Probed:
        database = self._database
        try:
            if database.is_sqlite:
                probed = await database.in_thread(Lane.PROBE, lambda: _probe_sqlite(database))
            else:
                probed = await database.read(_look, Lane.PROBE)
                if not probed.fault and database.condition.write_fault:
                    await database.write(_touch, Lane.PROBE)
        except StoreUnavailable as error:
            return Probed(f"the database is unavailable: {failures.reason_of(error.__cause__ or error)}")
        except Exception as error:
            return Probed(f"the database is unavailable: {failures.reason_of(error)}")
        condition = database.condition
        if not probed.fault and condition.write_fault:
            return Probed(f"the last write to the database failed: {condition.write_fault}", probed.refused)
        if not probed.fault and condition.damage:
            return Probed(f"the database is damaged: {condition.damage}", probed.refused)
        return probed


def _look(connection: Connection) -> Probed:
    """Read some of every database's own pages: the schema, the newest execution, the refused records."""
    if not is_current(connection):
        return Probed("the database has another schema")
    connection.execute(select(workflow_executions).limit(1)).first()
    number = refused.count(connection)
    if connection.dialect.name == "postgresql":
        # The transaction that asks may be read-only by its own wish.
        read_only = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool"
        if connection.exec_driver_sql(read_only).scalar():
            return Probed("the database is read-only", number)
    return Probed("", number)


def _touch(connection: Connection) -> None:
    state.set_state(connection, _TOUCHED, "")


def _probe_sqlite(database: Database) -> Probed:
    assert database.file is not None  # noqa: S101
    if fault := database.file.fault():
        return Probed(f"the database {fault}")
    # A connection of its own: pages that a pooled one has cached may be damaged in the file.
    with database.unpooled(_LOCK_SECONDS) as connection:
        if fault := _fault_of_size(connection, database.file):
            return Probed(f"the database {fault}")
        probed = _look(connection)
        if probed.fault:
            return probed
        if database.condition.damage and _is_whole(connection):
            database.condition.damage = ""
    with contextlib.suppress(_Busy), _writing(database, _LOCK_SECONDS) as connection:
        if database.condition.write_fault:
            _touch(connection)
    return probed


class _Busy(Exception):
    """Another process writes: nothing is wrong with the database."""


@contextlib.contextmanager
def _writing(database: Database, wait_seconds: float) -> Iterator[Connection]:
    """A transaction that may write; what is written is committed. Nothing is written to the file if nothing is."""
    try:
        with database.unpooled(wait_seconds, is_write=True) as connection:
            yield connection
    except Exception as error:
        cause = getattr(error, "orig", None) or error
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise _Busy from error
        raise
    database.condition.wrote()


def _fault_of_size(connection: Connection, file: SqliteFile) -> str:
    """Whether the file has fewer pages than its own header says.

    The file is not opened to find out: closing it would release the locks of this process's other connections to it
    (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    if file.is_uri:
        return ""
    page_size = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    size = os.stat(file.path).st_size
    # The newest pages may be in the write-ahead log only.
    with contextlib.suppress(FileNotFoundError):
        size += os.stat(f"{file.path}-wal").st_size
    return f"file is truncated: {size} bytes of {pages * page_size}" if size < pages * page_size else ""


def _is_whole(connection: Connection) -> bool:
    """Whether SQLite finds nothing damaged. False also if that takes too long to find out."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101
    deadline = time.monotonic() + _CHECK_SECONDS
    driver.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
    try:
        return bool(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok")
    finally:
        driver.set_progress_handler(None, 0)
