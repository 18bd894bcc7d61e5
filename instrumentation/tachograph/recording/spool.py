"""Events on disk that a process could not deliver to its database before it ended; a later process delivers them.

A spool is a directory of small files, one directory for each database. A file holds one group of events. It is written
under another name, synced, and then renamed, so whoever delivers sees whole files only. It is deleted once its events
are committed. Applying events twice gives the same result, so a crash in between loses nothing and doubles nothing.
One process delivers a file at a time: it holds a lock on it.

The directory's name is a hash of the database's address without user and password. Files are readable by their user
only. Size is bounded, per spool.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tachograph.errors import StoreUnavailable
from tachograph.events import Event

try:
    import fcntl
except ImportError:  # Without locks two processes may deliver the same file, which does no harm.
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

DIRECTORY_VARIABLE: Final = "TACHOGRAPH_SPOOL_DIR"
FILE_EVENTS: Final = 5_000
"""Events in a file."""
SPOOL_BYTES: Final = 256 << 20
"""How large the files for one database may grow together."""
FILE_BYTES: Final = SPOOL_BYTES
"""A larger file was not written by a spool."""
PART_SECONDS: Final = 3_600.0
"""A file that was not finished after this time never will be."""

FULL: Final = "spool_full"
FAILED: Final = "spool_failed"
REASONS: Final = (FAILED, FULL)
"""Why events are dropped that should have been spooled: the directory cannot be written, or the spool is full."""

_MAGIC: Final = b"tachograph spool 1\n"
_FINISHED: Final = ".spool"
_PART: Final = ".part"
_ASIDE: Final = ".bad"
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Event]).decode

Apply = Callable[[Sequence[Event]], None]


class Kept(NamedTuple):
    """How many events are in the spool, and why the others are not."""

    events: int
    reason: str = ""


class BadFile(Exception):
    """A file that holds no events; the message says why."""


class Spool:
    """The spool of one database.

    Args:
        url: the database's URL.
        directory: the parent of all spools (default: see `default_directories`).
        limit_bytes: how large the spool may grow.
    """

    def __init__(self, url: str, directory: Path | None = None, *, limit_bytes: int = SPOOL_BYTES) -> None:
        self._parent = directory
        self._name = hashlib.sha256(address(url).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self._limit_bytes = limit_bytes
        self._numbers = 0

    @property
    def directories(self) -> list[Path]:
        """Where the files may be, the first choice first. A directory may not exist."""
        parents = [self._parent] if self._parent is not None else default_directories()
        return [parent / self._name for parent in parents]

    def keep(self, events: Sequence[Event]) -> Kept:
        """Write events to disk, the first ones first. Never raises; what is lost is logged."""
        kept, reason, why = 0, FAILED, ""
        for directory in self.directories:
            try:
                _make_private(directory)
                left = self._limit_bytes - sum(self._sizes(directory))
                while kept < len(events):
                    part = events[kept : kept + FILE_EVENTS]
                    data = _encode_file(part)
                    if len(data) > left:
                        reason, why = FULL, f"{directory} is full ({self._limit_bytes} bytes)"
                        break
                    self._write(directory, data)
                    left -= len(data)
                    kept += len(part)
                _sync_directory(directory)
            except (OSError, ValueError) as error:
                reason, why = FAILED, f"{directory}: {error}"
            if kept == len(events):
                return Kept(kept)
        log.error(
            "cannot spool %d event(s), they are lost: %s; make the database available, or set %s to a directory with "
            "space that this user can write", len(events) - kept, why, DIRECTORY_VARIABLE,
        )  # fmt: skip
        return Kept(kept, reason)

    def deliver(self, apply: Apply, *, seconds: float | None = None) -> int:
        """Pass the events of every file to ``apply`` and delete the file; returns how many events were delivered.

        Stops after ``seconds``, and when ``apply`` raises `StoreUnavailable`; what is left stays for the next time.
        A file that cannot be read, or whose events are refused, is set aside. Never raises.
        """
        delivered = 0
        deadline = None if seconds is None else time.monotonic() + seconds
        for path in self._finished():
            if deadline is not None and time.monotonic() >= deadline:
                break
            try:
                delivered += _deliver_file(path, apply)
            except StoreUnavailable as error:
                log.info("spooled events are waiting in %s: %s", path.parent, error)
                break
            except OSError as error:
                log.warning("cannot read spooled events: %s", error)
            except Exception:
                log.exception("cannot deliver the spooled events in %s", path)
        if delivered:
            log.info("delivered %d spooled event(s) of an earlier process", delivered)
        return delivered

    @property
    def is_empty(self) -> bool:
        """Whether no file waits to be delivered."""
        return not self._finished()

    def _finished(self) -> list[Path]:
        """Files to deliver, the oldest first."""
        paths: list[Path] = []
        for directory in self.directories:
            with contextlib.suppress(OSError, ValueError):
                if _is_private(directory):
                    paths += [directory / name for name in os.listdir(directory) if name.endswith(_FINISHED)]
        return sorted(paths, key=lambda path: path.name)

    def _sizes(self, directory: Path) -> Iterator[int]:
        """The size of every file, after removing those that a killed process did not finish."""
        now = time.time()
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(_PART) and now - status.st_mtime > PART_SECONDS:
                        os.unlink(entry.path)
                    else:
                        yield status.st_size

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


def default_directories() -> list[Path]:
    """The parents of all spools: ``TACHOGRAPH_SPOOL_DIR``, else the user's state directory and one in ``/tmp``."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE, "").strip():
        return [Path(chosen)]
    user = os.getuid() if hasattr(os, "getuid") else 0
    parents = [Path(tempfile.gettempdir()) / f"tachograph-spool-{user}"]
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # The specification says to ignore a relative one.
        home = Path(os.path.expanduser("~"))
        state = home / ".local" / "state"
        with contextlib.suppress(OSError):
            # Under sudo the home may be another user's, who could not write there any more.
            if not home.is_absolute() or (hasattr(os, "getuid") and home.stat().st_uid != user):
                return parents
    return [state / "tachograph" / "spool", *parents]


