"""Why an execution was slow or failed, and what sets executions apart."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, find_workflow, workspace_of
from tachograph_exporter.api.routes import TO, Parameter, Route
from tachograph_exporter.store.database import Lane
from tachograph_exporter.views.causes.reading import BACK_SECONDS, read_why
from tachograph_exporter.views.causes.sets import Choice, read_differences
from tachograph_exporter.views.schemas.why import WhyAnswer, WorkflowDifferences


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


async def differences(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/differences``: what sets its failed, slow or some chosen executions apart.

    Without `slower_than` and `execution`: those that failed. Among the last 500 that ended in the range. What is
    announced is chance in at most one of a hundred cases.
    """
    query = Query(request)
    chosen, slower_than = query.texts("execution"), query.duration("slower_than")
    low_ns, high_ns = query.time("from"), query.time("to")
    if chosen and slower_than is not None:
        query.fault("execution", "cannot be combined with `slower_than`")
    query.done()
    high = high_ns if high_ns is not None else query.now_ns
    low = low_ns if low_ns is not None else max(0, high - BACK_SECONDS * NS)
    workspace = await workspace_of(request)
    name = request.match_info["workflow_id"]

    def read(connection: Connection) -> bytes:
        workflow = find_workflow(connection, workspace, name)
        choice = Choice(chosen, slower_than)
        return msgspec.json.encode(read_differences(connection, workspace.id, workflow, choice, low, high))

    database = request.app[DATABASE]
    body = await database.read(read, Lane.READ if database.is_sqlite else Lane.SEARCH)
    return web.Response(body=body, content_type="application/json")


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions/{execution_id}/why", handler=why, response=WhyAnswer,
          query=(Parameter(name="baseline", kind="duration", description="How far back the usual executions go.",
                           default="28d"),),
          codes=("archive_unavailable",)),
    Route(method="GET", path="/api/workflows/{workflow_id}/differences", handler=differences,
          response=WorkflowDifferences,
          query=(Parameter(name="slower_than", kind="duration",
                           description="Executions that took longer, compared with the other completed ones."),
                 Parameter(name="execution", kind="texts", description="Executions to compare with all others."),
                 Parameter(name="from", kind="time", description="Start. Default: 28 d before the end.",
                           example="7d"),
                 TO)),
)  # fmt: skip
