"""A service that measures its own event loop, for `attacks`: ``python attacked_service.py FILE COMMAND…``.

The file holds two numbers: the longest time that the loop was late, in seconds, and the most processor time that the
loop's thread took at a stretch. The first one depends on whatever else the machine does, the second one does not.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import sys
import time
from pathlib import Path

from tachograph_exporter import serving
from tachograph_exporter.cli import load
from tachograph_exporter.cli import serving as command

EVERY_SECONDS = 0.01


async def watch(shared: mmap.mmap) -> None:
    """Note how late the loop is."""
    while True:
        started, worked = time.monotonic(), time.thread_time()
        await asyncio.sleep(EVERY_SECONDS)
        late = time.monotonic() - started - EVERY_SECONDS
        longest, most = struct.unpack("dd", shared[:16])
        shared[:16] = struct.pack("dd", max(longest, late), max(most, time.thread_time() - worked))


async def _serve(*arguments: object) -> None:
    task = asyncio.create_task(watch(_shared))
    try:
        await serving.serve(*arguments)  # type: ignore[arg-type]
    finally:
        task.cancel()


if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    path.write_bytes(bytes(16))
    with path.open("r+b") as file:
        _shared = mmap.mmap(file.fileno(), 16)
    setattr(command, "serve_until_stopped", _serve)  # noqa: B010 - the command is what is measured
    load()()
