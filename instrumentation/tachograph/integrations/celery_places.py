"""What the messages and requests of Celery's tasks say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from tachograph.integrations.places import read


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
