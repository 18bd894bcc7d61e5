"""From a command to wherever it is recorded: a journal in the spool first, then the service or the database.

An event is in the journal (see `tachograph.recording.journal`) before anything else happens to it, so it is recorded
even if this process is killed. A thread delivers the lines of the journal. When all of them are delivered, the journal
is deleted; what is left is delivered by the next process, by the service, or by ``tachograph spool send``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tachograph import spool_places
from tachograph.variables import DATABASE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, WORKSPACE_VARIABLE
from tachograph_exporter.command.web import address_of, post

Event = dict[str, Any]

PATH = "/api/events"
WAIT_SECONDS = 2.0
"""How long the end waits for the destination; later, others deliver."""
BEAT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_OPEN_AFTER_SECONDS = 0.5
"""How old a command must be before the database is opened for it, which takes a second of the processor."""


class Away(Exception):
    """The destination does not take anything now."""


class Journal:
    """A journal of this process, which it alone delivers while it lives."""

    def __init__(self, url: str) -> None:
        self._lines: list[tuple[int, bytes]] = []
        self._limit = spool_places.limit_from_environment()
        self._magic, self._ending = spool_places.JOURNAL_MAGIC, spool_places.JOURNAL_ENDING
        problem: OSError | None = None
        for parent in spool_places.default_directories():
            directory = parent / spool_places.spool_name(url)
            try:
                spool_places.make_private(directory)
                self.directory = str(directory)
                self._open()
            except OSError as error:
                problem = problem or error
            else:
                return
        raise problem or OSError("there is no directory for the spool")

    def _open(self) -> None:
        name = f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}"
        self.sender, self.path = name, f"{self.directory}/{name}{self._ending}"
        part = f"{self.directory}/{name}.part"
        self._descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write(self._magic)
        os.rename(part, self.path)

    def append(self, events: Sequence[Event]) -> tuple[int, bytes]:
        """Write a line: (its number, its events as JSON). Raises `OSError`."""
        body = json.dumps(events, separators=(",", ":")).encode()
        self._make_room(len(body))
        self._write(b"%08x %b\n" % (zlib.crc32(body), body))
        number = len(self._lines) + 1
        self._lines.append((number, body))
        return number, body

    def _write(self, data: bytes) -> None:
        start = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise

    def _make_room(self, size: int) -> None:
        if self._size() + size <= self._limit:
            return
        # Rare, and a matter for the library, which counts what it drops.
        from tachograph.recording.spool import make_room

        make_room(Path(self.directory), self._limit, size, keep=Path(self.path))
        if self._size() + size > self._limit:
            raise OSError(f"{self.directory} is full ({self._limit} bytes)")

    def _size(self) -> int:
        total = 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_size
        return total

    def has_leftovers(self) -> bool:
        """Whether there is a file that no living process writes or delivers."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.directory):
                path = f"{self.directory}/{name}"
                if not name.endswith((self._ending, ".spool")) or path == self.path:
                    continue
                with contextlib.suppress(OSError):
                    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        return True
                    finally:
                        os.close(descriptor)
        return False

    def sync(self) -> None:
        """Have what was written on the disk."""
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)

    def close(self, *, is_delivered: bool) -> None:
        """Give it up: delete it, or leave it to others."""
        if is_delivered:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self._descriptor)


class NoJournal(Journal):
    """In place of a journal where the spool cannot be written: what is not delivered while this process lives is lost.

    Args:
        problem: why it cannot be written.
    """

    def __init__(self, problem: OSError) -> None:
        self.directory = self.path = ""
        self.sender = new_sender()
        self.problem = problem
        self._lines = []

    def append(self, events: Sequence[Event]) -> tuple[int, bytes]:
        """Number a line."""
        body = json.dumps(events, separators=(",", ":")).encode()
        self._lines.append((len(self._lines) + 1, b""))
        return len(self._lines), body

    def has_leftovers(self) -> bool:
        """There is no spool."""
        return False

    def sync(self) -> None:
        """There is nothing to be on a disk."""

    def close(self, *, is_delivered: bool) -> None:
        """Nothing is left."""


