"""Messages that are being read by gRPC: few at a time, because nobody knows how long one becomes before it is there.

gRPC keeps what has arrived of a message, and hands it out when it is whole. So at most `MAX_READS` are read at once;
other calls wait, their bytes held back by flow control. Whoever reads for longer than `PATIENCE_SECONDS` makes room for
those that wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

MAX_READS: Final = 8
PATIENCE_SECONDS: Final = 2.0
READ_SECONDS: Final = 60.0
"""How long a message may take when nobody waits."""
WAIT_SECONDS: Final = 10.0
"""How long a call waits until its message can be read."""


class NoTurn(Exception):
    """The message could not be read, because too many others are."""


class Reads:
    """Turns to read a message."""

    def __init__(self) -> None:
        # The oldest first, each with the time when it makes room for others.
        self._reading: dict[asyncio.Timeout, float] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def count(self) -> int:
        """Messages that are being read."""
        return len(self._reading)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Read a message within the block. Raises `NoTurn`, or `TimeoutError` when the message does not come."""
        await self._wait()
        now = asyncio.get_running_loop().time()
        timeout = asyncio.timeout(READ_SECONDS)
        self._reading[timeout] = now + PATIENCE_SECONDS
        try:
            async with timeout:
                yield
        except TimeoutError:
            if timeout not in self._reading:
                raise NoTurn from None
            raise
        finally:
            self._reading.pop(timeout, None)
            self._wake()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + WAIT_SECONDS
        while len(self._reading) >= MAX_READS:
            now = loop.time()
            oldest, patience_end = next(iter(self._reading.items()))
            if now >= patience_end:
                del self._reading[oldest]
                # It may be giving up by itself at this moment.
                with suppress(RuntimeError):
                    oldest.reschedule(now)
                return
            if now >= end:
                raise NoTurn
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiting.append(waiter)
            try:
                await asyncio.wait([waiter], timeout=min(end, patience_end) - now)
            except asyncio.CancelledError:
                if waiter.done():
                    # The turn that it was given is somebody else's.
                    self._wake()
                raise
            finally:
                if not waiter.done():
                    self._waiting.remove(waiter)

    def _wake(self) -> None:
        if self._waiting and len(self._reading) < MAX_READS:
            self._waiting.popleft().set_result(None)
