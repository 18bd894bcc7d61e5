"""Live events for a reader inside the process."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from tachograph.events import Event

SUBSCRIPTION_LIMIT: Final = 10_000


class Subscription:
    """Live events, in order, for one reader; bounded, and it never delays the run.

    Read it with `async for` in the event loop it was created in, or with `drain` from anywhere. When the reader is too
    slow, the oldest events are discarded; `missed` counts them.
    """

    def __init__(self, limit: int, on_close: Callable[[Subscription], None]) -> None:
        import asyncio

        self.missed = 0
        self._on_close = on_close
        self._events: deque[Event] = deque(maxlen=limit)
        self._closed = False
        self._signal = asyncio.Event()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._signalled = False

    def _put(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self.missed += 1
        self._events.append(event)
        self._notify()

    def _notify(self) -> None:
        if self._loop is not None and not self._signalled:
            self._signalled = True
            try:
                self._loop.call_soon_threadsafe(self._signal.set)
            except RuntimeError:
                self._loop = None  # The reader's loop is gone.

    def drain(self) -> list[Event]:
        """Return all events that wait to be read."""
        events: list[Event] = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def close(self) -> None:
        """End the subscription; a reader receives what is left and then stops."""
        self._closed = True
        self._on_close(self)
        self._notify()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            for event in self.drain():
                yield event
            if self._closed and not self._events:
                return
            await self._signal.wait()
            self._signal.clear()
            self._signalled = False
