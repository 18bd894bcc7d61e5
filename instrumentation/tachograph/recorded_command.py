"""The recorded command that a process runs inside (``tachograph exec``), and the steps that begin there.

A command finds in its environment which step it is in. The commands and the recorded functions inside it note, in a
file that they share, which steps began and ended. The outermost command makes the file and deletes it; it counts the
steps at the end, and closes those that never ended. A step reads there which steps it came after. A line of the file is
a JSON object; the file is locked while it is read and written.

Imports little, because `tachograph exec` must start at once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

try:
    import fcntl
except ImportError:  # Commands are recorded on POSIX only.
    fcntl = None  # type: ignore[assignment]

Note = dict[str, Any]
Ref = dict[str, Any]

STEP_VARIABLE: Final = "TACHOGRAPH_STEP"
"""Tells what runs inside a recorded command which step it is in; as JSON, see `Around`."""
ENDING: Final = ".steps"
MAX_STEPS: Final = 1_000
"""Steps of one command that have entries of their own; further ones run unrecorded, or as runs of their own."""
_MAX_BYTES: Final = 16 << 20
_MAX_DEPENDENCIES: Final = 32


class Around(NamedTuple):
    """The step of a recorded command, as what runs inside it sees it.

    ``execution`` is the reference to the run, in wire form; ``started_ns`` when the attempt started, unix nanoseconds;
    ``notes`` the path of the notes; ``destination`` the name of the spool of where the run is recorded.
    """

    execution: Ref
    step_id: str
    span_id: str
    order: int
    started_ns: int
    notes: str
    destination: str

    def to_text(self) -> str:
        """The value of `STEP_VARIABLE`."""
        step = {"id": self.step_id, "span_id": self.span_id, "order": self.order}
        return json.dumps({
            "execution": self.execution, "step": step, "started_ns": self.started_ns, "notes": self.notes,
            "destination": self.destination,
        })  # fmt: skip


def around(environment: Mapping[str, str]) -> Around | None:
    """The step that this process runs inside; None: there is none, or its run has ended."""
    try:
        said = json.loads(environment.get(STEP_VARIABLE, ""))
        execution, step = said["execution"], said["step"]
        texts = [execution["execution_id"], execution["workflow_id"], execution["trace_id"], step["id"]]
        texts += [step["span_id"], said["notes"], said.get("destination", "")]
        numbers = [step["order"], said["started_ns"]]
        if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
            return None
        outer = Around(execution, texts[3], texts[4], *numbers, *texts[5:])
        return outer if Notes(outer.notes).is_there else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def is_around(environment: Mapping[str, str], execution_id: str) -> bool:
    """Whether this is the execution of the recorded command that this process runs inside."""
    outer = around(environment) if STEP_VARIABLE in environment else None
    return outer is not None and outer.execution["execution_id"] == execution_id


class BegunStep(NamedTuple):
    """A step that began inside a recorded command. Times are unix nanoseconds.

    ``ref`` is the reference to it, in wire form; ``origin_ns`` when the step around it started; ``ready_ns`` when this
    one could have started.
    """

    ref: Ref
    origin_ns: int
    ready_ns: int


def begin_step(
    outer: Around,
    notes: Notes,
    name: str,
    step_type: str,
    clock: Callable[[], int],
    derive: Callable[[str, str], str],
    **more: Any,
) -> BegunStep | None:
    """Begin a step inside a recorded command, and note it there; None if its run is over, or has `MAX_STEPS` steps.

    ``derive`` gives the id of a step from that of its workflow and its path. Raises `OSError` if the run is over.
    """
    with notes.locked() as written:
        if len(written.begun) >= MAX_STEPS:
            return None
        index = written.repetitions(outer.step_id, name)
        before = written.before(outer.step_id)[-_MAX_DEPENDENCIES:]
        key = f"{outer.step_id}/{name}" + (f"#{index}" if index else "")
        ref = {
            "execution": outer.execution,
            "step_id": derive(outer.execution["workflow_id"], key),
            "name": name,
            "span_id": os.urandom(8).hex(),
            "parent_span_id": outer.span_id,
            "step_type": step_type,
            "step_order": outer.order + 1 + sum(note["parent"] == outer.step_id for note in written.begun),
            "index": index,
            "depends_on": [note["id"] for note in before],
            "links": [note["step"]["span_id"] for note in before],
            "parent_step_id": outer.step_id,
            **more,
        }
        step = BegunStep(ref, outer.started_ns, max([note["end"] for note in before], default=outer.started_ns))
        now = clock()
        waits = first_waits(step.origin_ns, step.ready_ns, now)
        written.add({
            "id": ref["step_id"], "parent": outer.step_id, "name": name, "start": now, "step": ref, "waits": waits,
        })  # fmt: skip
        return step


def end_step(notes: Notes, step_id: str, status: str, now_ns: int) -> bool:
    """Note that a step ended; False if the run around it is over."""
    try:
        with notes.locked() as written:
            written.add({"id": step_id, "status": status, "end": now_ns})
    except OSError:
        return notes.is_there
    return True


def first_waits(origin_ns: int, ready_ns: int, started_ns: int) -> dict[str, int]:
    """The waits before a step's first attempt: for what it depends on, then for the program to come to it."""
    dependency_ns = max(0, min(ready_ns, started_ns) - origin_ns)
    return {"dependency_ns": dependency_ns, "unaccounted_ns": max(0, started_ns - origin_ns - dependency_ns)}


class Notes:
    """The notes of a run at ``path``. What this process has read of them it does not read again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.begun: list[Note] = []
        self.ended: dict[str, Note] = {}
        self.read_bytes = 0

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
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Locked(self, descriptor)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """The run is over."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


class Locked:
    """The notes, locked."""

    def __init__(self, notes: Notes, descriptor: int) -> None:
        self._descriptor = descriptor
        self.begun, self.ended = notes.begun, notes.ended
        whole = os.pread(descriptor, _MAX_BYTES, notes.read_bytes).rpartition(b"\n")[0]
        if not whole:
            return
        notes.read_bytes += len(whole) + 1
        for line in whole.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                note = json.loads(line)
                if "status" in note:
                    self.ended[note["id"]] = note
                else:
                    self.begun.append(note)

    def add(self, note: Note) -> None:
        """Add a note. Raises `OSError` if it cannot be written whole."""
        line = json.dumps(note).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, line) < len(line):
            os.ftruncate(self._descriptor, size)
            raise OSError("the disk is full")

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
