"""Reading runs of many steps without holding up the event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph_exporter.api.request import DATABASE
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.database import Database, Lane

LARGE_STEPS: Final = 500
"""Runs with more steps are read, built and encoded off the event loop on PostgreSQL too."""


async def json_of_runs(
    request: web.Request, workspace_id: str, read: Callable[[Connection], bytes], *execution_ids: str
) -> web.Response:
    """Respond with the JSON that ``read`` makes of these executions."""
    database = request.app[DATABASE]
    body = await database.read(read, await lane_of(database, workspace_id, *execution_ids))
    return web.Response(body=body, content_type="application/json")


async def lane_of(database: Database, workspace_id: str, *execution_ids: str) -> Lane:
    """The lane to read these executions in. On SQLite every read is off the event loop."""
    if database.is_sqlite:
        return Lane.READ
    count = await database.read(partial(execution_rows.step_count, workspace=workspace_id, ids=execution_ids))
    return Lane.SEARCH if count > LARGE_STEPS else Lane.READ
