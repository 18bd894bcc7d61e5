"""Metrics of a workflow."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph_exporter.api import problems
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, workspace_of
from tachograph_exporter.api.routes import FROM, TO, Route
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store.rollups.read import SumCache
from tachograph_exporter.views.metrics import read_overview_metrics
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary


class MetricsCache:
    """Sums of rollups and all-time responses, each valid for one revision of the rollups (see `rollups.rows.Head`)."""

    MAX_RESPONSES: Final = 1_000

    def __init__(self) -> None:
        self.sums = SumCache()
        self._responses: dict[tuple[str, str], tuple[object, bytes]] = {}

    def response(self, workspace_id: str, workflow_id: str, revision: object) -> bytes | None:
        """The all-time response of a workflow, if it was cached at this revision."""
        cached = self._responses.get((workspace_id, workflow_id))
        return cached[1] if cached is not None and cached[0] == revision else None

    def add_response(self, workspace_id: str, workflow_id: str, revision: object, body: bytes) -> None:
        """Cache the all-time response of a workflow."""
        if len(self._responses) >= self.MAX_RESPONSES:
            self._responses.clear()
        self._responses[workspace_id, workflow_id] = (revision, body)


METRICS_CACHE: Final = web.AppKey("metrics_cache", MetricsCache)


async def workflow_metrics(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/metrics``: success rate, percentiles, waits and cost, per status and per step.

    Covers the executions that ended in the range; the cost of a request does not depend on their number. Open
    executions count in ``total_executions`` if the range extends to the present.
    """
    query = Query(request)
    from_ns, to_ns = query.time("from"), query.time("to")
    now = query.now_ns
    query.done()
    workspace = await workspace_of(request)
    name = request.match_info["workflow_id"]
    cache = request.app[METRICS_CACHE]

    def read(connection: Connection) -> bytes:
        workflow = definition_rows.overview(connection, workspace.id, name, from_ns or 0)
        if workflow is None:
            raise problems.workflow_not_found(name)
        revision = (workflow.revision, workflow.open_count, workflow.name)
        is_all_time = from_ns is None and to_ns is None
        if is_all_time and (body := cache.response(workspace.id, workflow.id, revision)) is not None:
            return body
        body = msgspec.json.encode(read_overview_metrics(connection, workflow, from_ns, to_ns, now, cache.sums))
        if is_all_time:
            cache.add_response(workspace.id, workflow.id, revision, body)
        return body

    return web.Response(body=await request.app[DATABASE].read(read), content_type="application/json")


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/{workflow_id}/metrics", handler=workflow_metrics, query=(FROM, TO),
          response=WorkflowMetricsSummary),
)  # fmt: skip
