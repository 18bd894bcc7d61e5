"""The executor's share of a turn of the event loop.

Whatever is ready in asyncio runs before the loop looks at its sockets and timers again. So however many steps could
start or settle at once, only as many do as fit into a few milliseconds; the rest wait for the next turn, first come,
first served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

MAX_STARTS: Final = 100
"""Steps that start in a turn. Each takes some 0.1 ms until its handler first waits."""
MAX_SECONDS: Final = 0.01
"""How long settled steps are passed on in a turn, all executions together."""


class Turns:
    """What the executions of an executor may do in a turn of the event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starts = MAX_STARTS
        self._is_scheduled = False
        self._deadline = 0.0
        # In order, each once.
        self._waiting: dict[Callable[[], None], None] = {}

    def may_start(self, go_on: Callable[[], None]) -> bool:
        """Whether another step may start in this turn. If not, ``go_on`` is called in the next one, or a later one."""
        # After so many, in however many turns: that costs less than to notice every turn.
        if self._starts > 0:
            self._starts -= 1
            return True
        self._schedule()
        self._waiting[go_on] = None
        return False

    def is_over(self, go_on: Callable[[], None]) -> bool:
        """Whether enough was done in this turn. If so, ``go_on`` is called in the next one, or a later one."""
        self._schedule()
        if time.perf_counter() < self._deadline:
            return False
        self._waiting[go_on] = None
        return True

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # The executor is used in another event loop; what waited in the old one is gone with it.
            self._loop, self._is_scheduled, self._waiting = loop, False, {}
        if not self._is_scheduled:
            self._is_scheduled = True
            self._deadline = time.perf_counter() + MAX_SECONDS
            loop.call_soon(self._next)

    def _next(self) -> None:
        self._is_scheduled = False
        self._starts = MAX_STARTS
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        self._schedule()
        while waiting:
            go_on = next(iter(waiting))
            del waiting[go_on]
            go_on()
            if self._starts <= 0 or time.perf_counter() >= self._deadline:
                break
        self._waiting = waiting | self._waiting
