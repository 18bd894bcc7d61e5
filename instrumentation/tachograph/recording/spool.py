"""Events on disk that a process could not deliver to its database or service; they are delivered later.

A spool is a directory, one for each database or service. While the destination is away, a process appends to a file of
its own (see `journal`); what is left when it ends becomes one more file, which is written under another name, synced,
and then renamed. A file is deleted once its events are committed. Applying events twice gives the same result, so a
crash in between loses nothing and doubles nothing. One process delivers a file at a time: it holds a lock on it.

The directory's name is a hash of the destination's address without user and password. Files are readable by their user
only. Size is bounded, per spool: when it is full, the oldest files go, and their events are counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.recording import journal
from tachograph.recording.journal import Journal
from tachograph.spool_places import (
    DIRECTORY_VARIABLE,
    JOURNAL_ENDING,
    JOURNAL_MAGIC,
    SPOOL_BYTES,
    is_private,
    is_trusted,
    limit_from_environment,
    make_private,
    spool_name,
)
from tachograph.spool_places import address as address
from tachograph.spool_places import default_directories as default_directories

log = logging.getLogger(__name__)

FILE_EVENTS: Final = 5_000
"""Events in a file."""
JOURNAL_PARTS: Final = 8
"""A journal is closed, and another one begun, when it has this part of the spool's size: the oldest can go."""
FILE_BYTES: Final = SPOOL_BYTES
"""A larger file was not written by a spool."""
PART_SECONDS: Final = 3_600.0
"""A file that was not finished after this time never will be."""

NOTES_SECONDS: Final = 30 * 86_400.0
"""What a recorded command noted of its steps is of no use after this time."""

FULL: Final = "spool_full"
FAILED: Final = "spool_failed"
REASONS: Final = (FAILED, FULL)
"""Why events are dropped that should have been spooled: the directory cannot be written, or the spool is full."""

