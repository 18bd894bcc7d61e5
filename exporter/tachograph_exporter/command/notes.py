"""What the commands inside a recorded command note of themselves: which steps began and ended, in a file they share.

The outermost command makes the file and deletes it; it counts the steps at the end, and closes those that never ended.
A step reads there which steps it came after. A line is a JSON object; the file is locked while it is read and written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

Note = dict[str, Any]

ENDING = ".steps"
MAX_STEPS = 1_000
"""Steps of one command that have entries of their own; further ones run unrecorded."""
_MAX_BYTES = 16 << 20


class Notes:
    """The notes of a run at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def create(self) -> bool:
        """Make the file; False when it cannot be made: then the steps inside have no order."""
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            return False
        return True

    @property
    def is_there(self) -> bool:
        """Whether the run around this command is still open."""
        return bool(self.path) and os.path.exists(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Locked]:
        """Read and add notes while nobody else does. Raises `OSError` when the run is over."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Locked(descriptor)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """The run is over."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


class Locked:
    """The notes, locked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.begun: list[Note] = []
        self.ended: dict[str, Note] = {}
        data = os.pread(descriptor, _MAX_BYTES, 0)
        for line in data.split(b"\n"):
            with contextlib.suppress(ValueError):
                note = json.loads(line)
                if "status" in note:
                    self.ended[note["id"]] = note
                else:
                    self.begun.append(note)

    def add(self, note: Note) -> None:
        """Add a note."""
        os.write(self._descriptor, json.dumps(note).encode() + b"\n")

    def repetitions(self, parent_id: str, name: str) -> int:
        """How many steps of this name began inside a step."""
        return sum(note["parent"] == parent_id and note["name"] == name for note in self.begun)

    def before(self, parent_id: str) -> list[Note]:
        """The steps inside a step that one which begins now comes after: those that ended, and after which no other
        one of those began."""
        done = [
            {**note, **self.ended[note["id"]]}
            for note in self.begun
            if note["parent"] == parent_id and note["id"] in self.ended
        ]
        latest_start = max([note["start"] for note in done], default=0)
        return [note for note in done if note["end"] >= latest_start]
