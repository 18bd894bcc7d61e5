"""A network that drops, delays, duplicates and cuts: a proxy of HTTP requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator

KINDS = ("pass", "drop", "delay", "duplicate", "cut", "cut answer", "late duplicate")


class BadNetwork:
    """Takes requests on a port of its own, in a thread, and forwards them to ``port`` one way or another."""

    def __init__(self, port: int, *, seed: int = 1) -> None:
        self._target = port
        self._random = random.Random(seed)
        self.fates: Counter[str] = Counter()
        self.port = 0
        self._late: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")
                )
                request = head + await reader.readexactly(length)
                fate = self._random.choice(KINDS)
                self.fates[fate] += 1
                if not await self._forward(fate, request, writer):
                    break
        writer.close()

    async def _forward(self, fate: str, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        if fate == "drop":
            return False
        if fate == "cut":
            await self._exchange(request[: len(request) // 2], is_whole=False)
            return False
        if fate == "delay":
            await asyncio.sleep(self._random.random() / 50)
        if fate == "duplicate":
            await self._exchange(request)
        answer = await self._exchange(request)
        if fate == "late duplicate":
            task = asyncio.ensure_future(self._again(request))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        if fate == "cut answer":
            writer.write(answer[: self._random.randrange(len(answer))])
            return False
        writer.write(answer)
        await writer.drain()
        return True

    async def _again(self, request: bytes) -> None:
        await asyncio.sleep(self._random.random() / 5)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._exchange(request)

    async def _exchange(self, request: bytes, *, is_whole: bool = True) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            await writer.drain()
            answer = await reader.read() if is_whole else b""
            return answer.replace(b"Connection: close\r\n", b"")
        finally:
            writer.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[BadNetwork]:
        self._thread.start()
        self._is_ready.wait(60)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(60)
            self._loop.close()