_MAGIC: Final = b"tachograph spool 1\n"
_FINISHED: Final = ".spool"
_PART: Final = ".part"
_ASIDE: Final = ".bad"
_NOTES: Final = ".steps"
"""What recorded commands note of their steps while they run, see `tachograph_exporter.command`."""
_DROPPED: Final = "dropped"
"""A file with the number of events that were dropped because the spool was full."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Event]).decode

Apply = Callable[[Sequence[Event]], None]
ApplyBatch = Callable[[str, int, Sequence[Event]], None]


class Kept(NamedTuple):
    """How many events are in the spool, and why the others are not. ``dropped``: older ones that made room for them."""

    events: int
    reason: str = ""
    dropped: int = 0


class BadFile(Exception):
    """A file that holds no events; the message says why."""


class Spool:
    """The spool of one database or service.

    Args:
        url: the database's or the service's URL.
        directory: the parent of all spools (default: see `default_directories`).
        limit_bytes: how large the spool may grow (default: ``TACHOGRAPH_SPOOL_MAX_BYTES``, else `SPOOL_BYTES`).
    """

    def __init__(self, url: str, directory: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self._parent = directory
        self._name = spool_name(url)
        self.destination = address(url)
        """The database or service, without user and password."""
        self.problem = ""
        """Why the last delivery ended before everything was delivered."""
        self._own: list[Path] = []
        # How many batches of a journal were delivered when the destination went away.
        self._progress: dict[str, int] = {}
        self._limit_bytes = limit_bytes or limit_from_environment()
        self._numbers = 0
        self._journal: Journal | None = None

    @property
    def directories(self) -> list[Path]:
        """Where the files may be, the first choice first. A directory may not exist."""
        parents = [self._parent] if self._parent is not None else default_directories()
        return [parent / self._name for parent in parents]

    def keep(self, events: Sequence[Event]) -> Kept:
        """Write events to disk, the first ones first. Never raises; what is lost is logged."""
        kept, dropped, reason, why = 0, 0, FAILED, ""
        for directory in self.directories:
            try:
                make_private(directory)
                while kept < len(events):
                    part = events[kept : kept + FILE_EVENTS]
                    data = _encode_file(part)
                    if len(data) > self._limit_bytes:
                        reason, why = FULL, f"{directory} may not hold so much ({self._limit_bytes} bytes)"
                        break
                    dropped += make_room(directory, self._limit_bytes, len(data), keep=self._open_path)
                    self._write(directory, data)
                    kept += len(part)
                _sync_directory(directory)
            except (OSError, ValueError) as error:
                reason, why = FAILED, f"{directory}: {error}"
            if kept == len(events):
                return Kept(kept, FULL if dropped else "", dropped)
        log.error(
            "cannot spool %d event(s), they are lost: %s; make the database or service available, or set %s to a "
            "directory with space that this user can write", len(events) - kept, why, DIRECTORY_VARIABLE,
        )  # fmt: skip
        return Kept(kept, reason, dropped)

    def append(self, events: Sequence[Event]) -> int:
        """Append events to this process's journal; returns how many older ones had to go to make room.

        They are on the disk when this returns. Raises `OSError` when they cannot be written.
        """
        try:
            line = journal.line_of(events)
        except (ValueError, OverflowError, TypeError):
            events = [event for event in events if _can_encode(event)]
            line = journal.line_of(events)
        if len(line) > min(self._limit_bytes, journal.LINE_BYTES):
            raise OSError(f"{len(events)} events do not fit into a spool of {self._limit_bytes} bytes")
        if self._journal is not None and self._journal.size + len(line) > self._limit_bytes // JOURNAL_PARTS:
            self.close_journal()
        errors: list[str] = []
        for directory in self.directories if self._journal is None else [self._journal.path.parent]:
            try:
                make_private(directory)
                dropped = make_room(directory, self._limit_bytes, len(line) + len(JOURNAL_MAGIC), keep=self._open_path)
                if self._journal is None:
                    self._journal = Journal(directory)
                    self._own.append(self._journal.path)
                    _sync_directory(directory)
                self._journal.append(line, len(events))
                return dropped
            except (OSError, ValueError) as error:
                errors.append(f"{directory}: {error}")
                self.close_journal()
        raise OSError("; ".join(errors))

    @property
    def _open_path(self) -> Path | None:
        return self._journal.path if self._journal is not None else None

    @property
    def is_delivered(self) -> bool:
        """Whether nothing waits in this process's journals."""
        if self._own:
            self._own = [path for path in self._own if path.exists()]
        return not self._own

    def close_journal(self) -> None:
        """Let this process's journal be delivered, by whoever comes first."""
        opened, self._journal = self._journal, None
        if opened is not None:
            opened.close()

    def after_fork(self) -> None:
        """In a forked child: the journals are the parent's, which keeps the open one locked."""
        self.close_journal()
        self._own = []

    def deliver(self, apply: Apply, *, seconds: float | None = None, apply_batch: ApplyBatch | None = None) -> int:
        """Pass the events of every file to ``apply`` and delete the file; returns how many events were delivered.

        Those of a journal go to ``apply_batch``, if it is given, with the journal's name and the number of the batch:
        the same ones when it is delivered again. Stops after ``seconds``, and when `StoreUnavailable` is raised; what
        is left stays for the next time. A file that cannot be read, or whose events are refused, is set aside. Never
        raises.
        """
        delivered, self.problem = 0, ""
        deadline = None if seconds is None else time.monotonic() + seconds
        for path in self._finished():
            if deadline is not None and time.monotonic() >= deadline:
                break
            try:
                for count in self._deliver_file(path, apply, apply_batch):
                    delivered += count
            except StoreUnavailable as error:
                self.problem = str(error)
                log.info("spooled events are waiting in %s: %s", path.parent, error)
                break
            except OSError as error:
                self.problem = str(error)
                log.warning("cannot read spooled events: %s", error)
            except Exception:
                log.exception("cannot deliver the spooled events in %s", path)
        if delivered:
            log.info("delivered %d spooled event(s) of an earlier process", delivered)
        return delivered

    def _deliver_file(self, path: Path, apply: Apply, apply_batch: ApplyBatch | None) -> Iterator[int]:
        """Deliver one file, unless another process writes it, is delivering it, or has done so.

        Yields how many events of each batch were delivered. After a failure it goes on where it was.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return
        with open(descriptor, "rb") as file:
            if not journal.lock(file.fileno()) or not path.exists():
                return  # Or delivered between opening and locking.
            try:
                batches = _read(file.fileno(), is_journal=path.suffix == JOURNAL_ENDING)
            except BadFile as error:
                _set_aside(path, str(error))
                return
            count = refused = 0
            for sequence, events in batches:
                if 0 < sequence <= self._progress.get(path.name, 0):
                    continue
                first = partial(apply_batch, path.stem, sequence) if apply_batch is not None and sequence else apply
                bad = _apply_all(events, first, apply)
                count, refused = count + len(events), refused + bad
                if sequence:
                    self._progress[path.name] = sequence
                yield len(events) - bad
            if refused:
                _set_aside(path, f"{refused} of its {count} event(s) were refused")
            else:
                path.unlink(missing_ok=True)
            self._progress.pop(path.name, None)

    def waiting(self) -> tuple[int, int]:
        """(files, events) that wait, also those that a living process still writes."""
        paths = self._finished()
        return len(paths), sum(_count(path) for path in paths)

    def dropped(self) -> int:
        """How many events were dropped because the spool was full, since `take_dropped` was last asked."""
        return sum(count for _, count in self._dropped())

    def take_dropped(self) -> int:
        """The same, and forget them."""
        total = 0
        for path, count in self._dropped():
            with contextlib.suppress(OSError):
                path.unlink()
                total += count
        return total

    def _dropped(self) -> Iterator[tuple[Path, int]]:
        for directory in self.directories:
            with contextlib.suppress(OSError, ValueError):
                path = directory / _DROPPED
                if is_private(directory) and stat.S_ISREG(os.lstat(path).st_mode):
                    yield path, sum(int(line) for line in path.read_text().splitlines())

    @property
    def is_empty(self) -> bool:
        """Whether no file waits to be delivered."""
        return not self._finished()

    def _finished(self) -> list[Path]:
        """Files to deliver, the oldest first."""
        paths: list[Path] = []
        for directory in self.directories:
            with contextlib.suppress(OSError, ValueError):
                if is_private(directory):
                    names = os.listdir(directory)
                    paths += [directory / name for name in names if name.endswith((_FINISHED, JOURNAL_ENDING))]
        return sorted(paths, key=lambda path: path.name)

    def _write(self, directory: Path, data: bytes) -> None:
        self._numbers += 1
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._numbers}-{os.urandom(4).hex()}"
        part = directory / (name + _PART)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            with open(os.open(part, flags, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, directory / (name + _FINISHED))
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def make_room(directory: Path, limit_bytes: int, size: int, *, keep: Path | None = None) -> int:
    """Delete the oldest files of a spool until ``size`` more bytes fit; returns how many events were in them.

    ``keep``: a file that stays. Raises `OSError` when the directory cannot be read.
    """
    files = sorted(_files(directory))
    left = limit_bytes - size - sum(status.st_size for _, status in files)
    dropped = 0
    for name, status in files:
        if left >= 0:
            break
        if keep is None or name != keep.name:
            dropped += _drop(directory / name)
            left += status.st_size
    if dropped:
        log.error("the spool %s is full (%d bytes): dropped its %d oldest event(s)", directory, limit_bytes, dropped)
    return dropped


def _files(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file's name and size, after removing those that a killed process did not finish."""
    now = time.time()
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                age = now - status.st_mtime
                if (entry.name.endswith(_PART) and age > PART_SECONDS) or (
                    entry.name.endswith(_NOTES) and age > NOTES_SECONDS
                ):
                    os.unlink(entry.path)
                elif entry.name != _DROPPED:
                    yield entry.name, status


