"""Access tokens: list, create, revoke."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.api import problems
from tachograph_exporter.api.caller import caller_of
from tachograph_exporter.api.guard import AUTHENTICATOR
from tachograph_exporter.api.idempotency import answer, keyed_request, once
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, decode, json_response, read_body
from tachograph_exporter.api.routes import PAGE, Route
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.idempotency import Answer
from tachograph_exporter.store.tokens import ADMIN
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.workspaces import CreatedToken, NewToken, TokenInfo
from tachograph_exporter.views.workspaces import token_info


async def list_tokens(request: web.Request) -> web.Response:
    """``GET /api/tokens``: the tokens, newest first, without their secrets."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    bound_id = caller_of(request).workspace_id
    rows = await request.app[DATABASE].read(lambda c: token_rows.tokens(c, bound_id))
    items = [token_info(row, time.time_ns()) for row in rows[skip : skip + limit]]
    return json_response(Page(items, len(rows), skip, limit))


async def create_token(request: web.Request) -> web.Response:
    """``POST /api/tokens``: create a token. Its secret is in this response only."""
    body = await read_body(request)
    new = decode(body, NewToken)
    bound_id = caller_of(request).workspace_id

    def save(connection: Connection) -> Answer:
        workspace_id = bound_id
        if new.workspace is not None:
            workspace = workspace_rows.find_workspace(connection, new.workspace)
            if workspace is None or (bound_id is not None and workspace.id != bound_id):
                raise problems.workspace_not_found(new.workspace)
            workspace_id = workspace.id
        identifier, token = token_rows.create_token(
            connection,
            name=new.name,
            scopes=list(new.scopes),
            workspace_id=workspace_id,
            expires_ns=_days_from_now(new.expires_in_days),
        )
        row = next(row for row in token_rows.tokens(connection) if row.id == identifier)
        info = token_info(row, time.time_ns())
        fields = {name: getattr(info, name) for name in info.__struct_fields__}
        return answer(CreatedToken(**fields, token=token), 201)

    return await once(request, keyed_request(request, body), save)


def _days_from_now(days: float | None) -> int | None:
    return None if days is None else time.time_ns() + round(days * 86_400 * NS)


async def revoke_token(request: web.Request) -> web.Response:
    """``DELETE /api/tokens/{token_id}``: revoke a token."""
    token_id, bound_id = request.match_info["token_id"], caller_of(request).workspace_id
    if not await request.app[DATABASE].write(lambda c: token_rows.revoke_token(c, token_id, bound_id)):
        raise problems.token_not_found(token_id)
    request.app[AUTHENTICATOR].clear_cache()
    return web.Response(status=204)


ROUTES: Final = (
    Route(method="GET", path="/api/tokens", handler=list_tokens, in_workspace=False, scope=ADMIN, query=PAGE,
          response=Page[TokenInfo]),
    Route(method="POST", path="/api/tokens", handler=create_token, in_workspace=False, scope=ADMIN, needs_token=True,
          creates=True, body=NewToken,
          body_example={"name": "prometheus", "scopes": ["read"], "expires_in_days": 365}, response=CreatedToken,
          status=201, codes=("workspace_not_found",)),
    Route(method="DELETE", path="/api/tokens/{token_id}", handler=revoke_token, in_workspace=False, scope=ADMIN,
          needs_token=True, status=204, codes=("token_not_found",)),
)  # fmt: skip
