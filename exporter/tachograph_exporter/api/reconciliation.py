"""Reconciliation: whether the views of an execution agree."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from tachograph.outcomes import Outcomes
from tachograph_exporter.api.executions import stored_run
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import RECORDER, json_response, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.views.reconcile import reconcile
from tachograph_exporter.views.schemas.reconciliation import Reconciliation


async def compare_views(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/reconcile``: do rows, events, spans and counters agree?"""
    Query(request).done()
    workspace = await workspace_of(request)
    queues = request.app[RECORDER].queues
    # A view that is merely behind must not count as a difference.
    await asyncio.get_running_loop().run_in_executor(None, lambda: [queue.flush(1.0) for queue in queues.values()])
    run = await stored_run(request, workspace)
    outcomes_by_listener = {
        name: outcomes
        for name, queue in queues.items()
        if isinstance(outcomes := getattr(queue.listener, "outcomes", None), Outcomes)
    }
    return json_response(reconcile(run, outcomes_by_listener))


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions/{execution_id}/reconcile", handler=compare_views,
          response=Reconciliation, codes=("archive_unavailable",)),
)  # fmt: skip
