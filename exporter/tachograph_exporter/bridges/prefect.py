"""Follows a Prefect server: reads its events from where an earlier process stopped, then live, and reports the runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from tachograph.integrations.prefect import FlowRuns
from tachograph.quiet_log import QuietLog
from tachograph_exporter.bridges.journal import Journal
from tachograph_exporter.bridges.prefect_server import PrefectError, PrefectServer

log = logging.getLogger(__name__)
quiet = QuietLog(log)

OVERLAP_SECONDS: Final = 300.0
"""How much is read again after a restart: clients' clocks differ, and their events may come late."""
LOOK_SECONDS: Final = 15.0
"""How often the server is asked for the state of what is open."""
REREAD_SECONDS: Final = 60.0
LATE_SECONDS: Final = 30.0
"""How long it may take until an event is stored."""
SAVE_SECONDS: Final = 5.0
FLUSH_EVENTS: Final = 500
"""After so many stored events, wait until they are delivered or spooled: they come faster than a store takes them."""
FLUSH_SECONDS: Final = 60.0
FIRST_PAUSE_SECONDS: Final = 1.0
MAX_PAUSE_SECONDS: Final = 30.0
MAX_HEARD: Final = 20_000
MAX_FAILURES: Final = 3
"""How often one event may make the server fail: then it is left out, for the sake of those after it."""
MAX_ARRIVED: Final = 100_000
MAX_LINES: Final = 200_000
_END: Final = object()
AWAY: Final = (aiohttp.ClientError, OSError, TimeoutError, PrefectError, ValueError)
"""What a server that is away, or that answers nonsense, makes."""


class PrefectBridge:
    """Reports the flow runs of a Prefect server until it is cancelled; a server that is away is tried again.

    Args:
        server: the server.
        journal: what is known, and how far was read.
        flush: waits until what was reported is delivered or spooled.
        since: from when on events are read the first time, unix seconds.
    """

    def __init__(self, server: PrefectServer, journal: Journal, flush: Callable[[float], bool], since: float) -> None:
        self._server = server
        self._journal = journal
        self._flush = flush
        self.flows = FlowRuns(server, journal.note)
        self.flows.recall(journal.read())
        # Of what ended long ago nothing is left.
        self.flows.look({}, time.time())
        journal.compact(self.flows.facts())
        self._cursor = journal.cursor if journal.cursor is not None else since
        self._read_from = self._cursor - (OVERLAP_SECONDS if journal.cursor is not None else 0.0)
        self._heard: OrderedDict[str, None] = OrderedDict()
        self._failures: dict[Any, int] = {}
        self._saved_at = 0.0
        self._reread_at = time.time()
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Follow the server."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                async for _ in self._events():
                    pause = FIRST_PAUSE_SECONDS
                quiet.warning("end", "the Prefect server closed the connection; trying again in %g s", pause)
            except AWAY as error:
                quiet.warning(
                    ("away", type(error)), "the Prefect server cannot be read: %s; trying again", _text(error)
                )
            self._read_from = self._cursor - OVERLAP_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    async def _events(self) -> AsyncIterator[None]:
        """Hears each event; yields whenever something was heard."""
        # What takes long is read before the live events are asked for: the server keeps few for a slow reader.
        while True:
            began = time.time()
            await self.read_stored()
            yield
            self._read_from = began - OVERLAP_SECONDS
            if time.time() - began < LOOK_SECONDS:
                break
        async with self._server.live_events() as events:
            arrived: asyncio.Queue[Any] = asyncio.Queue(MAX_ARRIVED)
            tasks = [
                asyncio.create_task(self._receive(events, arrived)),
                asyncio.create_task(self._look_again_and_again()),
            ]
            try:
                await self.read_stored()
                log.info("following the Prefect server")
                while (event := await arrived.get()) is not _END:
                    await self._hear(event)
                    yield
                await tasks[0]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, events: AsyncIterator[Any], arrived: asyncio.Queue[Any]) -> None:
        """Take events as they come: the server keeps a few hundred for a slow reader, and drops others."""
        try:
            async for event in events:
                await arrived.put(event)
        finally:
            await arrived.put(_END)

    async def read_stored(self) -> None:
        """Hear what the server has stored since it was read last, and was not heard."""
        count = 0
        async for event in self._server.stored_events(datetime.fromtimestamp(max(0.0, self._read_from), UTC)):
            await self._hear(event)
            count += 1
            if count % FLUSH_EVENTS == 0:
                await asyncio.to_thread(self._flush, FLUSH_SECONDS)

    async def _hear(self, event: Any) -> None:
        identifier = event.get("id") if isinstance(event, dict) else None
        if identifier in self._heard:
            return
        occurred = None
        try:
            async with self._lock:
                occurred = await self.flows.hear(event)
        except AWAY as error:
            failures = self._failures[identifier] = self._failures.get(identifier, 0) + 1
            if not isinstance(error, aiohttp.ClientResponseError) or failures < MAX_FAILURES:
                raise
            quiet.warning("poison", "left out an event of which the Prefect server can tell no more: %s", _text(error))
        except Exception:
            quiet.exception("event", "left out an event of Prefect")
        self._failures.pop(identifier, None)
        if isinstance(identifier, str):
            self._heard[identifier] = None
            if len(self._heard) > MAX_HEARD:
                self._heard.popitem(last=False)
        if occurred is not None:
            # A client whose clock is ahead must not make the bridge skip what others say.
            self._cursor = max(self._cursor, min(occurred.timestamp(), time.time()))
            if time.monotonic() - self._saved_at > SAVE_SECONDS:
                self.save()

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
                if time.time() - self._reread_at > REREAD_SECONDS:
                    await self.reread()
            except AWAY as error:
                quiet.warning(("look", type(error)), "the Prefect server cannot be asked: %s", _text(error))

    async def look(self) -> None:
        """Compare what is open with what the server says."""
        states = await self._server.flow_runs(self.flows.open_flow_runs())
        async with self._lock:
            missed_since = self.flows.look(states, time.time())
        if missed_since is not None:
            self._read_from = missed_since
            await self.read_stored()
        self.save()
        if self._journal.lines > MAX_LINES:
            self._journal.compact(self.flows.facts())

    async def reread(self) -> None:
        """Hear what the server has stored lately and did not send: of a live event that it drops it says nothing."""
        began = time.time()
        self._read_from = self._reread_at - LATE_SECONDS
        await self.read_stored()
        self._reread_at = began

    def save(self) -> None:
        """Note how far was read."""
        self._saved_at = time.monotonic()
        self._journal.reached(self._cursor)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
