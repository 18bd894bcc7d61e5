"""A database, SQLite or PostgreSQL: connections, transactions, and access from the event loop.

Queries are plain functions of a SQLAlchemy `Connection`. From the event loop, `Database.read` and `Database.write` call
them in a few threads for SQLite (its driver is synchronous, and one thread hop per query is cheaper than one per row)
and on asyncpg for PostgreSQL. From a thread, `Database.look` and `Database.run` do the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection, create_engine, delete, event, inspect, select
from sqlalchemy.engine import URL, Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from tachograph.errors import BadDatabaseURL, CannotOpen, DatabaseUnavailable, NewerSchema
from tachograph_exporter.store.schema import HEAD

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

READERS: Final = 4
BUSY_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 1.0

_EXAMPLES: Final = "sqlite:///tachograph.db or postgresql://user@host/name"


class Database:
    """The database at ``url``; a SQLite file is created if it does not exist.

    Raises `StoreError`: `DatabaseUnavailable` when it is locked, or does not respond, for ``wait_seconds``.
    """

    def __init__(self, url: str, *, wait_seconds: float = BUSY_SECONDS) -> None:
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._threads: ThreadPoolExecutor | None = None
        self._async: AsyncEngine | None = None
        self._side_loop: _SideLoop | None = None
        self.engine: Engine | None = None
        if self.is_sqlite:
            # To open it, an engine of its own: the time to wait for a lock belongs to a connection.
            self.engine = _sqlite_engine(self.url, wait_seconds)
        else:
            self._side_loop = _SideLoop(self.url)
        with self._opening():
            if self._side_loop is not None:
                is_ready = self._side_loop.run(is_current, timeout=wait_seconds)
            else:
                is_ready = self.look(is_current)
            if not is_ready:
                self.run(prepare)
        if self.engine is not None and wait_seconds != BUSY_SECONDS:
            self.engine.dispose()
            self.engine = _sqlite_engine(self.url, BUSY_SECONDS)

    @property
    def dialect(self) -> Dialect:
        """The SQL dialect."""
        return self.engine.dialect if self.engine is not None else self._require_side_loop().dialect

    @property
    def name(self) -> str:
        """The URL without its password, for display."""
        url = self.url
        if secrets := {key: "***" for key in url.query if key.lower() in _SECRET_OPTIONS}:
            url = url.update_query_dict(secrets)
        return url.render_as_string(hide_password=True)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a transaction that may write; blocks the calling thread."""
        if self.engine is not None:
            with self.engine.connect().execution_options(tachograph_write=True) as connection, connection.begin():
                return work(connection)
        return self._require_side_loop().run(work)

    def look(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a transaction that only reads; blocks the calling thread.

        All its statements see the same state.
        """
        if self.engine is not None:
            with self.engine.connect() as connection:
                return work(connection)
        return self._require_side_loop().run(work, options=_SNAPSHOT)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a transaction that only reads, from the event loop. All its statements see the same state.

        What belongs together must be read in one call: two calls may see two states.
        """
        if self.engine is not None:
            return await self._in_thread(self.look, work)
        try:
            return await self._read(work)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # A pooled connection was dead. The pool has been replaced, and reading twice is harmless.
        return await self._read(work)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        async with self._asyncpg().connect() as connection:
            await connection.execution_options(**_SNAPSHOT)
            return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` in a transaction that may write, from the event loop."""
        if self.engine is not None:
            return await self._in_thread(self.run, work)
        async with self._asyncpg().begin() as connection:
            return await connection.run_sync(work)

    async def _in_thread(self, call: Callable[[Callable[[Connection], T]], T], work: Callable[[Connection], T]) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="tachograph-db")
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, work)

    def _asyncpg(self) -> AsyncEngine:
        if self._async is None:
            self._async = _async_engine(self.url)
        return self._async

    def _require_side_loop(self) -> _SideLoop:
        assert self._side_loop is not None  # noqa: S101
        return self._side_loop

    def after_fork(self) -> None:
        """In a forked child: drop the parent's connections without closing them. New ones are opened on demand."""
        self._threads = None
        self._async = None
        if self.engine is not None:
            self.engine.dispose(close=False)
        else:
            self._side_loop = _SideLoop(self.url)

    def close(self) -> None:
        """Close all connections."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
            self._threads = None
        if self.engine is not None:
            self.engine.dispose()
        if self._side_loop is not None:
            self._side_loop.close()

    async def aclose(self) -> None:
        """Close all connections, including those of the event loop."""
        if self._async is not None:
            await self._async.dispose()
            self._async = None
        await asyncio.to_thread(self.close)

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, OSError, UnicodeError) as error:
            cause = getattr(error, "orig", None) or error
            self.close()
            kind = DatabaseUnavailable if is_away(cause) else CannotOpen
            raise kind(f"cannot open {self.name}: {str(cause) or repr(cause)}") from None
        except BaseException:
            self.close()
            raise


_SNAPSHOT: Final[Mapping[str, Any]] = MappingProxyType(
    {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
)
"""PostgreSQL shows all statements of such a transaction the same state, and never refuses to commit it. It begins with
one statement. A read transaction of SQLite is like that anyway."""
_SECRET_OPTIONS: Final = frozenset({"password", "passfile", "sslpassword"})
_SQLITE_AWAY: Final = frozenset({5, 6, 7, 10, 13})
"""SQLITE_BUSY, SQLITE_LOCKED, SQLITE_NOMEM, SQLITE_IOERR, SQLITE_FULL; see https://sqlite.org/rescode.html."""
_POSTGRES_AWAY: Final = ("08", "53", "57P", "55P03")
"""No connection, no resources, starting or shutting down, lock not available: classes and codes of SQLSTATE."""


def is_away(error: BaseException) -> bool:
    """Whether a driver's error says that the database is not available now, but may be later."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_AWAY
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_POSTGRES_AWAY)
    return isinstance(error, OSError)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise BadDatabaseURL(f"not a database URL; expected {_EXAMPLES}") from None
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+asyncpg")
    if backend != "sqlite":
        raise BadDatabaseURL(f'no support for "{backend}"; expected {_EXAMPLES}')
    if not parsed.database or parsed.database == ":memory:":
        raise BadDatabaseURL(
            f"a SQLite database needs a file, since several connections share it; expected {_EXAMPLES}"
        )
    try:
        parent = Path(parsed.database).resolve().parent
        if not parent.is_dir():
            raise CannotOpen(f"cannot open {parsed.database}: there is no directory {parent}")
    except OSError as error:
        raise CannotOpen(f"cannot open {parsed.database}: {error.strerror or error}") from None
    except ValueError:
        raise BadDatabaseURL(f"the path {parsed.database!r} is not valid; expected {_EXAMPLES}") from None
    return parsed.set(drivername="sqlite")


def _sqlite_engine(url: URL, busy_seconds: float) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=READERS + 1,
        max_overflow=4,
        connect_args={"check_same_thread": False, "timeout": busy_seconds},
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # `on_begin` below sends BEGIN, not the driver.
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            # With WAL, NORMAL loses nothing when the process dies. Only a power cut may lose the last commits, each
            # whole.
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.execute("PRAGMA wal_autocheckpoint=4000")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA cache_size=-16000")
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

    return engine


def _async_engine(url: URL) -> AsyncEngine:
    try:
        from sqlalchemy.ext.asyncio import create_async_engine

        return create_async_engine(url)
    except ImportError as error:
        raise BadDatabaseURL(
            f"PostgreSQL needs a driver ({error.name or error}): pip install 'tachograph[postgres]'"
        ) from None


class _SideLoop:
    """An event loop in its own thread, for asyncpg calls from threads without one."""

    def __init__(self, url: URL) -> None:
        self._engine = _async_engine(url)
        self.dialect: Dialect = self._engine.dialect
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tachograph-asyncpg", daemon=True)
        self._thread.start()

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        timeout: float | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> T:
        """Call ``work`` in a transaction with these execution options.

        Raises `TimeoutError`, having cancelled it, after ``timeout`` seconds.
        """

        async def transaction() -> T:
            async with asyncio.timeout(timeout), self._engine.connect() as connection:
                await connection.execution_options(**options)
                async with connection.begin():
                    return await connection.run_sync(work)

        try:
            return asyncio.run_coroutine_threadsafe(transaction(), self._loop).result()
        except TimeoutError:
            if timeout is None:
                raise
            raise TimeoutError(f"no response within {timeout:g} seconds") from None
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # A pooled connection was dead. Its work may have been committed, but all work here may be repeated.
        return asyncio.run_coroutine_threadsafe(transaction(), self._loop).result()

    async def _finish(self) -> None:
        """End all transactions, so that no thread waits for one after the loop has stopped; then close."""
        transactions = asyncio.all_tasks() - {asyncio.current_task()}
        if transactions:
            _, late = await asyncio.wait(transactions, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._engine.dispose()

    def close(self) -> None:
        if not self._loop.is_closed() and self._loop.is_running():
            with contextlib.suppress(TimeoutError, DBAPIError, OSError):
                asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(2 * _CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
            if not self._thread.is_alive():
                self._loop.close()


def is_current(connection: Connection) -> bool:
    """Whether the schema is at this version's revision. Raises `NewerSchema` if it is beyond."""
    revision = None
    if inspect(connection).has_table("alembic_version"):
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if revision is not None and revision > HEAD:
        raise NewerSchema(f"the database has schema {revision}, this Tachograph knows up to {HEAD}: upgrade Tachograph")
    return bool(revision == HEAD)


def prepare(connection: Connection) -> None:
    """Migrate the schema to this version's revision, unless another process just did."""
    if is_current(connection):
        return
    from tachograph_exporter.store.migrations import upgrade

    upgrade(connection)
    refresh(connection)


def refresh(connection: Connection) -> None:
    """Rebuild what a migration marked as stale: the rollups, and the series of ``/metrics``."""
    from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
    from tachograph_exporter.store.schema import store_state
    from tachograph_exporter.store.series import rows as series_rows
    from tachograph_exporter.store.series.recount import recount_one

    for name in ("rollups", "series"):
        is_stale = (store_state.c.name == name) & (store_state.c.value == "stale")
        if connection.execute(select(store_state.c.name).where(is_stale)).first() is None:
            continue
        if name == "rollups":
            rollup_rebuild.rebuild_all(connection)
        else:
            for key in rollup_rebuild.workflows_with_executions(connection):
                recount_one(connection, key, born=True)
            for key in series_rows.names(connection):
                series_rows.announce(connection, key, (), time.time_ns())
        connection.execute(delete(store_state).where(is_stale))


def ping(connection: Connection) -> None:
    """Ask the database for nothing; raises when it does not respond."""
    connection.exec_driver_sql("SELECT 1")
