"""Workspaces, their projects, and the tokens that open them."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from sqlalchemy import Connection, Row, select

from tachograph.exporter.api import access, errors
from tachograph.exporter.api.access import DOORKEEPER, caller_of
from tachograph.exporter.api.request import DATABASE, Query, decode, json_response, read_body
from tachograph.exporter.api.routes import ADMIN, PAGE, Route
from tachograph.exporter.schemas import (
    CreatedToken,
    NewToken,
    NewWorkspace,
    Page,
    ProjectInfo,
    TokenInfo,
    WorkspaceInfo,
)
from tachograph.exporter.store import queries
from tachograph.exporter.store.schema import projects, workspaces
from tachograph.exporter.store.writer import add_project, add_workspace
from tachograph.exporter.times import rfc3339, rfc3339_or_none


def workspace_info(row: Row[Any]) -> WorkspaceInfo:
    """A workspace's row as it is answered."""
    return WorkspaceInfo(id=row.id, slug=row.slug, name=row.name, created_at=rfc3339(row.created_ns))


def project_info(row: Row[Any]) -> ProjectInfo:
    """A project's row as it is answered."""
    return ProjectInfo(
        id=row.id, slug=row.slug, name=row.name, workspace_id=row.workspace_id, created_at=rfc3339(row.created_ns)
    )


def token_info(row: Row[Any], now_ns: int) -> TokenInfo:
    """A token's row as it is answered."""
    is_expired = row.expires_ns is not None and row.expires_ns <= now_ns
    return TokenInfo(
        id=row.id,
        name=row.name,
        scopes=row.scopes.split(),
        workspace=row.workspace,
        created_at=rfc3339(row.created_ns),
        expires_at=rfc3339_or_none(row.expires_ns),
        revoked_at=rfc3339_or_none(row.revoked_ns),
        state="revoked" if row.revoked_ns is not None else "expired" if is_expired else "active",
    )


async def list_workspaces(request: web.Request) -> web.Response:
    """``GET /api/workspaces``: the workspaces the caller may see, by slug."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    bound = caller_of(request).workspace_id
    wanted = select(workspaces).order_by(workspaces.c.slug)
    if bound is not None:
        wanted = wanted.where(workspaces.c.id == bound)
    rows = await request.app[DATABASE].read(lambda c: c.execute(wanted).all())
    return json_response(Page([workspace_info(row) for row in rows[skip : skip + limit]], len(rows), skip, limit))


async def create_workspace(request: web.Request) -> web.Response:
    """``POST /api/workspaces``: make a workspace, with a project called default."""
    wanted = decode(await read_body(request), NewWorkspace)
    if caller_of(request).workspace_id is not None:
        raise errors.forbidden("the token is for one workspace and cannot make others")

    def save(connection: Connection) -> Row[Any]:
        if queries.workspace(connection, slug=wanted.slug) is not None:
            raise errors.workspace_exists(wanted.slug)
        now = time.time_ns()
        identifier = add_workspace(connection, wanted.slug, now, wanted.name)
        add_project(connection, wanted.slug, "default", now)
        row = queries.workspace(connection, identifier=identifier)
        assert row is not None  # noqa: S101 - just written
        return row

    row = await request.app[DATABASE].write(save)
    return json_response(workspace_info(row), 201, {"Location": f"/api/workspaces/{row.id}"})


async def _in_path(request: web.Request) -> Row[Any]:
    """The workspace in the path, by id or slug, if the caller may see it. Raises 404."""
    wanted, bound = request.match_info["workspace"], caller_of(request).workspace_id

    def find(connection: Connection) -> Row[Any] | None:
        return queries.workspace(connection, identifier=wanted) or queries.workspace(connection, slug=wanted)

    found = await request.app[DATABASE].read(find)
    if found is None or (bound is not None and found.id != bound):
        raise errors.workspace_not_found(wanted)
    return found


async def read_workspace(request: web.Request) -> web.Response:
    """``GET /api/workspaces/{workspace}``: a workspace, by id or slug."""
    return json_response(workspace_info(await _in_path(request)))


async def list_projects(request: web.Request) -> web.Response:
    """``GET /api/workspaces/{workspace}/projects``: a workspace's projects, by slug."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    owner = await _in_path(request)
    wanted = select(projects).where(projects.c.workspace_id == owner.id).order_by(projects.c.slug)
    rows = await request.app[DATABASE].read(lambda c: c.execute(wanted).all())
    return json_response(Page([project_info(row) for row in rows[skip : skip + limit]], len(rows), skip, limit))


