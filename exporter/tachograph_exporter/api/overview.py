"""Overview of a workspace: what someone on call looks at first, and its workflows."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api.executions import read_page
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.views.overview import read_overview, read_workflows
from tachograph_exporter.views.schemas.overview import Overview, WorkflowRows

_RANGE_SECONDS: Final = 12 * 3600
_MAX_RANGE_SECONDS: Final = 7 * 86_400


async def overview(request: web.Request) -> web.Response:
    """``GET /api/overview``: what failed and why, what is slower than usual, what runs too long, and the newest runs.

    Failures are grouped by cause; each workflow still fails, or has recovered since. Usual is what completed executions
    of the last 30 days took. The page's first view is made of this one response.
    """
    query = Query(request)
    now_ns = query.now_ns
    since_ns = query.time("since")
    limit = query.integer("limit", 50, 1, 1000)
    if since_ns is not None and since_ns < now_ns - _MAX_RANGE_SECONDS * NS:
        query.fault("since", "at most 7 days ago; longer ranges are in metrics and trends")
    query.done()
    workspace = await workspace_of(request)
    low_ns = since_ns if since_ns is not None else now_ns - _RANGE_SECONDS * NS

    def read(connection: Connection) -> bytes:
        runs = read_page(connection, ExecutionFilter(workspace=workspace.id), limit)
        return msgspec.json.encode(read_overview(connection, workspace.id, low_ns, now_ns, runs))

    return web.Response(body=await request.app[DATABASE].read(read), content_type="application/json")


async def workflow_overview(request: web.Request) -> web.Response:
    """``GET /api/overview/workflows``: each workflow's last result, its newest executions, median and trend.

    The 1,000 last active workflows, the last active one first.
    """
    Query(request).done()
    workspace = await workspace_of(request)

    def read(connection: Connection) -> bytes:
        return msgspec.json.encode(read_workflows(connection, workspace.id, time.time_ns()))

    return web.Response(body=await request.app[DATABASE].read(read), content_type="application/json")


ROUTES: Final = (
    Route(method="GET", path="/api/overview", handler=overview, response=Overview,
          query=(Parameter(name="since", kind="time", default="12h", example="24h",
                           description="What ended since then; at most 7 days ago, rounded down to five minutes."),
                 Parameter(name="limit", kind="integer", description="Number of the newest executions to list.",
                           default=50, low=1, high=1000))),
    Route(method="GET", path="/api/overview/workflows", handler=workflow_overview, response=WorkflowRows),
)  # fmt: skip
