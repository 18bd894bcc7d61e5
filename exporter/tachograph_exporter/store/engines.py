"""SQLAlchemy engines for SQLite and PostgreSQL: no call waits for ever, and no lost database comes back empty.

A SQLite file is created once, when the database is first opened; afterwards a missing file is an error. Connections to
PostgreSQL have time-outs for connecting and for every command, TCP keepalives, and are checked when they were idle.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, create_engine, event, util
from sqlalchemy.engine import URL, Dialect, Engine, ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

from tachograph.errors import BadDatabaseURL
from tachograph_exporter.store import postgres_hosts
from tachograph_exporter.store.postgres_hosts import CONNECT_SECONDS, Hosts

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

POOL_SECONDS: Final = 5.0
"""How long a caller waits for a connection of the pool."""
_SQLITE_CONNECTIONS: Final = 12
_SQLITE_OVERFLOW: Final = 12
_IDLE_SECONDS: Final = 2.0
"""A connection to PostgreSQL that was idle for longer is checked before it is used again."""
_CHECK_SECONDS: Final = 2.0
_SMALLEST_FILE: Final = 512
"""Bytes of SQLite's smallest page: a file with a schema is at least as long."""
IDLE_IN_TRANSACTION_SECONDS: Final = 60.0
"""How long a transaction may wait for its process between two commands. A process that stands still (a machine that is
suspended, a debugger) holds what it has locked until then; PostgreSQL ends its session, and others go on."""
_READ_ONLY: Final = "25006"
"""SQLSTATE of a write on a server that is, by now, read-only: a standby, perhaps."""


class _Statements(util.LRUCache[Any, Any]):
    """Compiled statements, shared by all engines of the process that would compile them in the same way.

    A `Database` has an engine for each of its lanes. With caches of their own, each would compile every statement anew.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        """The statement compiled for such a dialect, or ``default``."""
        return super().get(_of_any_engine(key), default)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_of_any_engine(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_of_any_engine(key), value)


def _of_any_engine(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """SQLAlchemy's key with what matters of its dialect in place of the dialect, which is an engine's own."""
    dialect: Dialect = key[0]
    return (dialect.name, dialect.driver, getattr(dialect, "server_version_info", None), *key[1:])


_OPTIONS: Final = {"compiled_cache": _Statements(1000)}


class SqliteFile:
    """The file of a SQLite database: whether it is still the one that was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        # A URI of SQLite's own may name anything, for instance a file in memory.
        self.is_uri = path.startswith("file:")
        self._identity: tuple[int, int] | None = None

    def opened(self) -> None:
        """Remember which file was opened; from now on it is never created again."""
        if not self.is_uri:
            status = os.stat(self.path)
            self._identity = (status.st_dev, status.st_ino)

    def fault(self) -> str:
        """What is wrong if the file is gone, is another one, or is empty; else empty."""
        if self._identity is None:
            return ""
        try:
            status = os.stat(self.path)
        except OSError as error:
            return f"file is gone: {error.strerror}"
        if (status.st_dev, status.st_ino) != self._identity:
            return "file was replaced by another; restart to use that one"
        if status.st_size < _SMALLEST_FILE:
            return f"file was truncated to {status.st_size} bytes"
        return ""

    @property
    def address(self) -> str:
        """What to connect to, as a URI: after `opened`, one that creates no file."""
        if self.is_uri:
            return self.path
        mode = "rwc" if self._identity is None else "rw"
        return f"{Path(self.path).absolute().as_uri()}?mode={mode}"