async def create_project(request: web.Request) -> web.Response:
    """``POST /api/workspaces/{workspace}/projects``: make a project in a workspace."""
    owner = await _in_path(request)
    wanted = decode(await read_body(request), NewWorkspace)

    def save(connection: Connection) -> Row[Any]:
        if queries.project(connection, owner.id, wanted.slug) is not None:
            raise errors.project_exists(wanted.slug)
        add_project(connection, owner.slug, wanted.slug, time.time_ns(), wanted.name)
        row = queries.project(connection, owner.id, wanted.slug)
        assert row is not None  # noqa: S101 - just written
        return row

    return json_response(project_info(await request.app[DATABASE].write(save)), 201)


async def list_tokens(request: web.Request) -> web.Response:
    """``GET /api/tokens``: the tokens there are, newest first; never the tokens themselves."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    bound = caller_of(request).workspace_id
    rows = await request.app[DATABASE].read(lambda c: access.tokens(c, bound))
    items = [token_info(row, time.time_ns()) for row in rows[skip : skip + limit]]
    return json_response(Page(items, len(rows), skip, limit))


async def create_token(request: web.Request) -> web.Response:
    """``POST /api/tokens``: make a token. The answer shows it, and nothing ever will again."""
    wanted = decode(await read_body(request), NewToken)
    bound = caller_of(request).workspace_id

    def save(connection: Connection) -> tuple[Row[Any], str]:
        owner = bound
        if wanted.workspace is not None:
            found = queries.find_workspace(connection, wanted.workspace)
            if found is None or (bound is not None and found.id != bound):
                raise errors.workspace_not_found(wanted.workspace)
            owner = found.id
        identifier, token = access.create_token(
            connection,
            name=wanted.name,
            scopes=list(wanted.scopes),
            workspace_id=owner,
            expires_ns=access.expiry(wanted.expires_in_days),
        )
        return next(row for row in access.tokens(connection) if row.id == identifier), token

    row, token = await request.app[DATABASE].write(save)
    info = token_info(row, time.time_ns())
    fields = {name: getattr(info, name) for name in info.__struct_fields__}
    return json_response(CreatedToken(**fields, token=token), 201)


async def revoke_token(request: web.Request) -> web.Response:
    """``DELETE /api/tokens/{token_id}``: make a token worthless from now on."""
    wanted, bound = request.match_info["token_id"], caller_of(request).workspace_id
    if not await request.app[DATABASE].write(lambda c: access.revoke_token(c, wanted, bound)):
        raise errors.token_not_found(wanted)
    request.app[DOORKEEPER].forget()
    return web.Response(status=204)


_EXAMPLE = {"slug": "shipping", "name": "Shipping"}

ROUTES = (
    Route(method="GET", path="/api/workspaces", handler=list_workspaces, in_workspace=False, query=PAGE,
          answer=Page[WorkspaceInfo]),
    Route(method="POST", path="/api/workspaces", handler=create_workspace, in_workspace=False, scope=ADMIN,
          body=NewWorkspace, body_example=_EXAMPLE, answer=WorkspaceInfo, status=201, codes=("workspace_exists",)),
    Route(method="GET", path="/api/workspaces/{workspace}", handler=read_workspace, in_workspace=False,
          answer=WorkspaceInfo, codes=("workspace_not_found",)),
    Route(method="GET", path="/api/workspaces/{workspace}/projects", handler=list_projects, in_workspace=False,
          query=PAGE, answer=Page[ProjectInfo], codes=("workspace_not_found",)),
    Route(method="POST", path="/api/workspaces/{workspace}/projects", handler=create_project, in_workspace=False,
          scope=ADMIN, body=NewWorkspace, body_example=_EXAMPLE, answer=ProjectInfo, status=201,
          codes=("workspace_not_found", "project_exists")),
    Route(method="GET", path="/api/tokens", handler=list_tokens, in_workspace=False, scope=ADMIN, query=PAGE,
          answer=Page[TokenInfo]),
    Route(method="POST", path="/api/tokens", handler=create_token, in_workspace=False, scope=ADMIN, body=NewToken,
          body_example={"name": "prometheus", "scopes": ["read"], "expires_in_days": 365}, answer=CreatedToken,
          status=201, codes=("workspace_not_found",)),
    Route(method="DELETE", path="/api/tokens/{token_id}", handler=revoke_token, in_workspace=False, scope=ADMIN,
          status=204, codes=("token_not_found",)),
)  # fmt: skip
