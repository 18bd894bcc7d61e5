"""What the steps of an execution do now, and what the sampled ones did."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.stacks.wishes import tell
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.reading.asking import POLL_SECONDS, Asking
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.views.schemas.stacks import ExecutionStacks, SpeedscopeFile
from tachograph_exporter.views.stacks import Request, folded_text, read_stacks, speedscope

FORMATS: Final = ("json", "folded", "speedscope")
MAX_ASKING: Final = 32
"""Requests that wait for an answer at the same time; more read what is stored."""
_asking = 0


async def stacks(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/stacks``: what its steps do now, and what sampled ones did.

    Of an execution that runs, its processes are asked for the stacks of its running steps, and have 5 s to answer.
    Steps that take longer than 95 % of their usual runs are sampled from then on until they end.
    """
    query = Query(request)
    names = query.texts("step")
    format_name = query.choice("format", FORMATS, "json")
    is_asked = query.boolean("now")
    query.done()
    workspace = await workspace_of(request)
    database = request.app[DATABASE]
    asking = Asking(workspace.id, request.match_info["execution_id"])
    asked: Request | None = None
    # HEAD reads only.
    if is_asked is not False and request.method == "GET" and await database.read(asking.is_open):
        asked = await _ask(database, asking)

    def read(connection: Connection) -> bytes:
        view = read_stacks(connection, workspace.id, asking.execution_id, names, asked, time.time_ns())
        if format_name == "folded":
            return folded_text(view).encode()
        return msgspec.json.encode(speedscope(view) if format_name == "speedscope" else view)

    # Thousands of stacks are decoded and encoded: off the event loop.
    body = await database.read(read, Lane.READ if database.is_sqlite else Lane.SEARCH)
    is_text = format_name == "folded"
    return web.Response(
        body=body, content_type="text/plain" if is_text else "application/json", charset="utf-8" if is_text else None
    )


async def _ask(database: Database, asking: Asking) -> Request | None:
    global _asking
    if _asking >= MAX_ASKING:
        return None
    _asking += 1
    try:
        await database.write(asking.ask)
        # What runs in this process need not wait for its heartbeat.
        await asyncio.to_thread(partial(tell, asking.execution_id, asking.id))
        while True:
            await database.read(asking.look)
            if asking.is_done:
                return asking.request
            await asyncio.sleep(POLL_SECONDS)
    finally:
        _asking -= 1


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/workflows/executions/{execution_id}/stacks",
        handler=stacks,
        query=(
            Parameter(name="step", kind="texts", description="Only steps with these names or ids."),
            Parameter(
                name="now", kind="boolean", default=True,
                description="Ask the processes of a running execution what they do now; `false` reads what is known.",
            ),
            Parameter(
                name="format", choices=FORMATS, default="json",
                description="`folded`: a line for each stack, for flame graphs; `speedscope`: speedscope's own JSON.",
            ),
        ),
        response=ExecutionStacks,
        other_responses=(SpeedscopeFile,),
        media=("text/plain",),
        codes=("archive_unavailable",),
    ),
)  # fmt: skip
