"""Comparison of an execution with another one or with a baseline."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api.large_runs import json_of_runs
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.views.comparison import BASELINE_SECONDS
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.step_below import read_comparison


async def compare(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/compare``: which step made an execution slower than another one, or than usual.

    Either ``a`` and ``b`` (compares b with a), or ``execution`` and ``baseline`` (compares it with the completed
    executions of its workflow that ended within that time before it).
    """
    query = Query(request)
    a, b = query.text("a"), query.text("b")
    execution_id, baseline_ns = query.text("execution"), query.duration("baseline")
    if execution_id is None and (a is None or b is None):
        query.fault("execution", "expected either `execution` (with an optional `baseline`), or `a` and `b`")
    elif execution_id is not None and (a is not None or b is not None):
        query.fault("execution", "cannot be combined with `a` and `b`")
    query.done()
    workspace = await workspace_of(request)

    def comparison(connection: Connection) -> ExecutionComparison:
        if execution_id is None:
            run = find_run(connection, workspace.id, str(b))
            reference = find_run(connection, workspace.id, str(a))
            return read_comparison(connection, workspace.id, run, reference, 0)
        run = find_run(connection, workspace.id, execution_id)
        back_ns = baseline_ns if baseline_ns is not None else BASELINE_SECONDS * NS
        return read_comparison(connection, workspace.id, run, None, back_ns)

    def read(connection: Connection) -> bytes:
        return msgspec.json.encode(comparison(connection))

    ids = [key for key in (execution_id, a, b) if key is not None]
    return await json_of_runs(request, workspace.id, read, *ids)


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions/compare", handler=compare, response=ExecutionComparison,
          query=(Parameter(name="a", description="The execution to compare with."),
                 Parameter(name="b", description="The execution to explain."),
                 Parameter(name="execution", description="The execution to explain, compared with a baseline."),
                 Parameter(name="baseline", kind="duration", description="How far back the baseline goes.",
                           default="7d")),
          codes=("execution_not_found", "archive_unavailable")),
)  # fmt: skip
