"""What a bridge has to know after a restart: how far it has read, and which steps are which. A line for each fact."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from tachograph.quiet_log import QuietLog
from tachograph.spool_places import default_directories, make_private, spool_name
from tachograph_exporter.bridges.errors import BridgeError

quiet = QuietLog(logging.getLogger(__name__))

MAX_BYTES: Final = 256 << 20
_CURSOR: Final = "cursor"


def default_path(engine: str, address: str, workspace: str) -> Path:
    """The file of a bridge in this user's state directory, unless another one is named."""
    return default_directories()[0].parent / "bridges" / f"{engine}-{spool_name(f'{address}/{workspace}')}.jsonl"


class Journal:
    """A file that one bridge appends to. Raises `BridgeError` if another one has it, or if it cannot be opened.

    A line that cannot be read (the machine went down while it was written) is left out.

    Attributes:
        cursor: how far the engine's server was read, unix seconds; None: never.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cursor: float | None = None
        self._lines = 0
        self._file: IO[bytes] | None = None
        try:
            if not path.parent.exists():
                make_private(path.parent)
            self._lock = _locked(path.with_name(f"{path.name}.lock"))
        except BlockingIOError:
            raise BridgeError(
                f"another bridge is at work with {path}: stop it, or give this one another --state"
            ) from None
        except OSError as error:
            raise BridgeError(f"cannot keep what is known in {path}: {error.strerror or error}") from None

    def read(self) -> list[list[Any]]:
        """The facts that were noted, in order."""
        try:
            content = self.path.read_bytes()[:MAX_BYTES] if self.path.exists() else b""
        except OSError as error:
            raise BridgeError(f"cannot read {self.path}: {error.strerror or error}") from None
        facts: list[list[Any]] = []
        for line in content.splitlines():
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                fact = msgspec.json.decode(line, type=list[Any])
                if fact[:1] == [_CURSOR] and len(fact) == 2 and isinstance(fact[1], int | float):
                    self.cursor = float(fact[1])
                else:
                    facts.append(fact)
        return facts

    def note(self, fact: list[Any]) -> None:
        """Append a fact. A disk that is full is logged: what is not noted may be numbered otherwise after a restart."""
        try:
            if self._file is None:
                self._file = self.path.open("ab")
                self.path.chmod(0o600)
            self._file.write(msgspec.json.encode(fact) + b"\n")
            self._file.flush()
            self._lines += 1
        except OSError as error:
            quiet.warning("note", "cannot write to %s: %s", self.path, error)

    def reached(self, cursor: float) -> None:
        """The server was read up to here."""
        if self.cursor is None or cursor > self.cursor:
            self.cursor = cursor
            self.note([_CURSOR, cursor])

    @property
    def lines(self) -> int:
        """How many lines were written since it was compact."""
        return self._lines

    def compact(self, facts: Iterable[list[Any]]) -> None:
        """Keep these facts only."""
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            with part.open("wb") as file:
                for fact in facts:
                    file.write(msgspec.json.encode(fact) + b"\n")
                if self.cursor is not None:
                    file.write(msgspec.json.encode([_CURSOR, self.cursor]) + b"\n")
            part.chmod(0o600)
            part.replace(self.path)
        except OSError as error:
            quiet.warning("compact", "cannot write to %s: %s", part, error)
            return
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lines = 0

    def close(self) -> None:
        """Let another bridge have it."""
        if self._file is not None:
            self._file.close()
        self._lock.close()


def _locked(path: Path) -> IO[bytes]:
    """The file, locked until it is closed. Raises `BlockingIOError` if another process has it."""
    file = path.open("ab")
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
