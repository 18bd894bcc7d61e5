"""A database, SQLite or PostgreSQL: connections, transactions, and access from the event loop.

Queries are plain functions of a SQLAlchemy `Connection`. From the event loop, `Database.read` and `Database.write` call
them in a few threads for SQLite (its driver is synchronous, and one thread hop per query is cheaper than one per row)
and on asyncpg for PostgreSQL. From a thread, `Database.look` and `Database.run` do the same.

While the database is away (see `failures`), whoever reads or writes gets a `DatabaseUnavailable`; otherwise the
statement's own error.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import Enum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, delete, inspect, select
from sqlalchemy.engine import URL, Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from tachograph.errors import (
    BadDatabaseURL,
    CannotOpen,
    DatabaseUnavailable,
    NewerSchema,
    QueryTimeout,
    StoreError,
)
from tachograph_exporter.store import failures, locking, postgres_hosts
from tachograph_exporter.store.deadline import Deadline
from tachograph_exporter.store.engines import SqliteFile, close_engine, postgres_engine, sqlite_engine
from tachograph_exporter.store.schema import HEAD
from tachograph_exporter.store.side_loop import SideLoop

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

BUSY_SECONDS: Final = 10.0
READ_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 150.0
"""How long a caller waits for a thread at most: longer than any command may take."""
_CLOSE_SECONDS: Final = 1.0

_EXAMPLES: Final = "sqlite:///tachograph.db or postgresql://user@host/name"


class Lane(Enum):
    """Who reads or writes from the event loop. Each lane has threads and connections of its own, so that none waits
    for those of another.
    """

    READ = "read"
    """What users read."""
    SEARCH = "search"
    """What reads and encodes many spans: on PostgreSQL too, off the event loop that serves requests."""
    WRITE = "write"
    """What requests write."""
    VITAL = "vital"
    """Tokens and workspaces: every request needs them."""
    STREAM = "stream"
    """The event log."""
    PROBE = "probe"
    """Readiness."""


class _Size(NamedTuple):
    """``threads`` on SQLite; connections kept, further ones, and seconds a command may take on PostgreSQL."""

    threads: int
    connections: int
    overflow: int
    command_seconds: float


_SIZES: Final = {
    Lane.READ: _Size(4, 5, 3, 15.0),
    Lane.SEARCH: _Size(2, 2, 0, 120.0),
    Lane.WRITE: _Size(2, 3, 2, 10.0),
    Lane.VITAL: _Size(2, 2, 1, 5.0),
    Lane.STREAM: _Size(2, 2, 1, 5.0),
    Lane.PROBE: _Size(1, 1, 0, 2.0),
}


class Condition:
    """How the database is doing, as the last reads and writes found it. Texts say what is wrong; empty: nothing."""

    def __init__(self) -> None:
        self.write_fault = ""
        """Why the last write did not go through."""
        self.damage = ""
        """What reading found damaged."""

    def failed(self, error: BaseException, *, is_write: bool) -> None:
        """Note that the database was away."""
        if is_write:
            self.write_fault = failures.reason_of(error)
        if failures.is_damage(error):
            self.damage = failures.reason_of(error)

    def wrote(self) -> None:
        """Note that a write went through."""
        self.write_fault = ""


class Database:
    """The database at ``url``; a SQLite file is created if it does not exist.

    Raises `StoreError`: `DatabaseUnavailable` when it is locked, or does not respond, for ``wait_seconds``.
    """

    def __init__(self, url: str, *, wait_seconds: float = BUSY_SECONDS) -> None:
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._lock = threading.Lock()
        self.condition = Condition()
        self.read_seconds = READ_SECONDS
        """How long a read from the event loop may take, waiting for its turn included."""
        self.file: SqliteFile | None = None
        self._threads: dict[Lane, ThreadPoolExecutor] = {}
        self._pending: set[Future[Any]] = set()
        self._engines: dict[Lane, AsyncEngine] = {}
        self._side_loop: SideLoop | None = None
        self._search_loop: SideLoop | None = None
        self.engine: Engine | None = None
        self._is_closed = False
        if self.is_sqlite:
            self.file = SqliteFile(self.url.database or "")
            # To open it, an engine of its own: the time to wait for a lock belongs to a connection.
            self.engine = sqlite_engine(self.url, self.file, wait_seconds)
        else:
            self._side_loop = SideLoop(self.url)
        with self._opening():
            if self._side_loop is not None:
                is_ready = self._side_loop.run(is_current, timeout=wait_seconds)
            else:
                is_ready = self._look(is_current)
            if not is_ready:
                self._run(prepare, is_long=True)
            if self.file is not None:
                self.file.opened()
        if self.file is not None and self.engine is not None:
            # Connections opened so far could create the file again.
            self.engine.dispose()
            self.engine = sqlite_engine(self.url, self.file, BUSY_SECONDS)

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
        return postgres_hosts.display(url)

    def run(self, work: Callable[[Connection], T], *, is_long: bool = False) -> T:
        """Call ``work`` in a transaction that may write; blocks the calling thread.

        ``is_long``: its commands may take as long as they like (on PostgreSQL, `side_loop.COMMAND_SECONDS` otherwise).
        """
        with self._watching(is_write=True):
            return self._run(work, is_long=is_long)

    def _run(self, work: Callable[[Connection], T], *, is_long: bool = False) -> T:
        if self.engine is not None:
            with self.engine.connect().execution_options(tachograph_write=True) as connection, connection.begin():
                return work(connection)
        return self._require_side_loop().run(work, is_long=is_long)

    def look(self, work: Callable[[Connection], T], deadline: Deadline | None = None) -> T:
        """Call ``work`` in a transaction that only reads; blocks the calling thread.

        All its statements see the same state. Raises `QueryTimeout` after the deadline.
        """
        if deadline is not None:
            until = self._look_until if self.engine is not None else self._side_until
            return until(deadline, work)
        with self._watching(is_write=False):
            return self._look(work)

    def _look(self, work: Callable[[Connection], T]) -> T:
        if self.engine is not None:
            with self.engine.connect() as connection:
                return work(connection)
        return self._require_side_loop().run(work, options=_SNAPSHOT)

    async def read(self, work: Callable[[Connection], T], lane: Lane = Lane.READ) -> T:
        """Call ``work`` in a transaction that only reads, from the event loop. All its statements see the same state.

        What belongs together must be read in one call: two calls may see two states. Raises `QueryTimeout`.
        """
        deadline = Deadline(self.read_seconds)
        if self.engine is not None:
            return await self.in_thread(lane, partial(self._look_until, deadline, work))
        if lane is Lane.SEARCH:
            return await self.in_thread(lane, partial(self._search_until, deadline, work))
        try:
            async with asyncio.timeout(deadline.seconds) as timer:
                with self._watching(is_write=False):
                    try:
                        return await self._read(work, lane)
                    except DBAPIError as error:
                        if not error.connection_invalidated:
                            raise
                    # A pooled connection was dead. The pool has been replaced, and reading twice is harmless.
                    return await self._read(work, lane)
        except TimeoutError:
            if timer.expired():
                raise QueryTimeout(deadline.seconds) from None
            raise

    def _look_until(self, deadline: Deadline, work: Callable[[Connection], T]) -> T:
        deadline.check()
        with self._watching(is_write=False):
            assert self.engine is not None  # noqa: S101
            with self.engine.connect().execution_options(tachograph_deadline=deadline) as connection:
                return deadline.call(work, connection)

    def _search_until(self, deadline: Deadline, work: Callable[[Connection], T]) -> T:
        return self._side_until(deadline, work, self._require_search_loop())

    def _side_until(self, deadline: Deadline, work: Callable[[Connection], T], loop: SideLoop | None = None) -> T:
        with self._watching(is_write=False):
            deadline.check()
            try:
                return (loop or self._require_side_loop()).run(work, timeout=deadline.left, options=_SNAPSHOT)
            except TimeoutError:
                deadline.check()
                raise

    async def _read(self, work: Callable[[Connection], T], lane: Lane) -> T:
        async with self._asyncpg(lane).connect() as connection:
            await connection.execution_options(**_SNAPSHOT)
            return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T], lane: Lane = Lane.WRITE) -> T:
        """Call ``work`` in a transaction that may write, from the event loop."""
        if self.engine is not None:
            return await self.in_thread(lane, partial(self.run, work))
        with self._watching(is_write=True):
            async with self._asyncpg(lane).begin() as connection:
                return await connection.run_sync(work)

    @contextlib.contextmanager
    def unpooled(self, wait_seconds: float, *, is_write: bool = False) -> Iterator[Connection]:
        """A transaction on a new connection to a SQLite database, which waits ``wait_seconds`` for a lock.

        What the database raises comes as it is.
        """
        assert self.file is not None  # noqa: S101
        engine = sqlite_engine(self.url, self.file, wait_seconds)
        try:
            with engine.connect().execution_options(tachograph_write=is_write) as connection, connection.begin():
                yield connection
        finally:
            engine.dispose()

    async def in_thread(self, lane: Lane, call: Callable[[], T]) -> T:
        """Call ``call`` in one of the lane's threads.

        Raises `DatabaseUnavailable` if none can be started, or none answers within `ANSWER_SECONDS`.
        """
        try:
            pending: Future[T] = self._lane_threads(lane).submit(call)
        except RuntimeError as error:
            # No thread can be started now, or the database was closed. What was queued would wait for ever.
            raise DatabaseUnavailable(f"the database {self.name} is unavailable: {error}") from error
        self._pending.add(pending)
        pending.add_done_callback(self._pending.discard)
        answer = asyncio.wrap_future(pending)
        done, _ = await asyncio.wait({answer}, timeout=ANSWER_SECONDS)
        if not done:
            answer.cancel()
            raise DatabaseUnavailable(f"the database {self.name} is unavailable: no answer in {ANSWER_SECONDS:g} s")
        try:
            return answer.result()
        finally:
            # What is raised refers to this frame. It would keep itself, and all that was read, until a collection.
            del pending, answer, done

    def _lane_threads(self, lane: Lane) -> ThreadPoolExecutor:
        threads = self._threads.get(lane)
        # A thread that runs out of memory while it answers is gone, and its executor never starts another for it.
        if threads is not None and not all(thread.is_alive() for thread in tuple(threads._threads)):
            threads.shutdown(wait=False)
            threads = None
        if threads is None:
            threads = self._threads[lane] = ThreadPoolExecutor(
                _SIZES[lane].threads, thread_name_prefix=f"tachograph-db-{lane.value}"
            )
        return threads

    def _asyncpg(self, lane: Lane) -> AsyncEngine:
        engine = self._engines.get(lane)
        if engine is None:
            _, size, overflow, seconds = _SIZES[lane]
            engine = postgres_engine(self.url, size=size, overflow=overflow, command_seconds=seconds)
            self._engines[lane] = engine
        return engine

    def _require_search_loop(self) -> SideLoop:
        with self._lock:
            if self._search_loop is None:
                _, size, overflow, seconds = _SIZES[Lane.SEARCH]
                self._search_loop = SideLoop(self.url, size=size, overflow=overflow, command_seconds=seconds)
            return self._search_loop

    def _require_side_loop(self) -> SideLoop:
        assert self._side_loop is not None  # noqa: S101
        return self._side_loop

    @contextlib.contextmanager
    def _watching(self, *, is_write: bool) -> Iterator[None]:
        """Raise `DatabaseUnavailable` for every error that says that the database is away, and note how it is doing."""
        try:
            self._check_file()
            yield
        except Exception as error:
            if not failures.is_away(error):
                raise
            self.condition.failed(error, is_write=is_write)
            raise failures.unavailable(error, self.name) from error
        if is_write:
            self.condition.wrote()

    def _check_file(self) -> None:
        if self._is_closed:
            raise DatabaseUnavailable(f"the database {self.name} is closed")
        if self.file is not None and (fault := self.file.fault()):
            raise DatabaseUnavailable(f"the database {self.name} is unavailable: the {fault}")

    def after_fork(self) -> None:
        """In a forked child: drop the parent's connections without closing them. New ones are opened on demand."""
        self._threads = {}
        self._pending = set()
        self._engines = {}
        self._search_loop = None
        if self.engine is not None:
            self.engine.dispose(close=False)
        else:
            self._side_loop = SideLoop(self.url)

    def close(self) -> None:
        """Close all connections. Takes a few seconds at most, whatever the database does.

        Whoever still works with it, in whatever thread, is told: `DatabaseUnavailable`.
        """
        self._is_closed = True
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        self._threads = {}
        wait(list(self._pending), timeout=_CLOSE_SECONDS)
        if self.engine is not None:
            self.engine.dispose()
        for loop in (self._side_loop, self._search_loop):
            if loop is not None:
                loop.close()

    async def aclose(self) -> None:
        """Close all connections, including those of the event loop."""
        self._is_closed = True
        engines, self._engines = self._engines, {}
        await asyncio.gather(*[close_engine(engine, _CLOSE_SECONDS) for engine in engines.values()])
        await asyncio.to_thread(self.close)

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            self.close()
            raise
        except (DBAPIError, OSError, UnicodeError) as error:
            self.close()
            kind = DatabaseUnavailable if _may_open_later(error) else CannotOpen
            raise kind(f"cannot open {self.name}: {failures.reason_of(error)}") from None
        except BaseException:
            self.close()
            raise