class Courier:
    """Delivers the events of a command. Nothing it does raises; a command that is not recorded says why, once.

    Args:
        say: called with what the user should know.
        is_required: whether to say that nobody said where to record.
    """

    def __init__(self, say: Callable[[str], None], *, is_required: bool = True) -> None:
        self._say = say
        self.database = os.environ.get(DATABASE_VARIABLE, "").strip()
        self._url = self.database or os.environ.get(URL_VARIABLE, "").strip()
        self.destination = spool_places.spool_name(self._url) if self._url else ""
        self._lock = threading.Condition()
        self._waiting: list[tuple[int, bytes]] = []
        self._is_ending = False
        self._thread: threading.Thread | None = None
        self._heartbeat: Event | None = None
        self._began = time.monotonic()
        self._deliver: Callable[[str, int, bytes], None] | None = None
        self.journal: Journal | None = None
        self._failure = ""
        if not self._url:
            if is_required:
                self._say(f"not recorded: set {URL_VARIABLE} or {DATABASE_VARIABLE}")
            return
        try:
            self.journal = Journal(self._url)
        except OSError as error:
            self._say(f"the spool cannot be written: {error}")
            self.journal = NoJournal(error)

    def put(self, events: Sequence[Event]) -> None:
        """Write events to the journal, and have them delivered."""
        if self.journal is None:
            return
        try:
            line = self.journal.append(events)
        except OSError as error:
            # It may still reach the service.
            self._say(f"the spool cannot be written: {error}")
            line = (0, json.dumps(events, separators=(",", ":")).encode())
        with self._lock:
            self._waiting.append(line)
            self._lock.notify_all()

    def begin(self, heartbeat: Event | None) -> None:
        """Deliver from now on, in the background; ``heartbeat`` is sent every few seconds."""
        if self.journal is None:
            return
        self._heartbeat = heartbeat
        thread = threading.Thread(target=self._work, name="tachograph-courier", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return
        self._thread = thread

    def _work(self) -> None:
        journal = self.journal
        assert journal is not None  # noqa: S101
        journal.sync()
        beat_at = time.monotonic() + BEAT_SECONDS
        retry_at, delay = 0.0, _RETRY_SECONDS / 4
        while True:
            with self._lock:
                now = time.monotonic()
                if not self._waiting and self._is_ending:
                    return
                if (not self._waiting or now < retry_at) and now < beat_at:
                    self._lock.wait(min(beat_at, retry_at if self._waiting else beat_at) - now)
                    if not self._is_ending:
                        continue
                lines = list(self._waiting)
            try:
                if lines:
                    self._send(journal.sender, *lines[0])
                    with self._lock:
                        self._waiting.pop(0)
                    retry_at, delay = 0.0, _RETRY_SECONDS / 4
                    continue
                if self._heartbeat is not None and not self._is_ending:
                    beat = {**self._heartbeat, "time_ns": time.time_ns()}
                    self._send(new_sender(), 1, json.dumps([beat]).encode())
            except Away as error:
                self._failure = str(error)
                if self._is_ending:
                    return  # It is in the journal.
                retry_at = time.monotonic() + delay
                delay = min(delay * 2, 10.0)
            beat_at = time.monotonic() + BEAT_SECONDS

    def _send(self, sender: str, number: int, body: bytes) -> None:
        if self._deliver is None:
            self._deliver = self._database_delivery() if self.database else _Service(self._url).deliver
        self._deliver(sender, number, body)

    def _database_delivery(self) -> Callable[[str, int, bytes], None]:
        is_early = self._is_ending or time.monotonic() - self._began < _OPEN_AFTER_SECONDS
        if is_early and not isinstance(self.journal, NoJournal):
            raise Away("the database is not open yet")
        try:
            return _Database(self.database).deliver
        except Exception as error:
            raise Away(str(error)) from None

    def end(self) -> None:
        """Wait a moment for what is on its way; what is left others deliver."""
        journal = self.journal
        if journal is None:
            return
        is_open = not self.database or self._deliver is not None or isinstance(journal, NoJournal)
        if self._thread is not None and is_open:
            with self._lock:
                self._is_ending = True
                self._lock.notify_all()
            self._thread.join(WAIT_SECONDS)
        is_delivered = not self._waiting
        if not is_delivered:
            journal.sync()
        with contextlib.suppress(OSError):
            journal.close(is_delivered=is_delivered)
        if is_delivered:
            self._clear_up()
        elif isinstance(journal, NoJournal):
            self._say(f"not recorded: {self._failure or 'no answer'}")
        elif self.database:
            _send_later()
        else:
            self._say(f"recorded in {journal.directory}, and not yet sent: {self._failure or 'no answer'}")

    def give_up(self) -> None:
        """Nothing is to be delivered by this one."""
        journal, self.journal = self.journal, None
        if journal is not None:
            with contextlib.suppress(OSError):
                journal.close(is_delivered=True)

    def _clear_up(self) -> None:
        """The destination is there: have what other processes left behind delivered, if there is anything."""
        journal = self.journal
        if journal is not None and journal.has_leftovers():
            _send_later()


def new_sender() -> str:
    """A sender of a single batch."""
    return os.urandom(16).hex()


class _Service:
    """The service at a URL."""

    def __init__(self, url: str) -> None:
        base = address_of(url)
        if base is None:
            raise Away("TACHOGRAPH_URL is not the URL of a service: expected one like http://host:9923")
        path = base.path.strip("/")
        self._address = base._replace(path=f"/{path}{PATH}" if path else PATH)
        self._token = os.environ.get(TOKEN_VARIABLE, "").strip()
        self._workspace = os.environ.get(WORKSPACE_VARIABLE, "").strip()

    def deliver(self, sender: str, number: int, body: bytes) -> None:
        """Send a line of the journal. Raises `Away`."""
        envelope = b'{"version":1,"sender":"%b","sequence":%d,"events":%b}' % (sender.encode(), max(1, number), body)
        if not number:
            envelope = envelope.replace(sender.encode(), new_sender().encode(), 1)
        headers = ["Content-Type: application/json"]
        if self._token:
            headers.append(f"Authorization: Bearer {self._token}")
        if self._workspace and self._workspace != "default":
            headers.append(f"X-Workspace-Slug: {self._workspace}")
        try:
            status, answer = post(self._address, headers, envelope)
        except (OSError, ValueError) as error:
            raise Away(f"{self._address.authority}: {error}") from None
        if not answer:
            raise Away(f"{self._address.authority}: the answer is cut off")
        if status in (400, 413, 422):
            return  # It would be refused again: the journal is not to wait for that for ever.
        if status != 200:
            raise Away(f"{self._address.authority} answers {status}: {answer[:300].decode('utf-8', 'replace')}")


class _Database:
    """The database at a URL, opened in the background while the command runs."""

    def __init__(self, url: str) -> None:
        import msgspec

        from tachograph.events import Event as RecordedEvent
        from tachograph_exporter.store.writer import open_writer

        self._decode = msgspec.json.Decoder(list[RecordedEvent]).decode
        self._writer = open_writer(url, wait_seconds=1.0)

    def deliver(self, _sender: str, _number: int, body: bytes) -> None:
        """Store a line of the journal. Raises `Away`."""
        try:
            self._writer.apply(self._decode(body))
        except Exception as error:
            raise Away(str(error)) from None


def _send_later() -> None:
    """Have a process of its own deliver what is in the spool: opening a database takes longer than many commands."""
    import sys

    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, target) for target in (0, 1, 2)]
        command = [sys.executable, "-m", "tachograph_exporter", "spool", "send", "--quiet"]
        os.posix_spawn(sys.executable, command, os.environ, file_actions=actions, setsid=True)
