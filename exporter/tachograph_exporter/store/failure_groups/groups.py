"""The rows of groups: what they are, and what a person said of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, exists, func, insert, or_, select, update

from tachograph_exporter.store import locking
from tachograph_exporter.store.driver_select import DriverSelect
from tachograph_exporter.store.failure_groups.fingerprint import VERSION, Fingerprint
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.schema import failure_groups, failure_occurrences, workflow_executions

MAX_GROUPS: Final = 2_000
"""Groups of a workspace; failures of further causes are in the group `OTHER`."""
OTHER: Final = "other"
OPEN, MUTED, RESOLVED = "open", "muted", "resolved"
KEPT_NS: Final = 90 * 86_400 * 10**9
"""How long occurrences of archived executions are kept, and groups that have no occurrences any more."""
KEPT_SAID_NS: Final = 400 * 86_400 * 10**9
"""How long such groups are kept that somebody muted or resolved."""
_SETTLED_NS: Final = 3_600 * 10**9
_PRUNED: Final = 2_000
_CHUNK: Final = 500

_groups = failure_groups.c
_occurrences = failure_occurrences.c
_KNOWN: Final = DriverSelect(
    select(_groups.group_id).where(
        _groups.workspace_id == bindparam("workspace"), _groups.group_id.in_(bindparam("ids", expanding=True))
    ),
    "workspace",
)
_COUNT: Final = select(func.count()).select_from(failure_groups).where(_groups.workspace_id == bindparam("workspace"))
_OTHER: Final = Fingerprint("", "", (), "")


def ensure(
    connection: Connection, workspace_id: str, prints: Mapping[str, Fingerprint], known: Collection[str] = ()
) -> frozenset[str]:
    """Let groups exist, by id; there are those that are ``known``. Returns the ids of those that have no room."""
    new = _unknown(connection, workspace_id, sorted(prints.keys() - known))
    if new and locking.is_shared(connection):
        # Another writer may add the same ones now.
        locking.claim(connection, Claim.GROUPS)
        new = _unknown(connection, workspace_id, new)
    if not new:
        return frozenset()
    room = max(0, MAX_GROUPS - connection.execute(_COUNT, {"workspace": workspace_id}).scalar_one())
    rows = [_row(workspace_id, group_id, prints[group_id]) for group_id in new[:room]]
    beyond = frozenset(new[room:])
    if beyond and _unknown(connection, workspace_id, [OTHER]):
        rows.append(_row(workspace_id, OTHER, _OTHER))
    if rows:
        connection.execute(insert(failure_groups), rows)
    return beyond


def _unknown(connection: Connection, workspace_id: str, ids: Sequence[str]) -> list[str]:
    known: set[str] = set()
    for i in range(0, len(ids), _CHUNK):
        known.update(row[0] for row in _KNOWN.rows(connection, ids[i : i + _CHUNK], workspace=workspace_id))
    return [group_id for group_id in ids if group_id not in known]


def _row(workspace_id: str, group_id: str, print_: Fingerprint) -> dict[str, Any]:
    return {
        "workspace_id": workspace_id,
        "group_id": group_id,
        "version": VERSION,
        "error_type": print_.error_type,
        "template": print_.template,
        "frames": msgspec.json.encode(print_.frames).decode(),
        "place": print_.place,
        "created_ns": time.time_ns(),
    }


def say(connection: Connection, workspace_id: str, group_id: str, state: str, by: str, note: str, now_ns: int) -> bool:
    """Note what a person says of a group. Returns whether there is such a group."""
    of_group = (_groups.workspace_id == workspace_id) & (_groups.group_id == group_id)
    values = {"state": state, "state_ns": now_ns, "state_by": by[:200], "note": note}
    return connection.execute(update(failure_groups).where(of_group).values(**values)).rowcount > 0


def remember(connection: Connection, are_leaving: ColumnElement[bool]) -> None:
    """Let groups remember when occurrences were seen that are about to be removed."""
    seen = connection.execute(
        select(
            _occurrences.workspace_id, _occurrences.group_id,
            func.min(_occurrences.time_ns), func.max(_occurrences.time_ns),
        ).where(are_leaving).group_by(_occurrences.workspace_id, _occurrences.group_id)
    ).all()  # fmt: skip
    if not seen:
        return
    lower = (_groups.first_ns.is_(None)) | (_groups.first_ns > bindparam("low"))
    higher = (_groups.last_ns.is_(None)) | (_groups.last_ns < bindparam("high"))
    of_group = (_groups.workspace_id == bindparam("workspace"), _groups.group_id == bindparam("group"))
    parameters = [{"workspace": row[0], "group": row[1], "low": row[2], "high": row[3]} for row in seen]
    first = update(failure_groups).where(*of_group, lower).values(first_ns=bindparam("low"))
    last = update(failure_groups).where(*of_group, higher).values(last_ns=bindparam("high"))
    for statement, name in ((first, "low"), (last, "high")):
        kept = [{key: values[key] for key in ("workspace", "group", name)} for values in parameters]
        connection.execute(statement, kept)


def _has_occurrences() -> ColumnElement[bool]:
    return exists().where(_occurrences.workspace_id == _groups.workspace_id, _occurrences.group_id == _groups.group_id)


def forget_empty(connection: Connection, workspace_id: str, ids: Collection[str]) -> None:
    """Delete those of the groups that have no occurrences, and never had others."""
    ordered = sorted(ids)
    for i in range(0, len(ordered), _CHUNK):
        connection.execute(
            delete(failure_groups).where(
                _groups.workspace_id == workspace_id,
                _groups.group_id.in_(ordered[i : i + _CHUNK]),
                _groups.last_ns.is_(None),
                ~_has_occurrences(),
            )
        )


def prune(connection: Connection, now_ns: int) -> int:
    """Remove occurrences and groups that are kept no longer; returns how many, a bounded number at a time."""
    locking.lock(connection)
    is_stored = exists().where(workflow_executions.c.execution_id == _occurrences.execution_id)
    old = select(_occurrences.execution_id).where(_occurrences.time_ns < now_ns - KEPT_NS, ~is_stored)
    ids = connection.execute(old.distinct().limit(_PRUNED // 4)).scalars().all()
    removed = 0
    for i in range(0, len(ids), _CHUNK):
        are_old = _occurrences.execution_id.in_(ids[i : i + _CHUNK])
        remember(connection, are_old)
        removed += connection.execute(delete(failure_occurrences).where(are_old)).rowcount
    last_seen = func.coalesce(_groups.last_ns, _groups.created_ns)
    is_old = or_(
        # Of an execution that has been read from its spans again, and tells of another failure now.
        and_(_groups.last_ns.is_(None), _groups.created_ns < now_ns - _SETTLED_NS, _groups.state == OPEN),
        and_(_groups.state == OPEN, last_seen < now_ns - KEPT_NS),
        last_seen < now_ns - KEPT_SAID_NS,
    )
    statement = select(_groups.workspace_id, _groups.group_id).where(is_old, ~_has_occurrences()).limit(_PRUNED)
    for workspace, group in connection.execute(statement).all():
        gone = (_groups.workspace_id == workspace) & (_groups.group_id == group)
        removed += connection.execute(delete(failure_groups).where(gone)).rowcount
    return removed
