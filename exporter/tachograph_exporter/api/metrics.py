"""A workflow's figures, and ``/metrics`` for Prometheus."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.metrics.negotiation import Format
from tachograph_exporter.api import problems
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, workspace_of
from tachograph_exporter.api.routes import FROM, TO, Route
from tachograph_exporter.api.scrape import exposition
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store.rollups import read
from tachograph_exporter.views.metrics import figures_of
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary


async def workflow_metrics(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/metrics``: success rate, percentiles, waits and cost, per status and per step.

    Of the executions that ended in the range, at the same cost however many they are. Executions that are still open
    count in ``total_executions`` when the range reaches to now.
    """
    query = Query(request)
    from_ns, to_ns = query.time("from"), query.time("to")
    now = query.now_ns
    query.done()
    workspace = await workspace_of(request)
    wanted = request.match_info["workflow_id"]

    answers = request.app[ANSWERS]

    def read(connection: Connection) -> bytes:
        workflow = definition_rows.overview(connection, workspace.id, wanted, from_ns or 0)
        if workflow is None:
            raise problems.workflow_not_found(wanted)
        state = (workflow.revision, workflow.open_count, workflow.name)
        is_whole = from_ns is None and to_ns is None
        if (
            is_whole
            and (known := answers.of_all_time.get((workspace.id, workflow.id))) is not None
            and known[0] == state
        ):
            return known[1]
        body = msgspec.json.encode(figures_of(connection, workflow, from_ns, to_ns, now, answers.sums))
        if is_whole:
            answers.keep(workspace.id, workflow.id, state, body)
        return body

    return web.Response(body=await request.app[DATABASE].read(read), content_type="application/json")


class Answers:
    """What was answered before, as long as it is still true (see `rollups.Head`)."""

    LIMIT: Final = 1_000

    def __init__(self) -> None:
        self.sums = read.SumCache()
        self.of_all_time: dict[tuple[str, str], tuple[object, bytes]] = {}

    def keep(self, workspace: str, workflow: str, state: object, body: bytes) -> None:
        """Keep a workflow's figures over all time."""
        if len(self.of_all_time) >= self.LIMIT:
            self.of_all_time.clear()
        self.of_all_time[workspace, workflow] = (state, body)


ANSWERS: Final = web.AppKey("answers", Answers)


ROUTES = (
    Route(method="GET", path="/api/workflows/{workflow_id}/metrics", handler=workflow_metrics, query=(FROM, TO),
          answer=WorkflowMetricsSummary),
    Route(method="GET", path="/metrics", handler=exposition, in_workspace=False, codes=("scrape_timeout",),
          media=tuple(form.value for form in Format)),
)  # fmt: skip
