"""Groups of failures by cause."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api import problems
from tachograph_exporter.api.caller import caller_of
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import (
    DATABASE,
    Workspace,
    decode,
    find_workflow,
    json_response,
    read_body,
    workspace_of,
)
from tachograph_exporter.api.routes import PAGE, Parameter, Route
from tachograph_exporter.store import locking
from tachograph_exporter.store.failure_groups.reading import Range
from tachograph_exporter.store.tokens import WRITE
from tachograph_exporter.views.failures import (
    MAX_WINDOW_SECONDS,
    WINDOW_SECONDS,
    read_failure,
    read_failures,
)
from tachograph_exporter.views.failures import change_failure as change
from tachograph_exporter.views.schemas.failures import (
    DEFAULT_STATES,
    SORTS,
    STATES,
    FailureAction,
    FailureGroupDetail,
    FailurePage,
)


async def list_failures(request: web.Request) -> web.Response:
    """``GET /api/failures``: failures by cause: how often, since when, where, and whether somebody looks after it.

    The window is the last 14 days, unless ``from`` and ``to`` say otherwise; at most 90 days. Muted and resolved groups
    are left out, unless ``state`` names them; a resolved one that fails again is ``regressed``.
    """
    query = Query(request)
    skip, limit = query.page()
    sort = query.choice("sort", SORTS, "-last_seen")
    states = query.texts("state") or frozenset(DEFAULT_STATES)
    if unknown := sorted(states - {*STATES}):
        query.fault("state", f"{unknown[0]!r} is no state; expected one of {', '.join(STATES)}")
    workflow = query.text("workflow")
    low, high = _window(query)
    query.done()
    workspace = await workspace_of(request)

    def read(connection: Connection) -> FailurePage:
        within = _range(connection, workspace, low, high, workflow)
        return read_failures(
            connection, within, query.now_ns, states=states, sort=sort, skip=skip, limit=min(limit, _MAX_LISTED)
        )

    return json_response(await request.app[DATABASE].read(read))


async def show_failure(request: web.Request) -> web.Response:
    """``GET /api/failures/{failure_id}``: a group of failures, with each of them, and by version, host and step."""
    query = Query(request)
    skip, limit = query.page()
    low, high = _window(query)
    query.done()
    workspace = await workspace_of(request)
    group_id = request.match_info["failure_id"]
    detail = await request.app[DATABASE].read(
        lambda c: read_failure(c, Range(workspace.id, low, high), group_id, query.now_ns, skip=skip, limit=limit)
    )
    if detail is None:
        raise problems.failure_not_found(group_id)
    return json_response(detail)


async def change_failure(request: web.Request) -> web.Response:
    """``POST /api/failures/{failure_id}``: mute or resolve a group, or take that back.

    It is noted who did so: the name of the token.
    """
    workspace = await workspace_of(request)
    group_id = request.match_info["failure_id"]
    said = decode(await read_body(request), FailureAction)
    by = caller_of(request).name
    now_ns = time.time_ns()

    def save(connection: Connection) -> FailureGroupDetail | None:
        locking.lock(connection)
        if not change(connection, workspace.id, group_id, said.action, by, said.note, now_ns):
            return None
        within = Range(workspace.id, now_ns - WINDOW_SECONDS * NS, now_ns + 1)
        return read_failure(connection, within, group_id, now_ns)

    detail = await request.app[DATABASE].write(save)
    if detail is None:
        raise problems.failure_not_found(group_id)
    return json_response(detail)


def _window(query: Query) -> tuple[int, int]:
    high = query.time("to") or query.now_ns + 1
    low = query.time("from")
    if low is None:
        low = high - WINDOW_SECONDS * NS
    if not 0 < high - low <= MAX_WINDOW_SECONDS * NS + NS:
        query.fault("from", "expected a time before `to`, and at most 90 days before")
    return low, high


def _range(connection: Connection, workspace: Workspace, low: int, high: int, workflow: str | None) -> Range:
    workflow_id = find_workflow(connection, workspace, workflow).id if workflow is not None else None
    return Range(workspace.id, low, high, workflow_id)


_MAX_LISTED: Final = 200
_WINDOW: Final = (
    Parameter(name="from", kind="time", description="Only failures at or after this time.", default="14d",
              example="7d"),
    Parameter(name="to", kind="time", description="Only failures before this time."),
)  # fmt: skip

ROUTES: Final = (
    Route(method="GET", path="/api/failures", handler=list_failures, response=FailurePage,
          codes=("workflow_not_found",), query=(*PAGE, *_WINDOW,
                 Parameter(name="workflow", description="Only failures of this workflow: its id or name."),
                 Parameter(name="state", kind="texts", description="Only groups in one of these states.",
                           choices=STATES, default="open,regressed", example="open,regressed,muted"),
                 Parameter(name="sort", description="Sort order; a minus sorts in descending order.", choices=SORTS,
                           default="-last_seen"))),
    Route(method="GET", path="/api/failures/{failure_id}", handler=show_failure, response=FailureGroupDetail,
          query=(*PAGE, *_WINDOW), codes=("failure_not_found",)),
    Route(method="POST", path="/api/failures/{failure_id}", handler=change_failure, scope=WRITE, body=FailureAction,
          body_example={"action": "resolve", "note": "fixed in 1.9"}, response=FailureGroupDetail,
          codes=("failure_not_found",)),
)  # fmt: skip
