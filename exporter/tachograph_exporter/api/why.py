"""Why an execution was slow or failed."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.store.database import Lane
from tachograph_exporter.views.causes.reading import BACK_SECONDS, read_why
from tachograph_exporter.views.schemas.why import WhyAnswer


async def why(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/why``: why it was slow or failed, or what it is doing now.

    Compares it with the executions of its workflow before it. Each claim has its evidence and its certainty; what is
    not known is said so.
    """
    query = Query(request)
    back_ns = query.duration("baseline")
    query.done()
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]

    def read(connection: Connection) -> bytes:
        back = back_ns if back_ns is not None else BACK_SECONDS * NS
        return msgspec.json.encode(read_why(connection, workspace.id, execution_id, back, time.time_ns()))

    database = request.app[DATABASE]
    # Comparing hundreds of runs takes a while: on PostgreSQL too, off the event loop that serves requests.
    body = await database.read(read, Lane.READ if database.is_sqlite else Lane.SEARCH)
    return web.Response(body=body, content_type="application/json")


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions/{execution_id}/why", handler=why, response=WhyAnswer,
          query=(Parameter(name="baseline", kind="duration", description="How far back the usual executions go.",
                           default="28d"),),
          codes=("archive_unavailable",)),
)  # fmt: skip
