"""Access tokens: made, listed, revoked."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph_exporter.api import guard, problems
from tachograph_exporter.api.guard import DOORKEEPER, caller_of
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, decode, json_response, read_body
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.workspaces import (
    CreatedToken,
    NewToken,
)
from tachograph_exporter.views.workspaces import token_info


async def list_tokens(request: web.Request) -> web.Response:
    """``GET /api/tokens``: the tokens there are, newest first; never the tokens themselves."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    bound = caller_of(request).workspace_id
    rows = await request.app[DATABASE].read(lambda c: token_rows.tokens(c, bound))
    items = [token_info(row, time.time_ns()) for row in rows[skip : skip + limit]]
    return json_response(Page(items, len(rows), skip, limit))


async def create_token(request: web.Request) -> web.Response:
    """``POST /api/tokens``: make a token. The answer shows it, and nothing ever will again."""
    wanted = decode(await read_body(request), NewToken)
    bound = caller_of(request).workspace_id

    def save(connection: Connection) -> tuple[Row[Any], str]:
        owner = bound
        if wanted.workspace is not None:
            found = workspace_rows.find_workspace(connection, wanted.workspace)
            if found is None or (bound is not None and found.id != bound):
                raise problems.workspace_not_found(wanted.workspace)
            owner = found.id
        identifier, token = token_rows.create_token(
            connection,
            name=wanted.name,
            scopes=list(wanted.scopes),
            workspace_id=owner,
            expires_ns=guard.expiry(wanted.expires_in_days),
        )
        return next(row for row in token_rows.tokens(connection) if row.id == identifier), token

    row, token = await request.app[DATABASE].write(save)
    info = token_info(row, time.time_ns())
    fields = {name: getattr(info, name) for name in info.__struct_fields__}
    return json_response(CreatedToken(**fields, token=token), 201)


async def revoke_token(request: web.Request) -> web.Response:
    """``DELETE /api/tokens/{token_id}``: make a token worthless from now on."""
    wanted, bound = request.match_info["token_id"], caller_of(request).workspace_id
    if not await request.app[DATABASE].write(lambda c: token_rows.revoke_token(c, wanted, bound)):
        raise problems.token_not_found(wanted)
    request.app[DOORKEEPER].forget()
    return web.Response(status=204)
