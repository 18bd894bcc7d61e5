"""Executions that begin and end in one transaction: they are counted from the rows that it writes, not read back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, union_all

from tachograph_exporter.store.driver_select import IDS, DriverSelect
from tachograph_exporter.store.merging import FIRST_TERMINAL_STEP_RANK
from tachograph_exporter.store.rollups.grouping import StepLayout, grouped
from tachograph_exporter.store.schema import (
    EXECUTION_ROWS,
    STEP_ROWS,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph_exporter.store.state import RESOURCES_SINCE, state_of

_CHUNK: Final = 400


class Fresh(NamedTuple):
    """Executions of which all rows are written in one transaction: nothing of them has to be read back.

    ``executions`` and ``steps`` are rows as `counting` reads them. ``plain``: groups of further steps, of one name and
    status each, as they are stored (see `schema`).
    """

    executions: Mapping[str, tuple[Any, ...]] = {}
    steps: Sequence[tuple[Any, ...]] = ()
    plain: Sequence[Sequence[tuple[Any, ...]]] = ()
    resources_since_ns: int = 0


NOTHING_FRESH: Final = Fresh()
_OF_EXECUTION: Final = itemgetter(*(
    EXECUTION_ROWS.columns.index(name) for name in (
        "execution_id", "workspace_id", "workflow_id", "status", "started_ns", "finished_ns", "queued_ns", "work_ns",
        "critical_path_ns", "critical_path", "trace_id", "span_id",
    )
))  # fmt: skip
_OF_STEP: Final = itemgetter(*(
    STEP_ROWS.columns.index(name) for name in (
        "execution_id", "step_id", "name", "status", "started_ns", "finished_ns", "attempt", "dependency_ns",
        "queue_ns", "backoff_ns", "run_ns", "unaccounted_ns", "scheduled_ns", "folded", "resources", "span_id",
        "skip_reason",
    )
))  # fmt: skip
_PATH: Final = EXECUTION_ROWS.columns.index("critical_path")
_RANK, _FINISHED, _RESOURCES = (STEP_ROWS.columns.index(name) for name in ("rank", "finished_ns", "resources"))
AS_STORED: Final = StepLayout.of(STEP_ROWS.columns)
"""Where a step's row, as it is written, has what is counted."""
_PARTS: Final = DriverSelect(union_all(*[
    select(table.c.execution_id).where(table.c.execution_id.in_(bindparam(IDS, expanding=True)))
    for table in (workflow_step_executions, workflow_step_attempts, workflow_step_reports)
]))  # fmt: skip


def fresh(
    connection: Connection,
    executions: Mapping[str, tuple[Any, ...]],
    steps: Collection[tuple[Any, ...]],
    others: AbstractSet[str],
    ended: AbstractSet[str],
) -> Fresh:
    """Those of the executions that ended, and of which nothing is stored, from the rows that are going to be.

    ``others``: executions that have further rows. The caller has claimed their workflows.
    """
    ids = {key for key in ended - others if executions[key][_PATH] is not None}
    in_order = list(ids)
    for i in range(0, len(in_order), _CHUNK):
        # Steps may have been told of before their execution was.
        ids.difference_update([row[0] for row in _PARTS.rows(connection, in_order[i : i + _CHUNK])])
    if not ids:
        return NOTHING_FRESH
    ended_steps = (row for row in steps if row[_RANK] >= FIRST_TERMINAL_STEP_RANK and row[0] in ids)
    plain, rest = grouped(ended_steps, AS_STORED)
    since = 0
    if any(row[_RESOURCES] is not None for row in steps):
        since = int(state_of(connection, RESOURCES_SINCE) or 0)
    of_executions = {key: _OF_EXECUTION(executions[key]) for key in ids}
    return Fresh(of_executions, [_counted_row(row, since) for row in rest], plain, since)


def _counted_row(row: tuple[Any, ...], resources_since_ns: int) -> tuple[Any, ...]:
    if row[_RESOURCES] is not None and (row[_FINISHED] or 0) < resources_since_ns:
        row = (*row[:_RESOURCES], None, *row[_RESOURCES + 1 :])
    counted: tuple[Any, ...] = _OF_STEP(row)
    return counted
