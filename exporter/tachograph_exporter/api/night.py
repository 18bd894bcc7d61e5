"""The night at one look."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tachograph.clock import NS
from tachograph.identity import workspace_id as id_of_workspace
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import CONFIG, DATABASE, json_response, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.expectations.night import read_night
from tachograph_exporter.views.schemas.night import Night

_NIGHT_NS: Final = 12 * 3600 * NS
_MAX_NIGHT_NS: Final = 8 * 86_400 * NS


async def night(request: web.Request) -> web.Response:
    """``GET /api/night``: all workflows of a window: what ran, what was expected and did not come, who waited for whom.

    The window ends now and begins twelve hours before, unless ``from`` and ``to`` say otherwise; at most eight days.
    """
    query = Query(request)
    now_ns = query.now_ns
    high = query.time("to") or now_ns
    low = query.time("from") or high - _NIGHT_NS
    if not 0 < high - low <= _MAX_NIGHT_NS:
        query.fault("from", "expected a time before `to`, and at most eight days before")
    query.done()
    workspace = await workspace_of(request)
    own_id = id_of_workspace(request.app[CONFIG].workspace)
    view = await request.app[DATABASE].read(lambda c: read_night(c, workspace.id, own_id, (low, high), now_ns))
    return json_response(view)


ROUTES: Final = (
    Route(method="GET", path="/api/night", handler=night, response=Night,
          query=(Parameter(name="from", kind="time", description="Begin of the window.", example="12h"),
                 Parameter(name="to", kind="time", description="End of the window."))),
)  # fmt: skip
