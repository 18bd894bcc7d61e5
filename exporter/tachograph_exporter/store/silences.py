"""Rows of silences: until when nobody is told of something."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, delete, func, insert, or_, select, update

from tachograph.expectation import SEVERITIES
from tachograph_exporter.name_patterns import fits
from tachograph_exporter.store.schema import notice_silences, workspaces

MAX_SILENCES: Final = 1_000
"""So many may be in force at once."""

_silences = notice_silences.c


class Silence(NamedTuple):
    """Until when (unix ns) nobody is told; None is any workspace (an id), workflow (wildcards), kind or severity.

    ``severity`` is the greatest that is silenced. ``created_by`` is a name, as far as it is known.
    """

    id: str
    workspace_id: str | None
    workflow: str | None
    kind: str | None
    until_ns: int
    reason: str
    severity: str | None = None
    created_by: str = ""
    created_ns: int = 0

    def covers(self, workspace_id: str, workflow: str, kind: str, severity: str) -> bool:
        """Whether it is about this."""
        return (
            self.workspace_id in (None, workspace_id)
            and (self.workflow is None or fits(self.workflow, workflow))
            and self.kind in (None, kind)
            and (self.severity is None or SEVERITIES.index(severity) <= SEVERITIES.index(self.severity))
        )


def add_silence(connection: Connection, new: Silence, now_ns: int) -> bool:
    """Store a silence. Returns False if there are too many (`MAX_SILENCES`)."""
    current = select(func.count()).select_from(notice_silences).where(_silences.until_ns > now_ns)
    if connection.execute(current).scalar_one() >= MAX_SILENCES:
        return False
    connection.execute(insert(notice_silences).values(**{**new._asdict(), "created_ns": now_ns}))
    return True


def silences(connection: Connection, now_ns: int) -> list[Silence]:
    """Silences that have not ended, the first to end first."""
    columns = [_silences[name] for name in Silence._fields]
    statement = select(*columns).where(_silences.until_ns > now_ns).order_by(_silences.until_ns, _silences.id)
    return [Silence(*row) for row in connection.execute(statement)]


def listed_silences(
    connection: Connection, workspace_id: str | None, now_ns: int, *, with_ended: bool = False
) -> list[Row[Any]]:
    """Silences with their workspace's slug: those in force, the first to end first, then the newest ended ones.

    ``workspace_id``: only those that count in this workspace.
    """
    statement: Select[Any] = select(notice_silences, workspaces.c.slug.label("workspace")).outerjoin(
        workspaces, workspaces.c.id == _silences.workspace_id
    )
    if workspace_id is not None:
        statement = statement.where(or_(_silences.workspace_id == workspace_id, _silences.workspace_id.is_(None)))
    if not with_ended:
        statement = statement.where(_silences.until_ns > now_ns)
    rows = connection.execute(statement.limit(2 * MAX_SILENCES).order_by(_silences.until_ns.desc())).all()
    return sorted(rows, key=lambda row: (row.until_ns <= now_ns, abs(row.until_ns - now_ns), row.id))


def end_silence(
    connection: Connection, silence_id: str, now_ns: int, workspace_id: str | None = None, *, of_all: bool = True
) -> bool:
    """End a silence now. Returns False if there is none with this id that has not ended.

    ``workspace_id``: it must count there; unless ``of_all``, there only.
    """
    is_mine = (_silences.id == silence_id) & (_silences.until_ns > now_ns)
    if workspace_id is not None:
        is_here = _silences.workspace_id == workspace_id
        is_mine &= or_(is_here, _silences.workspace_id.is_(None)) if of_all else is_here
    return connection.execute(update(notice_silences).where(is_mine).values(until_ns=now_ns)).rowcount == 1


def prune_silences(connection: Connection, before_ns: int) -> None:
    """Delete silences that ended before a time (unix ns)."""
    connection.execute(delete(notice_silences).where(_silences.until_ns < before_ns))
