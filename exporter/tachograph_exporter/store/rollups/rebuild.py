"""Rebuilding the rollups from the executions."""

from __future__ import annotations

from typing import cast

from sqlalchemy import Connection, select

from tachograph_exporter.store.locking import lock
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.rollups.expected import expected_rows
from tachograph_exporter.store.rollups.rows import RollupRows, head_of
from tachograph_exporter.store.schema import (
    workflow_executions,
    workflow_rollups,
)

_executions = workflow_executions.c
_rollups = workflow_rollups.c


def workflows_with_executions(connection: Connection) -> list[Key]:
    """Every (workspace, workflow) that has executions or rollups."""
    keys = {
        tuple(row) for row in connection.execute(select(_executions.workspace_id, _executions.workflow_id).distinct())
    }
    keys |= {tuple(row) for row in connection.execute(select(_rollups.workspace_id, _rollups.workflow_id).distinct())}
    return sorted(cast("set[Key]", keys))


def stored(connection: Connection, key: Key) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """A workflow's rollup rows as stored, by (period, start)."""
    statement = select(_rollups.period, _rollups.start_s, _rollups.executions, _rollups.steps).where(
        _rollups.workspace_id == key[0], _rollups.workflow_id == key[1]
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(statement)}


def rebuild_one(connection: Connection, key: Key, *, write: bool = True) -> int:
    """Rebuild a workflow's rollups. Returns the number of rows that were wrong."""
    lock(connection)
    expected, actual = expected_rows(connection, key), stored(connection, key)
    wrong = sum(1 for row in expected.keys() | actual.keys() if expected.get(row) != actual.get(row))
    if write and (wrong or (head_of(connection, key) is None) is not (not expected)):
        rows = RollupRows(connection, key)
        rows.replace(expected)
        rows.close()
    return wrong


def rebuild_all(connection: Connection) -> None:
    """Rebuild every workflow's rollups, in the transaction of ``connection``."""
    for key in workflows_with_executions(connection):
        rebuild_one(connection, key)