def sqlite_engine(url: URL, file: SqliteFile, busy_seconds: float) -> Engine:
    """An engine whose connections wait ``busy_seconds`` for a lock."""
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=_SQLITE_CONNECTIONS,
        max_overflow=_SQLITE_OVERFLOW,
        pool_timeout=POOL_SECONDS,
        connect_args={"check_same_thread": False, "timeout": busy_seconds},
        execution_options=_OPTIONS,
    )

    @event.listens_for(engine, "do_connect")
    def on_do_connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        arguments[0] = file.address
        options["uri"] = True

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # `on_begin` below sends BEGIN, not the driver.
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            _use_wal(cursor, busy_seconds)
            # With WAL, NORMAL loses nothing when the process dies. Only a power cut may lose the last commits, each
            # whole.
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.execute("PRAGMA wal_autocheckpoint=4000")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA cache_size=-4000")
            cursor.close()
        except BaseException:
            # The pool does not know the connection yet.
            connection.close()
            raise

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A writer takes the write lock at once: upgrading a read transaction could fail half-way.
        write = connection.get_execution_options().get("tachograph_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    @event.listens_for(engine, "before_cursor_execute")
    def on_execute(connection: Connection, *_: Any) -> None:
        # Many short statements take long, too.
        deadline = connection.get_execution_options().get("tachograph_deadline")
        if deadline is not None:
            deadline.check()

    return engine


def _use_wal(cursor: sqlite3.Cursor, busy_seconds: float) -> None:
    """Switch to WAL. SQLite does not wait when several processes switch a new file at once, so this does."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def postgres_engine(url: URL, *, size: int, overflow: int, command_seconds: float | None) -> AsyncEngine:
    """An engine on asyncpg.

    Args:
        url: where the database is.
        size, overflow: connections that are kept, and how many more may be opened.
        command_seconds: how long a command may take; None: as long as it likes.

    Raises `BadDatabaseURL` when the driver is not installed.
    """
    connections: weakref.WeakSet[Any] = weakref.WeakSet()
    url, hosts = postgres_hosts.split(url)
    try:
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(
            url,
            pool_size=size,
            max_overflow=overflow,
            pool_timeout=POOL_SECONDS,
            execution_options=_OPTIONS,
            connect_args={
                "timeout": CONNECT_SECONDS,
                "command_timeout": command_seconds,
                "async_creator_fn": partial(_connect, connections, hosts, command_seconds is not None),
            },
        )
    except ImportError as error:
        raise BadDatabaseURL(
            f"PostgreSQL needs a driver ({error.name or error}): pip install 'tachograph[postgres]'"
        ) from None

    @event.listens_for(engine.sync_engine, "checkin")
    def on_checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if connection.driver_connection.is_closed():
            # Its end has been noticed already. The pool opens another one instead.
            raise DisconnectionError("the server closed the connection")
        since = record.info.get("idle_since")
        if since is None or time.monotonic() - since < _IDLE_SECONDS:
            return
        try:
            util.await_only(connection.driver_connection.fetchrow(";", timeout=_CHECK_SECONDS))
        except Exception as error:
            # The pool opens another one instead.
            raise DisconnectionError(str(error)) from error

    @event.listens_for(engine.sync_engine, "handle_error")
    def on_error(context: ExceptionContext) -> None:
        # The server may have become a standby; another connection finds the primary, if there is one.
        if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
            context.is_disconnect, context.invalidate_pool_on_disconnect = True, False

    _connections[engine.sync_engine] = connections
    return engine


_connections: Final[weakref.WeakKeyDictionary[Engine, weakref.WeakSet[Any]]] = weakref.WeakKeyDictionary()
"""The driver's connections of every PostgreSQL engine, also those that are in use."""


async def close_engine(engine: AsyncEngine, seconds: float) -> None:
    """Close an engine's connections. Those that are not closed in time are cut off."""
    # Not by the pool, which logs a traceback for each that does not close.
    connections = [
        connection for connection in list(_connections.get(engine.sync_engine, ())) if connection is not None
    ]
    await asyncio.gather(*[_close(connection, seconds) for connection in connections])
    engine.sync_engine.dispose(close=False)
    # What was cut off is closed in the loop's next turn.
    await asyncio.sleep(0)


async def _close(connection: Any, seconds: float) -> None:
    if connection.is_closed():
        return
    try:
        async with asyncio.timeout(seconds):
            await connection.close()
    except Exception:
        # In use, or the server does not answer.
        connection.terminate()


async def _connect(connections: weakref.WeakSet[Any], hosts: Hosts, is_hasty: bool, **options: Any) -> Any:
    connection = await postgres_hosts.connect(hosts, **options)
    connections.add(connection)
    if is_hasty:
        # Not as an option of the connection: a pooler between refuses those that it does not know.
        milliseconds = round(IDLE_IN_TRANSACTION_SECONDS * 1_000)
        try:
            await connection.execute(f"SET idle_in_transaction_session_timeout = {milliseconds}")
        except BaseException:
            connection.terminate()
            raise
    return connection