def _encode_file(events: Sequence[Event]) -> bytes:
    try:
        body = _encode(events)
    except (ValueError, OverflowError, TypeError):
        body = _encode([event for event in events if _can_encode(event)])
    return b"%b%08x\n%b" % (_MAGIC, zlib.crc32(body), body)


def _can_encode(event: Event) -> bool:
    try:
        _encode(event)
    except (ValueError, OverflowError, TypeError) as error:
        log.warning("cannot spool a %s: %s", type(event).__name__, error)
        return False
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int, *, is_journal: bool) -> list[tuple[int, list[Event]]]:
    """The batches in a file, with the numbers that they have in a journal, else 0."""
    data = _content(descriptor)
    if data.startswith(JOURNAL_MAGIC):
        return list(journal.batches(data))
    if is_journal and JOURNAL_MAGIC.startswith(data):
        return []  # A journal whose first line is torn.
    head = len(_MAGIC) + 9
    if not data.startswith(_MAGIC):
        raise BadFile("it does not start like a spool file of this version")
    body = data[head:]
    if data[len(_MAGIC) : head] != b"%08x\n" % zlib.crc32(body):
        raise BadFile("its checksum does not match")
    try:
        return [(0, _decode(body))]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFile(str(error)) from None


def _content(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadFile("it is not a regular file")
    if not is_trusted(status):
        raise BadFile("it belongs to another user")
    if status.st_size > FILE_BYTES:
        raise BadFile(f"it is larger than {FILE_BYTES} bytes")
    with open(os.dup(descriptor), "rb") as file:
        return file.read(FILE_BYTES + 1)


def _count(path: Path) -> int:
    """How many events a file holds; 0 if it cannot be read."""
    with contextlib.suppress(OSError, BadFile):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            batches = _read(file.fileno(), is_journal=path.suffix == JOURNAL_ENDING)
            return sum(len(events) for _, events in batches)
    return 0


def _drop(path: Path) -> int:
    """Delete a file to make room, and note how many events were in it; returns that number."""
    count = _count(path)
    try:
        path.unlink()
    except OSError:
        return 0
    if count:
        with contextlib.suppress(OSError), open(path.with_name(_DROPPED), "a") as note:
            note.write(f"{count}\n")
    return count


def _apply_all(events: Sequence[Event], apply: Apply, apply_part: Apply) -> int:
    """Apply the events, one by one if they are refused together; returns how many were refused."""
    try:
        apply(events)
    except StoreUnavailable:
        raise
    except Exception as error:
        if len(events) == 1:
            log.warning("a spooled %s was refused: %s", type(events[0]).__name__, error)
            return 1
        return sum(_apply_all([event], apply_part, apply_part) for event in events)
    return 0


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_suffix(_ASIDE)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        log.warning("set aside the spool file %s: %s", aside, reason)
