"""What the messages and requests of Celery's tasks say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from tachograph.integrations.places import Place, below, numbered, read

_MAX_DEPTH: Final = 10


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


class Group(NamedTuple):
    """Which group a task, or the chain that it begins, is a member of."""

    id: str
    number: int | None
    outermost: str
    """The id of the outermost group, where its callback is a member of another one, and so on."""


def group_of(headers: Mapping[str, Any], body: Any) -> Group | None:
    """The group of a message: its headers say it of the last task of a chain only, the chain's first has the others."""
    embedded = body[2] if isinstance(body, list | tuple) and len(body) > 2 and isinstance(body[2], Mapping) else {}
    group, index, chord = headers.get("group"), index_of(headers), embedded.get("chord")
    chain = embedded.get("chain")
    if isinstance(chain, list | tuple) and chain and is_simple(chain[0]):
        options = _options(chain[0])
        chord = options.get("chord")
        if not group:
            group, index = options.get("group_id"), index_of(options)
    outermost = _options(nesting(chord)[-1]).get("group_id") if isinstance(chord, Mapping) else None
    if not isinstance(group, str) or not group:
        return None
    return Group(group, index, outermost if isinstance(outermost, str) and outermost else group)


def nesting(chord: Any) -> list[Any]:
    """The callback of a group, that of the group that this one is a member of, and so on."""
    chords = [chord]
    while len(chords) < _MAX_DEPTH and isinstance(around := _options(chords[-1]).get("chord"), Mapping):
        chords.append(around)
    return chords


def callback_place(member: Place, callback: Mapping[str, Any]) -> Place:
    """The place of the callback of a member's group; it may be a member of another group itself."""
    place, depth = member.after(task_of(callback), member.around), len(nesting(callback)) - 1
    if not depth:
        return place
    return place._replace(
        key=numbered(below(member.around, place.name), depth + 1), number=index_of(_options(callback))
    )


def is_told_of_error(request: Any, headers: Mapping[str, Any], name: str) -> bool:
    """Whether a message is for a task that Celery tells of the error of the one that runs."""
    tasks = [task_of(signature) for signature in request.errbacks or () if is_simple(signature)]
    return name in tasks and headers.get("argsrepr") == f"({request.id!r},)"


def replaces(request: Any, task_id: str, body: Any) -> bool:
    """Whether a message is part of what the task that runs replaces itself by: that, or its callback, has its id."""
    embedded = body[2] if isinstance(body, list | tuple) and len(body) > 2 and isinstance(body[2], Mapping) else {}
    chain = embedded.get("chain")
    signatures = [embedded.get("chord"), *(chain if isinstance(chain, list | tuple) else ())]
    return request.id == task_id or any(request.id in ids_in(signature) for signature in signatures)


def _options(signature: Any) -> Mapping[str, Any]:
    options = signature.get("options") if isinstance(signature, Mapping) else None
    return options if isinstance(options, Mapping) else {}


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
