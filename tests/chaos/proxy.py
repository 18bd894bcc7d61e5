"""A TCP proxy that delays, drops and half-closes connections."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Passes TCP on to a port; or nothing, or slowly, or cuts connections."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.delay = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def half_close(self) -> None:
        """End what the clients send."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    def silence(self, is_silent: bool) -> None:
        """Let nothing through, and answer nobody."""
        if is_silent:
            self._flows.clear()
        else:
            self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flows.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        self._writers -= {writer, back}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        except (OSError, RuntimeError):  # Broken, or one direction of it was ended.
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()
