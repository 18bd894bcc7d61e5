"""PostgreSQL for threads without an event loop: one loop in a thread of its own runs their transactions on asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import DBAPIError

from tachograph.errors import DatabaseUnavailable
from tachograph_exporter.store.engines import close_engine, postgres_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

COMMAND_SECONDS: Final = 30.0
"""How long a command of a writer in a thread may take on PostgreSQL, waiting for other writers included."""
_CLOSE_SECONDS: Final = 1.0


class SideLoop:
    """An event loop in its own thread, for asyncpg calls from threads without one."""

    def __init__(self, url: URL, *, size: int = 4, overflow: int = 2, command_seconds: float = COMMAND_SECONDS) -> None:
        self._url = url
        self._engine = postgres_engine(url, size=size, overflow=overflow, command_seconds=command_seconds)
        self._patient: AsyncEngine | None = None
        self.dialect: Dialect = self._engine.dialect
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        """The answers that threads wait for. When the loop stops, none may be left."""
        self._ends: set[asyncio.Task[Any] | None] = set()
        """The tasks that close, so that none ends another."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="tachograph-asyncpg", daemon=True)
        self._thread.start()

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        timeout: float | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
        is_long: bool = False,
    ) -> T:
        """Call ``work`` in a transaction with these execution options.

        Raises `TimeoutError`, having cancelled it, after ``timeout`` seconds, and `DatabaseUnavailable` when the loop
        is closed. ``is_long``: on a connection whose commands may take as long as they like.
        """

        async def transaction() -> T:
            engine = self._long_engine() if is_long else self._engine
            async with asyncio.timeout(timeout), engine.connect() as connection:
                await connection.execution_options(**options)
                async with connection.begin():
                    return await connection.run_sync(work)

        try:
            return self._answer_of(transaction())
        except TimeoutError:
            if timeout is None:
                raise
            raise TimeoutError(f"no response within {timeout:g} seconds") from None
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # A pooled connection was dead. Its work may have been committed, but all work here may be repeated.
        return self._answer_of(transaction())

    def _answer_of(self, transaction: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._is_closed:
                transaction.close()
                raise DatabaseUnavailable("the database is closed")
            answer = asyncio.run_coroutine_threadsafe(transaction, self._loop)
            self._waiting.add(answer)
        try:
            return answer.result()
        except CancelledError:
            raise DatabaseUnavailable("the database is closed") from None
        finally:
            self._waiting.discard(answer)

    def _long_engine(self) -> AsyncEngine:
        if self._patient is None:
            self._patient = postgres_engine(self._url, size=1, overflow=2, command_seconds=None)
        return self._patient

    async def _finish(self) -> None:
        """End all transactions, so that no thread waits for one after the loop has stopped; then close."""
        self._ends.add(asyncio.current_task())
        transactions = asyncio.all_tasks() - self._ends
        if transactions:
            _, late = await asyncio.wait(transactions, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_CLOSE_SECONDS)
        engines = [engine for engine in (self._engine, self._patient) if engine is not None]
        await asyncio.gather(*[close_engine(engine, _CLOSE_SECONDS) for engine in engines])

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            # What came while the first end was made, or could not be ended then.
            self._loop.run_until_complete(self._finish())
            self._loop.close()

    def close(self) -> None:
        """Close the connections, and end the loop and its thread. Whoever waits for an answer is told."""
        with self._lock:
            self._is_closed = True
        if self._loop.is_running():
            with contextlib.suppress(TimeoutError, DBAPIError, OSError):
                asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(3 * _CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
        # What could not be ended: the loop is busy, or stopped before its turn. Nobody would ever answer its thread.
        for answer in tuple(self._waiting):
            answer.cancel()
