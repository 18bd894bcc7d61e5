"""The journal of one process in a spool: a file to which it appends the events that it cannot deliver now.

The first line names the format. Each further line holds a batch: the CRC-32 of the rest in 8 hex digits, a space, and
the events as a JSON array. A line is synced before its events count as kept. Who was killed while writing leaves a torn
last line, which is left out.

The process that writes a journal holds a lock on it, so nobody delivers it before that process closes it or ends.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tachograph.events import Event
from tachograph.spool_places import JOURNAL_ENDING as ENDING
from tachograph.spool_places import JOURNAL_MAGIC as MAGIC

try:
    import fcntl
except ImportError:  # Without locks two processes may deliver the same file, which does no harm.
    fcntl = None  # type: ignore[assignment]

LINE_BYTES: Final = 64 << 20
"""A longer line was not written by a journal."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[Event]).decode


class JournaledBatch(NamedTuple):
    """A line of a journal. ``sequence`` is its number, counted from 1."""

    sequence: int
    events: list[Event]


class Journal:
    """A journal that this process writes. Raises `OSError` when it cannot be made."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}{ENDING}"
        # Nobody may deliver it before it is locked.
        part = self.path.with_suffix(".part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = os.open(part, flags, 0o600)
        self.size = 0
        self.events = 0
        try:
            lock(self._descriptor)
            self._write(MAGIC)
            os.rename(part, self.path)
        except BaseException:
            self.close()
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def append(self, line: bytes, count: int) -> None:
        """Append a line with ``count`` events and sync it. Raises `OSError`; then the file is as it was."""
        self._write(line)
        os.fsync(self._descriptor)
        self.events += count

    def _write(self, data: bytes) -> None:
        start = self.size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise
        self.size = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Give up the lock: from now on the file may be delivered."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def line_of(events: Sequence[Event]) -> bytes:
    """A line with these events. Raises `ValueError`, `OverflowError` or `TypeError` if one cannot be encoded."""
    body = _encode(events)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def batches(data: bytes) -> Iterator[JournaledBatch]:
    """The batches of a journal's content; damaged lines, and a torn one at the end, are left out."""
    for sequence, line in enumerate(data.split(b"\n")[1:-1], start=1):
        body = line[9:]
        if line[:9] != b"%08x " % zlib.crc32(body):
            continue
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            yield JournaledBatch(sequence, _decode(body))


def count_events(data: bytes) -> int:
    """How many events a journal's content holds."""
    return sum(len(batch.events) for batch in batches(data))


def lock(descriptor: int) -> bool:
    """Lock a file until it is closed; False when another process has it."""
    if fcntl is None:
        return True  # type: ignore[unreachable]
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
