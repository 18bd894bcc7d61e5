"""Where a queued task is in its run, as its message carries it from process to process."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tachograph.report import Run, Step, run

HEADER: Final = "tachograph"
"""The header of a message that says which run the task belongs to."""
QUEUE_LEASE_SECONDS: Final = 7 * 86_400.0
"""How long a message may wait in the broker."""
_MAX_KEY: Final = 200
_MAX_REMEMBERED: Final = 10_000
_MAX_ATTEMPT: Final = 1_000_000
_ANEW: Final[dict[str, Any]] = {"queued": 0.0, "attempt": 1, "asked": 0.0}


class Place(NamedTuple):
    """Where a task is in its run; as a message's header.

    Attributes:
        workflow: name of the run's workflow.
        run_id: id of the run.
        traceparent: of the span that sent the first task, or "".
        key: of the step.
        around: key of the step that what comes after this one's group belongs to.
        name: of the task.
        number: in its group, or None.
        queued: when the attempt was due, unix seconds.
        engine: of the first task.
        attempt: number of the attempt, where the engine's message does not say it.
        asked: when somebody asked for the attempt, unix seconds, if it was for a later time; else 0.
    """

    workflow: str
    run_id: str
    traceparent: str
    key: str
    around: str
    name: str
    number: int | None
    queued: float
    engine: str
    attempt: int = 1
    asked: float = 0.0

    @property
    def waits(self) -> dict[str, float | None]:
        """When the attempt was asked for, and for when, as `tachograph.report.Step.started` takes it."""
        if self.asked:
            return {"queued_at": self.asked, "due": self.queued}
        return {"queued_at": self.queued or None}

    def queue(self) -> None:
        """Report that the attempt is asked for, and for when."""
        self.step.queued(at=self.asked or self.queued or None, due=self.queued or None)

    def asked_for(self, due: float, now: float | None = None) -> Place:
        """The place of an attempt that is asked for now, and due then."""
        now = time.time() if now is None else now
        return self._replace(queued=due, asked=now if due > now else 0.0)

    @property
    def run(self) -> Run:
        return self._run()

    def _run(self, *, heartbeats: bool = True) -> Run:
        return run(
            self.workflow,
            run_id=self.run_id,
            engine=self.engine,
            queue_lease=QUEUE_LEASE_SECONDS,
            traceparent=self.traceparent or None,
            heartbeats=heartbeats,
        )

    def leave_to_parent(self) -> None:
        """In a forked child that runs the task: its parent says that the run is alive, and what it knows is its own."""
        self.run.forget()
        self._run(heartbeats=False)

    @property
    def step(self) -> Step:
        return self.run.step(self.name, key=self.key, index=self.number)

    @property
    def path(self) -> str:
        """The key with the index: what this task sends is below it."""
        return self.key if self.number is None else f"{self.key}[{self.number}]"

    def after(self, name: str, path: str | None = None, number: int | None = None) -> Place:
        """The place of a task that comes after this one, or after its group."""
        around = self.path if path is None else path
        return self._replace(key=below(around, name), around=around, name=name, number=number, **_ANEW)

    def follow(self, name: str) -> Place:
        """The place of the next task in a chain; of one that is a member of a group, an instance as this one is."""
        if self.number is None:
            return self.after(name)
        return self._replace(key=below(self.key, name), name=name, **_ANEW)

    def again(self) -> Place:
        """The place in the next run of the same task, once this run has ended: somebody sends it again."""
        run_id, plus, count = self.run_id.rpartition("+")
        again = f"{run_id}+{int(count) + 1}" if plus and count.isdecimal() else f"{self.run_id}+1"
        return self._replace(run_id=again, **_ANEW)


def place_in(carrier: Any) -> Place | None:
    """The place that a message's headers or a task's request say."""
    return place_of(read(carrier, HEADER))


def place_of(text: Any) -> Place | None:
    """The place that a header says; None if it says none."""
    if not isinstance(text, str):
        return None
    try:
        place = Place(*json.loads(text))
    except (ValueError, TypeError):
        return None
    is_sound = all(isinstance(value, str) for value in (*place[:6], place.engine))
    is_sound = is_sound and type(place.queued) in (int, float) and type(place.asked) in (int, float)
    is_sound = is_sound and type(place.attempt) is int
    is_sound = is_sound and 1 <= place.attempt <= _MAX_ATTEMPT
    return place if is_sound and (place.number is None or type(place.number) is int) else None


def header_of(place: Place) -> str:
    return json.dumps(place if place.asked else place[:-1])  # Earlier versions do not know of the last one.


def read(carrier: Any, name: str) -> Any:
    if isinstance(carrier, Mapping):
        return carrier.get(name)
    return getattr(carrier, "__dict__", {}).get(name, getattr(carrier, name, None))


def below(path: str, name: str) -> str:
    """The key of a step after another one: the same in every run of the same shape."""
    key = f"{path}/{name}" if path else name
    if len(key) <= _MAX_KEY:
        return key
    return f"{hashlib.blake2b(path.encode(errors='replace'), digest_size=8).hexdigest()}/{name}"[:_MAX_KEY]


def numbered(key: str, number: int) -> str:
    """The key of the ``number``-th step (from 1) that would have this one in its run: the first has it as it is."""
    return key if number == 1 else f"{key}#{number}"


class Memory:
    """The newest of what a process knows, by id."""

    def __init__(self) -> None:
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any) -> Any:
        return self._values.get(key)

    def put(self, key: Any, value: Any) -> Any:
        self._values[key] = value
        while len(self._values) > _MAX_REMEMBERED:
            self._values.popitem(last=False)
        return value

    def take(self, key: Any) -> Any:
        return self._values.pop(key, None)

    def count(self, key: Any) -> int:
        """How often this was asked, this time included."""
        return int(self.put(key, (self._values.get(key) or 0) + 1))

    def clear(self) -> None:
        self._values.clear()