def address(url: str) -> str:
    """What tells a database from others: its URL without user, password, driver and options.

    The same for every spelling of a SQLite file's path.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return "?"  # It may be anything, a password too.
    scheme = scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        path = rest.partition("?")[0].removeprefix("/")
        return f"sqlite:{os.path.realpath(path)}" if path and "\0" not in path else "sqlite:"
    authority, _, path = rest.partition("/")
    path, _, query = path.partition("?")
    options = urllib.parse.parse_qs(query)
    named = ",".join(options.get("host", [authority.rpartition("@")[2]])).split(",")
    ports = options.get("port", [""])[-1].split(",")
    hosts = {_host(host, ports[i] if len(ports) == len(named) else ports[0]) for i, host in enumerate(named)}
    return f"{scheme.replace('postgresql', 'postgres')}:{','.join(sorted(hosts))}:{path}"


def _host(text: str, port: str) -> str:
    """A host with its port, which may be given elsewhere."""
    host, _, own_port = text.rpartition(":")
    if (not host and not own_port.isdecimal()) or own_port.endswith("]"):
        host, own_port = (f"{host}:{own_port}" if host else own_port), ""
    return f"{host.lower() or 'localhost'}:{port or own_port or '5432'}"


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(directory):
        raise PermissionError("it belongs to another user")


def _is_private(directory: Path) -> bool:
    """Whether it is a directory, and no other user's."""
    status = os.lstat(directory)
    return stat.S_ISDIR(status.st_mode) and _is_trusted(status)


def _is_trusted(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid() or os.getuid() == 0


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


def _deliver_file(path: Path, apply: Apply) -> int:
    """Deliver one file, unless another process is doing so or has done it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return 0
    with open(descriptor, "rb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
        if not path.exists():
            return 0  # Delivered between opening and locking.
        try:
            events = _read(file.fileno())
        except BadFile as error:
            _set_aside(path, str(error))
            return 0
        refused = _apply_all(events, apply)
        if refused:
            _set_aside(path, f"{refused} of its {len(events)} event(s) were refused")
        else:
            path.unlink(missing_ok=True)
        return len(events) - refused


def _read(descriptor: int) -> list[Event]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadFile("it is not a regular file")
    if not _is_trusted(status):
        raise BadFile("it belongs to another user")
    if status.st_size > FILE_BYTES:
        raise BadFile(f"it is larger than {FILE_BYTES} bytes")
    with open(os.dup(descriptor), "rb") as file:
        data = file.read(FILE_BYTES + 1)
    head = len(_MAGIC) + 9
    if not data.startswith(_MAGIC):
        raise BadFile("it does not start like a spool file of this version")
    body = data[head:]
    if data[len(_MAGIC) : head] != b"%08x\n" % zlib.crc32(body):
        raise BadFile("its checksum does not match")
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFile(str(error)) from None


def _apply_all(events: Sequence[Event], apply: Apply) -> int:
    """Apply the events, one by one if they are refused together; returns how many were refused."""
    try:
        apply(events)
    except StoreUnavailable:
        raise
    except Exception as error:
        if len(events) == 1:
            log.warning("a spooled %s was refused: %s", type(events[0]).__name__, error)
            return 1
        return sum(_apply_all([event], apply) for event in events)
    return 0


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_suffix(_ASIDE)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        log.warning("set aside the spool file %s: %s", aside, reason)
