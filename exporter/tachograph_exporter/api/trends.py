"""Trends of a workflow over time."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, find_workflow, json_response, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.trends import BUCKETS, MAX_BUCKETS, bucket_range, read_trends


async def trends(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/trends``: counts, success rate, percentiles and cost, bucket by bucket.

    Includes the times since when executions or a step take longer or shorter. The range is widened to whole buckets.
    Five-minute buckets are kept for the 7 days before the newest execution.
    """
    query = Query(request)
    bucket = query.choice("bucket", BUCKETS, "1h")
    from_ns, to_ns, step = query.time("from"), query.time("to"), query.text("step")
    low_s, high_s = bucket_range(bucket, from_ns, to_ns if to_ns is not None else query.now_ns)
    count = (high_s - low_s) // BUCKETS[bucket]
    if count > MAX_BUCKETS:
        query.fault("from", f"the range has {count} buckets of {bucket}; at most {MAX_BUCKETS} are allowed")
    query.done()
    workspace = await workspace_of(request)
    name = request.match_info["workflow_id"]

    def read(connection: Connection) -> WorkflowTrends:
        workflow = find_workflow(connection, workspace, name)
        key = (workspace.id, workflow.id)
        return read_trends(connection, key, workflow, bucket, low_s, max(low_s, high_s), step)

    return json_response(await request.app[DATABASE].read(read))


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/{workflow_id}/trends", handler=trends, response=WorkflowTrends,
          query=(Parameter(name="bucket", description="Size of a bucket.", choices=tuple(BUCKETS), default="1h"),
                 Parameter(name="from", kind="time",
                           description="Start. Default: 24 h, 14 d or 180 d ago, by bucket size.",
                           example="30d"),
                 Parameter(name="to", kind="time", description="End. Default: now."),
                 Parameter(name="step", description="Trends of this step instead of the executions."))),
)  # fmt: skip
