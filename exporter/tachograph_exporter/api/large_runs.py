"""Reading runs of many steps without holding up the event loop."""

from __future__ import annotations

from functools import partial
from typing import Final

from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.database import Database, Lane

LARGE_STEPS: Final = 500
"""Runs with more steps are read, built and encoded off the event loop on PostgreSQL too."""


async def lane_of(database: Database, workspace_id: str, *execution_ids: str) -> Lane:
    """The lane to read these executions in. On SQLite every read is off the event loop."""
    if database.is_sqlite:
        return Lane.READ
    count = await database.read(partial(execution_rows.step_count, workspace=workspace_id, ids=execution_ids))
    return Lane.SEARCH if count > LARGE_STEPS else Lane.READ
