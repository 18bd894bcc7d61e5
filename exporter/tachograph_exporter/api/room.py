"""Room for bodies in JSON: how many bytes those that are being read and worked on may take, all together.

A value takes many times its length in memory once it is decoded, so the number of values counts as well. A request
gives its room back when its response is there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from tachograph_exporter.api import problems

MAX_BYTES: Final = 48 << 20
"""Bytes that bodies may take."""
MAX_VALUES: Final = 500_000
"""Values (objects, lists and what is in them) that one body may have."""
WAIT_SECONDS: Final = 10.0
"""How long a body waits until there is room to decode it."""
_OBJECT_BYTES: Final = 512
"""What an object takes in memory, with what is made of it: a step, or its faults."""
_LIST_BYTES: Final = 128
_ITEM_BYTES: Final = 64
_MOST_BYTES: Final = MAX_BYTES * 3 // 4
"""No body takes more: there is room for small ones beside the largest."""
_PAUSE_SECONDS: Final = 0.02
_MIN_COUNTED: Final = 100_000


class Room:
    """Bytes that are left for bodies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0
        self._taken: dict[int, int] = {}

    def take(self, request: web.Request, size: int) -> bool:
        """Take ``size`` bytes for a request, until it is answered; False when there is not enough."""
        with self._lock:
            own = self._taken.get(id(request), 0)
            # A request that has all the room there is may go on.
            if self._bytes > own and self._bytes + size > MAX_BYTES:
                return False
            self._bytes += size
            self._taken[id(request)] = own + size
            return True

    async def take_values(self, request: web.Request, body: bytes) -> None:
        """Take the bytes that a body has when it is decoded; waits for them. Raises 413 or 429."""
        if len(body) < _MIN_COUNTED:
            return
        objects, lists, commas = (body.count(sign) for sign in (b"{", b"[", b","))
        if objects + lists + commas > MAX_VALUES:
            raise problems.too_many_values(MAX_VALUES)
        size = min(_MOST_BYTES, objects * _OBJECT_BYTES + lists * _LIST_BYTES + commas * _ITEM_BYTES)
        end = time.monotonic() + WAIT_SECONDS
        while not self.take(request, size):
            if time.monotonic() > end:
                raise problems.too_many_requests()
            await asyncio.sleep(_PAUSE_SECONDS)

    def give_back(self, request: web.Request) -> None:
        """A request is answered."""
        with self._lock:
            self._bytes -= self._taken.pop(id(request), 0)


ROOM: Final = web.AppKey("room", Room)


@web.middleware
async def room_middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give the room of a request's body back when it is answered."""
    try:
        return await handler(request)
    finally:
        request.app[ROOM].give_back(request)
