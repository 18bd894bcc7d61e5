"""Workspaces and their projects: list, create, read."""

from __future__ import annotations

import time
from typing import Any, Final

from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph_exporter.api import problems
from tachograph_exporter.api.caller import caller_of
from tachograph_exporter.api.idempotency import answer, keyed_request, once
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, decode, json_response, read_body
from tachograph_exporter.api.routes import PAGE, Route
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.idempotency import Answer
from tachograph_exporter.store.tokens import ADMIN
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.workspaces import NewWorkspace, ProjectInfo, WorkspaceInfo
from tachograph_exporter.views.workspaces import project_info, workspace_info


async def list_workspaces(request: web.Request) -> web.Response:
    """``GET /api/workspaces``: the workspaces that the caller may see, sorted by slug."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    bound_id = caller_of(request).workspace_id
    rows = await request.app[DATABASE].read(lambda c: workspace_rows.list_workspaces(c, bound_id))
    return json_response(Page([workspace_info(row) for row in rows[skip : skip + limit]], len(rows), skip, limit))


async def create_workspace(request: web.Request) -> web.Response:
    """``POST /api/workspaces``: create a workspace with a project named "default"."""
    body = await read_body(request)
    new = decode(body, NewWorkspace)
    if caller_of(request).workspace_id is not None:
        raise problems.forbidden("the token is bound to one workspace and cannot create others")

    now = time.time_ns()

    def save(connection: Connection) -> Answer:
        row = workspace_rows.create_workspace(connection, new.slug, now, new.name)
        if row is None:
            raise problems.workspace_exists(new.slug)
        return answer(workspace_info(row), 201, f"/api/workspaces/{row.id}")

    return await once(request, keyed_request(request, body), save)


async def _workspace_in_path(request: web.Request) -> Row[Any]:
    """The workspace in the path, by id or slug, if the caller may see it. Raises 404."""
    name, bound_id = request.match_info["workspace"], caller_of(request).workspace_id

    def find(connection: Connection) -> Row[Any] | None:
        return workspace_rows.workspace(connection, identifier=name) or workspace_rows.workspace(connection, slug=name)

    row = await request.app[DATABASE].read(find)
    if row is None or (bound_id is not None and row.id != bound_id):
        raise problems.workspace_not_found(name)
    return row


async def read_workspace(request: web.Request) -> web.Response:
    """``GET /api/workspaces/{workspace}``: a workspace, by id or slug."""
    return json_response(workspace_info(await _workspace_in_path(request)))


async def list_projects(request: web.Request) -> web.Response:
    """``GET /api/workspaces/{workspace}/projects``: a workspace's projects, sorted by slug."""
    query = Query(request)
    skip, limit = query.page()
    query.done()
    workspace = await _workspace_in_path(request)
    rows = await request.app[DATABASE].read(lambda c: workspace_rows.list_projects(c, workspace.id))
    return json_response(Page([project_info(row) for row in rows[skip : skip + limit]], len(rows), skip, limit))


async def create_project(request: web.Request) -> web.Response:
    """``POST /api/workspaces/{workspace}/projects``: create a project in a workspace."""
    workspace = await _workspace_in_path(request)
    body = await read_body(request)
    new = decode(body, NewWorkspace)
    now = time.time_ns()

    def save(connection: Connection) -> Answer:
        row = workspace_rows.create_project(connection, workspace.slug, new.slug, now, new.name)
        if row is None:
            raise problems.project_exists(new.slug)
        return answer(project_info(row), 201)

    return await once(request, keyed_request(request, body, workspace.id), save)


_EXAMPLE: Final = {"slug": "shipping", "name": "Shipping"}

ROUTES: Final = (
    Route(method="GET", path="/api/workspaces", handler=list_workspaces, in_workspace=False, query=PAGE,
          response=Page[WorkspaceInfo]),
    Route(method="POST", path="/api/workspaces", handler=create_workspace, in_workspace=False, scope=ADMIN,
          creates=True, body=NewWorkspace, body_example=_EXAMPLE, response=WorkspaceInfo, status=201,
          codes=("workspace_exists",)),
    Route(method="GET", path="/api/workspaces/{workspace}", handler=read_workspace, in_workspace=False,
          response=WorkspaceInfo, codes=("workspace_not_found",)),
    Route(method="GET", path="/api/workspaces/{workspace}/projects", handler=list_projects, in_workspace=False,
          query=PAGE, response=Page[ProjectInfo], codes=("workspace_not_found",)),
    Route(method="POST", path="/api/workspaces/{workspace}/projects", handler=create_project, in_workspace=False,
          creates=True, scope=ADMIN, body=NewWorkspace, body_example=_EXAMPLE, response=ProjectInfo, status=201,
          codes=("workspace_not_found", "project_exists")),
)  # fmt: skip
