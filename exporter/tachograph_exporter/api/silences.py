"""Silences: nobody is told of something for a while."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph_exporter.api import problems
from tachograph_exporter.api.caller import caller_of
from tachograph_exporter.api.idempotency import answer, keyed_request, once
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, decode, json_response, read_body, workspace_of
from tachograph_exporter.api.routes import PAGE, Parameter, Route
from tachograph_exporter.expectations.silencing import read_silence, silence_info
from tachograph_exporter.store import silences as silence_rows
from tachograph_exporter.store.idempotency import Answer
from tachograph_exporter.store.tokens import WRITE
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.silences import EXAMPLE, NewSilence, SilenceInfo


async def list_silences(request: web.Request) -> web.Response:
    """``GET /api/silences``: the silences that count in a workspace, the first to end first; those of all included."""
    query = Query(request)
    skip, limit = query.page()
    with_ended = query.boolean("ended") or False
    query.done()
    workspace, now_ns = await workspace_of(request), query.now_ns
    rows = await request.app[DATABASE].read(
        lambda c: silence_rows.listed_silences(c, workspace.id, now_ns, with_ended=with_ended)
    )
    items = [silence_info(row, now_ns) for row in rows[skip : skip + limit]]
    return json_response(Page(items, len(rows), skip, limit))


async def create_silence(request: web.Request) -> web.Response:
    """``POST /api/silences``: tell nobody of something for a while.

    It is recorded all the same, and told when the silence is over, if it still holds by then.
    """
    workspace = await workspace_of(request)
    body = await read_body(request)
    new, caller, now_ns = decode(body, NewSilence), caller_of(request), time.time_ns()
    if new.all_workspaces and caller.workspace_id is not None:
        raise problems.forbidden("the token is bound to one workspace, and the silence would count in all")
    created_by = caller.name or new.created_by or ""
    silence, faults = read_silence(new, None if new.all_workspaces else workspace.id, created_by, now_ns)
    if silence is None:
        raise problems.invalid_silence(faults)

    def save(connection: Connection) -> Answer:
        if not silence_rows.add_silence(connection, silence, now_ns):
            raise problems.too_many_silences(silence_rows.MAX_SILENCES)
        rows = silence_rows.listed_silences(connection, workspace.id, now_ns)
        info = next(silence_info(row, now_ns) for row in rows if row.id == silence.id)
        return answer(info, 201)

    return await once(request, keyed_request(request, body, workspace.id), save)


async def end_silence(request: web.Request) -> web.Response:
    """``DELETE /api/silences/{silence_id}``: end a silence now. What still holds is told."""
    workspace, silence_id = await workspace_of(request), request.match_info["silence_id"]
    # Whoever may use one workspace only does not end what counts in all.
    of_all, now_ns = caller_of(request).workspace_id is None, time.time_ns()
    if not await request.app[DATABASE].write(
        lambda c: silence_rows.end_silence(c, silence_id, now_ns, workspace.id, of_all=of_all)
    ):
        raise problems.silence_not_found(silence_id)
    return web.Response(status=204)


_ENDED: Final = Parameter(name="ended", kind="boolean", description="Also those that have ended, after the others.")

ROUTES: Final = (
    Route(method="GET", path="/api/silences", handler=list_silences, query=(*PAGE, _ENDED),
          response=Page[SilenceInfo]),
    Route(method="POST", path="/api/silences", handler=create_silence, scope=WRITE, creates=True, body=NewSilence,
          body_example=EXAMPLE, response=SilenceInfo, status=201, codes=("too_many_silences",)),
    Route(method="DELETE", path="/api/silences/{silence_id}", handler=end_silence, scope=WRITE, status=204,
          codes=("silence_not_found",)),
)  # fmt: skip
