"""The feed: the committed events of every process that uses the database, live and in order.

It reads only the event log, so two services on one database deliver the same events with the same sequence numbers, and
a follower can resume at either. New rows are signalled by this process's own writer and by PostgreSQL's LISTEN and
NOTIFY. Rows of another process on SQLite are found by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from tachograph.quiet_log import QuietLog
from tachograph_exporter.store import event_log, postgres_hosts
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.store.event_log import EventsMissed, Logged

log = logging.getLogger(__name__)
quiet = QuietLog(log)

__all__ = ["EventsMissed", "Feed"]

POLL_SECONDS: Final = 0.25
"""How often the log is polled when nothing signals new rows."""
ANNOUNCE_SECONDS: Final = 30.0
"""How often this process records in the database that it has followers."""
MAX_PAUSE_SECONDS: Final = 60.0
"""After this long without a read, the log may lack the next events; much less than they are kept."""


class Feed:
    """Follows the event log of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._followers = 0
        self._log_grew = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._registered_until = -math.inf

    def committed(self) -> None:
        """Wake the followers: this process committed events. Thread-safe."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._log_grew.set)

    async def follow(self, after: int) -> AsyncGenerator[list[Logged], None]:
        """Yield groups of events after sequence number ``after``, as they are committed.

        Raises `EventsMissed` when events after ``after`` are no longer in the log.
        """
        self._followers += 1
        try:
            await self.listen()
            position, read_at = after, -math.inf
            while True:
                # Taken before reading, so that rows committed during the read are noticed.
                grew = self._log_grew
                now = time.monotonic()
                # Rows are deleted when they are old, so after a long pause some may be gone.
                work = event_log.read if now < read_at + MAX_PAUSE_SECONDS else event_log.resume
                events = await self._database.read(lambda c, work=work, at=position: work(c, at), Lane.STREAM)  # type: ignore[misc]
                read_at = now
                if events:
                    position = events[-1].sequence
                    yield events
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(grew.wait(), POLL_SECONDS)
        finally:
            self._followers -= 1

    async def position(self) -> int:
        """The current sequence number. Every event committed from now on, by any process, has a higher one."""
        return await self._register()

    async def listen(self) -> None:
        """Return when every event that is committed from now on will be in the log, whoever commits it."""
        if time.monotonic() >= self._registered_until:
            await self._register()

    async def _register(self) -> int:
        """Record in the database that this process has followers. Returns the position from which all is logged."""
        self._loop = asyncio.get_running_loop()
        now = time.monotonic()
        position = await self._database.write(event_log.listen, Lane.STREAM)
        self._registered_until = now + event_log.LISTENER_SECONDS / 2
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._announce(), name="tachograph feed announce"))
            self._tasks.append(asyncio.create_task(self._wake(), name="tachograph feed wake"))
            if not self._database.is_sqlite:
                self._tasks.append(asyncio.create_task(self._listen(), name="tachograph feed notify"))
        return position

    async def _announce(self) -> None:
        """Renew the record that this process has followers, for as long as it has any."""
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            if self._followers:
                try:
                    await self._register()
                    await self._database.write(event_log.prune, Lane.STREAM)
                except Exception as error:
                    quiet.exception(type(error), "cannot maintain the event log; retrying")

    async def _wake(self) -> None:
        """Wake all followers whenever the log has grown."""
        while True:
            await self._log_grew.wait()
            # The old event has woken its waiters; from here on they wait for the next one.
            self._log_grew = asyncio.Event()
            await asyncio.sleep(0.005)

    async def _listen(self) -> None:
        """Wake the followers on PostgreSQL's NOTIFY."""
        import asyncpg

        while True:
            connection: Any = None
            try:
                connection = await postgres_hosts.connect_to(self._database.url)
                await connection.add_listener(event_log.CHANNEL, lambda *_: self._log_grew.set())
                while not connection.is_closed():  # noqa: ASYNC110 - asyncpg has no event for a closed connection
                    await asyncio.sleep(1)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                log.warning("no notifications from PostgreSQL; polling every %g s until it is back", POLL_SECONDS)
            finally:
                if connection is not None and not connection.is_closed():
                    with contextlib.suppress(Exception):
                        await connection.close(timeout=2)
            await asyncio.sleep(2)

    async def close(self) -> None:
        """Stop the background tasks."""
        self._loop = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
