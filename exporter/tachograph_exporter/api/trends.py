"""How a workflow changes over time, and which step made one run different."""

from __future__ import annotations

from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, json_response, workflow_of, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.views.comparison import BASELINE_SECONDS, compare_runs, usual_comparison
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.trends import BUCKETS, MAX_BUCKETS, bucket_range, build_trends


async def trends(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/trends``: counts, success rate, percentiles and cost, bucket by bucket.

    With the points at which the execution or a step began to take longer or shorter. Only whole buckets: a range is
    widened to them. Five-minute buckets are kept for 7 days before the newest execution's.
    """
    query = Query(request)
    bucket = query.choice("bucket", BUCKETS, "1h")
    from_ns, to_ns, step = query.time("from"), query.time("to"), query.text("step")
    low, high = bucket_range(bucket, from_ns, to_ns if to_ns is not None else query.now_ns)
    count = (high - low) // BUCKETS[bucket]
    if count > MAX_BUCKETS:
        query.fault("from", f"that is {count} buckets of {bucket}; at most {MAX_BUCKETS} are answered")
    query.done()
    workspace = await workspace_of(request)
    workflow = await workflow_of(request, workspace)
    key = (workspace.id, workflow.id)
    found = await request.app[DATABASE].read(
        lambda c: build_trends(c, key, workflow, bucket, low, max(low, high), step)
    )
    return json_response(found)


async def compare(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/compare``: which step made a run slower than another, or than usual.

    Either ``a`` and ``b`` (how does b differ from a), or ``execution`` and ``baseline`` (how does it differ from the
    completed executions of its workflow that ended in so long a time before it).
    """
    query = Query(request)
    a, b = query.text("a"), query.text("b")
    execution, baseline_ns = query.text("execution"), query.duration("baseline")
    if execution is None and (a is None or b is None):
        query.fault("execution", "name either `execution` (and how far back with `baseline`), or `a` and `b`")
    elif execution is not None and (a is not None or b is not None):
        query.fault("execution", "goes with `baseline`, not with `a` and `b`")
    query.done()
    workspace = await workspace_of(request)

    def read(connection: Connection) -> ExecutionComparison:
        if execution is None:
            return compare_runs(find_run(connection, workspace.id, str(b)), find_run(connection, workspace.id, str(a)))
        run = find_run(connection, workspace.id, execution)
        return usual_comparison(
            connection, workspace.id, run, baseline_ns if baseline_ns is not None else BASELINE_SECONDS * NS
        )

    return json_response(await request.app[DATABASE].read(read))


ROUTES = (
    Route(method="GET", path="/api/workflows/executions/compare", handler=compare, answer=ExecutionComparison,
          query=(Parameter(name="a", about="The execution to compare with."),
                 Parameter(name="b", about="The execution looked at."),
                 Parameter(name="execution", about="The execution looked at, against its usual."),
                 Parameter(name="baseline", kind="duration", about="How far back its usual goes.", default="7d")),
          codes=("execution_not_found", "archive_unavailable")),
    Route(method="GET", path="/api/workflows/{workflow_id}/trends", handler=trends, answer=WorkflowTrends,
          query=(Parameter(name="bucket", about="How long a bucket is.", choices=tuple(BUCKETS), default="1h"),
                 Parameter(name="from", kind="time", about="From when on. Default: 24 h, 14 d or 180 d ago, by bucket.",
                           example="30d"),
                 Parameter(name="to", kind="time", about="Until when. Default: now."),
                 Parameter(name="step", about="This step instead of the executions."))),
)  # fmt: skip
