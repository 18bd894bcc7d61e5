"""Reading what an overview of a workspace shows: failures, slow and open executions, the newest ones of each workflow.

Every statement reads a bounded piece of an index, for the workflows that the rollups say are worth looking at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, select, union_all

from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.schema import notices, workflow_executions, workflow_step_executions
from tachograph_exporter.store.steps import folded_counts
from tachograph_exporter.store.totals import decode_folded

MAX_OPEN: Final = 500
"""Open executions that an overview looks at, the newest ones."""
MAX_FAILURES: Final = 2_000
"""Failed executions that an overview looks at, shared among the workflows that have any."""
MAX_LATE: Final = 50
LATE_KINDS: Final = ("late", "overdue", "stale")
"""Kinds of findings (see `expectations.findings`) that say that something did not happen in time."""
_MIN_FAILURES: Final = 20
_UNION: Final = 100
"""Parts of one statement; SQLite takes 500."""

_rows = workflow_executions.c
_steps = workflow_step_executions.c
_notices = notices.c
_COLUMNS: Final = (
    _rows.execution_id, _rows.workflow_id, _rows.workflow, _rows.status, _rows.created_ns, _rows.started_ns,
    _rows.finished_ns, _rows.error_type, _rows.error_message,
)  # fmt: skip


def _of_each(connection: Connection, parts: Iterable[Select[Any]]) -> dict[str, list[Row[Any]]]:
    """The rows of statements that are each about one workflow, by its id, in their order."""
    rows: dict[str, list[Row[Any]]] = defaultdict(list)
    parts = list(parts)
    for i in range(0, len(parts), _UNION):
        chunk = [select(part.subquery()) for part in parts[i : i + _UNION]]
        for row in connection.execute(chunk[0] if len(chunk) == 1 else union_all(*chunk)):
            rows[row.workflow_id].append(row)
    return rows


def _ended(workspace: str, workflow_id: str, since_ns: int) -> ColumnElement[bool]:
    return and_(_rows.workspace_id == workspace, _rows.workflow_id == workflow_id, _rows.finished_ns >= since_ns)


def failures(
    connection: Connection, workspace: str, workflow_ids: Sequence[str], since_ns: int
) -> dict[str, list[Row[Any]]]:
    """The newest failed, timed out and lost executions of each workflow since a time (unix ns), the newest first."""
    limit = max(_MIN_FAILURES, MAX_FAILURES // max(1, len(workflow_ids)))
    return _of_each(
        connection,
        (
            select(*_COLUMNS)
            .where(_ended(workspace, workflow_id, since_ns), _rows.status.in_(UNSUCCESSFUL))
            .order_by(_rows.finished_ns.desc())
            .limit(limit)
            for workflow_id in workflow_ids
        ),
    )


def longer_than(
    connection: Connection, workspace: str, limits_ns: Mapping[str, int], since_ns: int, limit: int
) -> dict[str, list[Row[Any]]]:
    """The newest completed executions since a time that took longer than the limit of their workflow (its id)."""
    return _of_each(
        connection,
        (
            select(*_COLUMNS)
            .where(
                _ended(workspace, workflow_id, since_ns),
                _rows.status == "completed",
                _rows.finished_ns - _rows.started_ns > longest_ns,
            )
            .order_by(_rows.finished_ns.desc())
            .limit(limit)
            for workflow_id, longest_ns in limits_ns.items()
        ),
    )


def newest(
    connection: Connection, workspace: str, workflow_ids: Iterable[str], limit: int
) -> dict[str, list[Row[Any]]]:
    """The newest executions of each workflow, the newest first."""
    return _of_each(
        connection,
        (
            select(*_COLUMNS)
            .where(_rows.workspace_id == workspace, _rows.workflow_id == workflow_id)
            .order_by(_rows.created_ns.desc())
            .limit(limit)
            for workflow_id in workflow_ids
        ),
    )


def open_runs(connection: Connection, workspace: str) -> Sequence[Row[Any]]:
    """Executions of a workspace that have not ended, the newest `MAX_OPEN`."""
    statement = (
        select(*_COLUMNS)
        .where(IS_OPEN, _rows.workspace_id.concat("") == workspace)
        .order_by((_rows.created_ns + 0).desc())
        .limit(MAX_OPEN)
    )
    return cast("Sequence[Row[Any]]", connection.execute(statement).all())


def late(connection: Connection, workspace: str) -> Sequence[Row[Any]]:
    """What did not happen in time in a workspace and still has not (see `store.notices`), the newest first."""
    statement = (
        select(_notices.workflow, _notices.kind, _notices.severity, _notices.text, _notices.opened_ns,
               _notices.execution_id)
        .where(_notices.workspace_id == workspace, _notices.resolved_ns.is_(None), _notices.kind.in_(LATE_KINDS))
        .order_by(_notices.opened_ns.desc())
        .limit(MAX_LATE)
    )  # fmt: skip
    return cast("Sequence[Row[Any]]", connection.execute(statement).all())


def first_failed_steps(connection: Connection, execution_ids: Sequence[str]) -> dict[str, str]:
    """The name of the step that failed first in each of these executions, as far as one did."""
    statement = (
        select(_steps.execution_id, _steps.name)
        .where(_steps.execution_id.in_(execution_ids), _steps.status.in_(UNSUCCESSFUL))
        .order_by(_steps.finished_ns.desc())
    )
    return {row.execution_id: row.name for row in connection.execute(statement)}


def step_counts(connection: Connection, execution_ids: Sequence[str]) -> dict[str, Counter[str]]:
    """How many steps of each of these executions have which status; every repetition counts."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    if not execution_ids:
        return counts
    of_them = _steps.execution_id.in_(execution_ids)
    statement = (
        select(_steps.execution_id, _steps.status, func.count())
        .where(of_them, _steps.folded.is_(None))
        .group_by(_steps.execution_id, _steps.status)
    )
    for execution_id, status, count in connection.execute(statement):
        counts[execution_id][status] += count
    for execution_id, folded in connection.execute(
        select(_steps.execution_id, _steps.folded).where(of_them, _steps.folded.is_not(None))
    ):
        counts[execution_id] += folded_counts(decode_folded(folded))
    return counts


def open_step_counts(connection: Connection, page: Iterable[Row[Any]]) -> dict[str, Counter[str]]:
    """`step_counts` of those executions of a list that have not ended: their rows do not count their steps yet."""
    return step_counts(connection, [row.execution_id for row in page if row.status in ("pending", "running")])
