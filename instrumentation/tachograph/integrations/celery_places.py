"""Where a Celery task is in its run, as the messages of tasks carry it; and what messages and requests say."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from tachograph.report import Run, Step, run

HEADER: Final = "tachograph"
"""The header of a message that says which run the task belongs to."""
QUEUE_LEASE_SECONDS: Final = 7 * 86_400.0
"""How long a message may wait in the broker."""
_MAX_KEY: Final = 200


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
    """

    workflow: str
    run_id: str
    traceparent: str
    key: str
    around: str
    name: str
    number: int | None
    queued: float

    @property
    def run(self) -> Run:
        return run(
            self.workflow,
            run_id=self.run_id,
            engine="celery",
            queue_lease=QUEUE_LEASE_SECONDS,
            traceparent=self.traceparent or None,
        )

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
        return self._replace(key=below(around, name), around=around, name=name, number=number, queued=0.0)


def place_in(carrier: Any) -> Place | None:
    """The place that a message's headers or a task's request say."""
    text = read(carrier, HEADER)
    if not isinstance(text, str):
        return None
    try:
        values = json.loads(text)
        place = Place(*values)
    except (ValueError, TypeError):
        return None
    is_sound = all(isinstance(value, str) for value in place[:6]) and isinstance(place.queued, int | float)
    return place if is_sound and (place.number is None or type(place.number) is int) else None


def header_of(place: Place) -> str:
    return json.dumps(place)


def read(carrier: Any, name: str) -> Any:
    if isinstance(carrier, Mapping):
        return carrier.get(name)
    return getattr(carrier, "__dict__", {}).get(name, getattr(carrier, name, None))


def headers_of(request: Any) -> Mapping[str, Any]:
    """The headers of the message of a worker's request."""
    message = getattr(request, "message", None)
    headers = getattr(message, "headers", None)
    if isinstance(headers, Mapping):
        return headers
    return getattr(request, "__dict__", {})


def attempt_of(carrier: Any) -> int:
    retries = read(carrier, "retries")
    return retries + 1 if type(retries) is int and retries >= 0 else 1


def index_of(headers: Mapping[str, Any]) -> int | None:
    index = headers.get("group_index")
    return index if type(index) is int and index >= 0 else None


def ids_after(request: Any) -> set[str]:
    """Ids of the tasks that Celery sends when this one ends well."""
    ids: set[str] = set()
    for signature in [*(request.callbacks or ()), *(request.chain or ())[-1:], request.chord]:
        ids.update(ids_in(signature))
    return ids


def ids_in(signature: Any, depth: int = 5) -> Iterator[str]:
    """Ids of the tasks of a signature: of a task, a group, a chord or a chain."""
    if not isinstance(signature, Mapping) or not depth:
        return
    options, kwargs = signature.get("options"), signature.get("kwargs")
    if isinstance(options, Mapping) and isinstance(options.get("task_id"), str):
        yield options["task_id"]
    if signature.get("subtask_type") and isinstance(kwargs, Mapping):
        for part in ("tasks", "header", "body"):
            inner = kwargs.get(part)
            for each in inner if isinstance(inner, list | tuple) else [inner]:
                yield from ids_in(each, depth - 1)


def is_simple(signature: Any) -> bool:
    return isinstance(signature, Mapping) and not signature.get("subtask_type") and bool(signature.get("task"))


def task_of(signature: Mapping[str, Any]) -> str:
    return str(signature["task"])


def below(path: str, name: str) -> str:
    """The key of a step after another one: the same in every run of the same shape."""
    key = f"{path}/{name}" if path else name
    if len(key) <= _MAX_KEY:
        return key
    return f"{hashlib.blake2b(path.encode(errors='replace'), digest_size=8).hexdigest()}/{name}"[:_MAX_KEY]


def moment_of(text: Any) -> float | None:
    if isinstance(text, datetime):
        return text.timestamp()
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None


def seconds_until(when: Any) -> float:
    """Seconds until a retry is due: Celery says a number of them, or a moment."""
    if isinstance(when, int | float):
        return max(0.0, float(when))
    moment = moment_of(when)
    return 0.0 if moment is None else max(0.0, moment - time.time())