_SNAPSHOT: Final[Mapping[str, Any]] = MappingProxyType(
    {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
)
"""PostgreSQL shows all statements of such a transaction the same state, and never refuses to commit it. It begins with
one statement. A read transaction of SQLite is like that anyway."""
_SECRET_OPTIONS: Final = frozenset({"password", "passfile", "sslpassword"})
_SQLITE_LATER: Final = frozenset({5, 6, 7, 10, 13})
"""SQLITE_BUSY, SQLITE_LOCKED, SQLITE_NOMEM, SQLITE_IOERR, SQLITE_FULL; see https://sqlite.org/rescode.html."""
_WRONG_STATES: Final = ("22", "23", "28", "3D", "3F", "42")
"""Classes of SQLSTATE that blame the URL: no such role, password, database or schema, or no permission."""


def _may_open_later(error: BaseException) -> bool:
    """Whether a database that cannot be opened is away; otherwise its URL is wrong, or it is no database."""
    cause = getattr(error, "orig", None) or error
    code, state = getattr(cause, "sqlite_errorcode", None), getattr(cause, "sqlstate", None)
    if code is not None:
        return code & 0xFF in _SQLITE_LATER
    if state is not None:
        return not str(state).startswith(_WRONG_STATES)
    return failures.is_away(error)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(postgres_hosts.with_hosts_as_options(url))
        backend = parsed.get_backend_name()
        postgres_hosts.split(parsed)
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
    locking.lock_schema(connection)
    if is_current(connection):
        return
    from tachograph_exporter.store.migrations import upgrade

    upgrade(connection)
    refresh(connection)


def refresh(connection: Connection) -> None:
    """Rebuild what a migration marked as stale: the rollups, and the series of ``/metrics``."""
    from tachograph_exporter.store import state
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
                recount_one(connection, key, born=True, is_first=True)
            if watermark := state.watermark_of(connection):
                state.set_state(connection, series_rows.SINCE, str(watermark))
            for key in series_rows.names(connection):
                series_rows.announce(connection, key, (), time.time_ns())
        connection.execute(delete(store_state).where(is_stale))
