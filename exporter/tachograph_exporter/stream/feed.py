"""The feed: events of all processes on the database, live and in order, for whoever follows in this one.

It reads the event log and nothing else, so two services on one database tell the same events with the same sequence
numbers, and a follower can go on where it was, here or there. New rows are told by this process's own writer, by
PostgreSQL's LISTEN and NOTIFY, and, where neither can tell (another process on SQLite), found by looking now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any, Final

from tachograph.identity import new_id
from tachograph_exporter.store import event_log as event_log
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.event_log import Logged, Missed

log = logging.getLogger(__name__)

__all__ = ["Feed", "Missed"]

LOOK_SECONDS: Final = 0.25
"""How often the log is looked at when nothing tells that it grew."""
SAY_SECONDS: Final = 30.0
"""How often this process says that it listens."""


class Feed:
    """Follows the event log of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = new_id()
        self._followers = 0
        self._grown = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._joining = asyncio.Lock()

    def committed(self) -> None:
        """This process committed something; callable from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._grown.set)

    async def follow(self, after: int | None = None) -> AsyncGenerator[list[Logged], None]:
        """Groups of events behind ``after`` (default: from now on), as they are committed; the first may be empty.

        Raises `Missed` when events behind ``after`` are gone.
        """
        await self._join()
        try:
            at = await self._database.read(event_log.newest) if after is None else after
            await self._database.read(lambda c: event_log.check(c, at))
            while True:
                grown = self._grown
                found = await self._database.read(lambda c, at=at: event_log.read(c, at))  # type: ignore[misc]
                if found:
                    at = found[-1].sequence
                    yield found
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(grown.wait(), LOOK_SECONDS)
        finally:
            self._followers -= 1

    async def now(self) -> int:
        """The sequence number behind which lies what is committed from now on, all of it."""
        await self._join()
        self._followers -= 1
        return await self._database.read(event_log.newest)

    async def _join(self) -> None:
        self._followers += 1
        self._loop = asyncio.get_running_loop()
        async with self._joining:
            if not await self._database.write(lambda c: event_log.listen(c, self._name)):
                await asyncio.sleep(1.25 * event_log.LOOK_SECONDS)
                await self._database.write(lambda c: event_log.settle(c, self._name))
            if not self._tasks:
                self._tasks.append(asyncio.create_task(self._say(), name="tachograph listener"))
                self._tasks.append(asyncio.create_task(self._wake(), name="tachograph feed"))
                if not self._database.is_sqlite:
                    self._tasks.append(asyncio.create_task(self._listen(), name="tachograph notify"))

    async def _say(self) -> None:
        """Say again and again that somebody listens here, as long as that is so."""
        while True:
            await asyncio.sleep(SAY_SECONDS)
            if self._followers:
                try:
                    await self._database.write(lambda c: event_log.listen(c, self._name))
                    await self._database.write(event_log.prune)
                except Exception:
                    log.exception("the event log could not be kept; trying again")

    async def _wake(self) -> None:
        """Wake all followers whenever the log grew."""
        while True:
            await self._grown.wait()
            # Whoever waited on the old one is awake; who comes now waits for the next.
            self._grown = asyncio.Event()
            await asyncio.sleep(0.005)

    async def _listen(self) -> None:
        """Be told by PostgreSQL."""
        import asyncpg

        while True:
            connection: Any = None
            try:
                url = self._database.url.set(drivername="postgresql")
                connection = await asyncpg.connect(url.render_as_string(hide_password=False))
                await connection.add_listener(event_log.CHANNEL, lambda *_: self._grown.set())
                while not connection.is_closed():  # noqa: ASYNC110 - asyncpg has no event for it
                    await asyncio.sleep(1)
            except (OSError, asyncpg.PostgresError):
                log.warning("PostgreSQL does not tell of new events; looking every %g s meanwhile", LOOK_SECONDS)
            finally:
                if connection is not None and not connection.is_closed():
                    with contextlib.suppress(Exception):
                        await connection.close(timeout=2)
            await asyncio.sleep(2)

    async def close(self) -> None:
        """Stop following."""
        self._loop = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
