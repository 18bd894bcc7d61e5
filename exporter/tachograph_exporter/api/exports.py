"""Export requests of every door (OTLP/HTTP, OTLP/gRPC) on their way to the receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final

from aiohttp import web

from tachograph_exporter.api.request import Workspace
from tachograph_exporter.ingest.receiver import Answer, Receiver
from tachograph_exporter.ingest.signals import Signal

STORED: Final = "stored"
REFUSED: Final = "refused"
"""It would be refused again."""
BUSY: Final = "busy"
UNAVAILABLE: Final = "unavailable"
FAILED: Final = "failed"
OUTCOMES: Final = (STORED, REFUSED, BUSY, UNAVAILABLE, FAILED)
HTTP: Final = "http"
GRPC: Final = "grpc"


class Room:
    """Room for the bytes of one request; given back at the end of the block."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._size = 0

    def reserve(self, size: int) -> bool:
        """Take room for bytes that arrived or were decoded; False when there is not enough."""
        if not self._receiver.reserve(size):
            return False
        self._size += size
        return True

    def __enter__(self) -> Room:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._receiver.release(self._size)


class Exports:
    """Hands requests to the receiver. ``count`` is told the protocol, the signal and the outcome of each request."""

    def __init__(self, receiver: Receiver, count: Callable[[str, str, str], None]) -> None:
        self._receiver = receiver
        self.count = count

    def room(self) -> Room:
        """Room for a request, of which nothing is taken yet."""
        return Room(self._receiver)

    async def store(self, workspace: Workspace, body: bytes, signal: Signal, *, is_json: bool = False) -> Any:
        """The response to a request, once what it carries is committed.

        Raises `BadRequest`, `StoreUnavailable` or `MemoryError`.
        """
        answer = await _stored(self._receiver.submit(workspace.id, workspace.slug, body, signal, is_json=is_json))
        return signal.answer(answer.rejected, answer.why)


EXPORTS: Final = web.AppKey("exports", Exports)


async def _stored(pending: Future[Answer]) -> Answer:
    try:
        return await asyncio.wrap_future(pending)
    finally:
        # An exception refers to this frame: it would keep itself and the body until the next collection of garbage.
        del pending
