"""Which run a message of Celery belongs to, and where in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tachograph.integrations.celery_places import (
    Group,
    callback_place,
    group_of,
    ids_after,
    ids_in,
    is_simple,
    is_told_of_error,
)
from tachograph.integrations.places import Memory, Place, numbered
from tachograph.integrations.sending import sent_together
from tachograph.report.safely import caller_traceparent

_sent_together: Final = Memory()
_counts: Final = Memory()
_keys: Final = Memory()


def forget() -> None:
    """Forget all that was sent."""
    for memory in (_sent_together, _counts, _keys):
        memory.clear()


def first_place(headers: Mapping[str, Any], task_id: str, name: str, body: Any = None) -> Place:
    """The place of a task that no task sent."""
    group, block = group_of(headers, body), sent_together()
    run_id = group.outermost if group is not None else str(headers.get("root_id") or task_id)
    workflow = ""
    if block is not None:
        workflow, run_id = block.workflow, block.run_id
    first = _sent_together.get(run_id)
    if first is None:
        first = _sent_together.put(run_id, (workflow or name, caller_traceparent() or ""))
    if group is None or group.number is None:
        key, index = _numbered(run_id, name), None
    else:
        index = group.number
        key = _key_in_group(group, run_id, name)
    return Place(first[0], run_id, first[1], key, "", name, index, 0.0, "celery")


def place_after(
    sent_by: Place, request: Any, task_id: str, name: str, headers: Mapping[str, Any], body: Any
) -> Place | None:
    """The place of a task that another one sent; None: it is that task, sent again."""
    if request.id == task_id and name == sent_by.name:
        return None
    if task_id in set(ids_in(request.chord)):
        # Whichever task of the group ends last sends it.
        if is_simple(request.chord):
            return callback_place(sent_by, request.chord)
        return sent_by.after(name, sent_by.around)
    if request.chain and task_id in set(ids_in(request.chain[-1])) and is_simple(request.chain[-1]):
        return sent_by.follow(name)
    if is_told_of_error(request, headers, name):
        return sent_by.after(name)
    group = group_of(headers, body)
    place = sent_by.after(name, None, group.number if group is not None else None)
    scope = f"{sent_by.run_id}/{sent_by.path}"
    if group is not None and place.number is not None:
        return place._replace(key=_key_in_group(group, scope, place.key))
    if task_id not in ids_after(request):
        # A task may send as many others of a name as it likes.
        place = place._replace(key=_numbered(scope, place.key))
    return place


def inner_place(outer: Place, name: str) -> Place:
    """The place of a task that another one runs within itself."""
    place = outer.after(name)
    return place._replace(key=_numbered(f"{outer.run_id}/{outer.path}", place.key))


def _key_in_group(group: Group, scope: str, key: str) -> str:
    """The key of a group's members of a name; another group has another one."""
    known: str | None = _keys.get((group.id, key))
    return known or str(_keys.put((group.id, key), _numbered(scope, key)))


def _numbered(scope: str, key: str) -> str:
    """The key, and a number if it was there before in this scope."""
    return numbered(key, _counts.count((scope, key)))
