"""Workspaces, their projects, and the tokens that open them."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from sqlalchemy import Connection, Row, select

from tachograph_exporter.api import problems
from tachograph_exporter.api.guard import caller_of
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, decode, json_response, read_body
from tachograph_exporter.api.routes import PAGE, Route
from tachograph_exporter.api.tokens import create_token, list_tokens, revoke_token
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.schema import projects, workspaces
from tachograph_exporter.store.tokens import ADMIN
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.workspaces import (
    CreatedToken,
    NewToken,
    NewWorkspace,
    ProjectInfo,
    TokenInfo,
    WorkspaceInfo,
)
from tachograph_exporter.views.workspaces import project_info, workspace_info


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
        raise problems.forbidden("the token is for one workspace and cannot make others")

    def save(connection: Connection) -> Row[Any]:
        if workspace_rows.workspace(connection, slug=wanted.slug) is not None:
            raise problems.workspace_exists(wanted.slug)
        now = time.time_ns()
        identifier = add_workspace(connection, wanted.slug, now, wanted.name)
        add_project(connection, wanted.slug, "default", now)
        row = workspace_rows.workspace(connection, identifier=identifier)
        assert row is not None  # noqa: S101 - just written
        return row

    row = await request.app[DATABASE].write(save)
    return json_response(workspace_info(row), 201, {"Location": f"/api/workspaces/{row.id}"})


async def _in_path(request: web.Request) -> Row[Any]:
    """The workspace in the path, by id or slug, if the caller may see it. Raises 404."""
    wanted, bound = request.match_info["workspace"], caller_of(request).workspace_id

    def find(connection: Connection) -> Row[Any] | None:
        return workspace_rows.workspace(connection, identifier=wanted) or workspace_rows.workspace(
            connection, slug=wanted
        )

    found = await request.app[DATABASE].read(find)
    if found is None or (bound is not None and found.id != bound):
        raise problems.workspace_not_found(wanted)
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
        if workspace_rows.project(connection, owner.id, wanted.slug) is not None:
            raise problems.project_exists(wanted.slug)
        add_project(connection, owner.slug, wanted.slug, time.time_ns(), wanted.name)
        row = workspace_rows.project(connection, owner.id, wanted.slug)
        assert row is not None  # noqa: S101 - just written
        return row

    return json_response(project_info(await request.app[DATABASE].write(save)), 201)


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
