"""Answers of any length: written in a thread, kept in a temporary file beyond a few megabytes, and sent from there."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from typing import Final

from aiohttp import web

from tachograph_exporter.api import problems

MAX_IN_MEMORY: Final = 4 << 20
MAX_BYTES: Final = 512 << 20
"""Bytes that an answer may have."""
_CHUNK: Final = 256 << 10


class Spool:
    """A body that grows. `send` closes it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115 - closed when the body was sent
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add to the body. Raises 400 when it becomes too long."""
        self.size += len(data)
        if self.size > MAX_BYTES:
            raise problems.not_supported(f"the answer is longer than {MAX_BYTES >> 20} MB; ask for less")
        self._file.write(data)

    def close(self) -> None:
        """Forget the body."""
        self._file.close()

    def rewind(self) -> None:
        """Read from the start."""
        self._file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the body; all that are left by default."""
        return self._file.read(size)


def spooled(write: Callable[[Callable[[bytes], None]], None]) -> Spool:
    """What ``write`` writes with the function it is given."""
    spool = Spool()
    try:
        write(spool.write)
        spool.rewind()
    except BaseException:
        spool.close()
        raise
    return spool


async def send(request: web.Request, spool: Spool, content_type: str, prefix: bytes = b"") -> web.StreamResponse:
    """The response with this body after ``prefix``; closes the spool."""
    try:
        if spool.size <= MAX_IN_MEMORY:
            return web.Response(body=prefix + spool.read(), content_type=content_type)
        response = web.StreamResponse()
        response.content_type = content_type
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        response.content_length = len(prefix) + spool.size
        await response.prepare(request)
        await response.write(prefix)
        while chunk := await asyncio.to_thread(spool.read, _CHUNK):
            await response.write(chunk)
        await response.write_eof()
        return response
    finally:
        spool.close()
