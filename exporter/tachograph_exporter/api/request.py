"""What every route needs of a request: whose it is, its query, its body; and how to answer."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from sqlalchemy import Row

from tachograph.errors import Fault
from tachograph.recording.recorder import Recorder
from tachograph.workflow.executor import Executor
from tachograph_exporter.api import problems
from tachograph_exporter.api.guard import caller_of
from tachograph_exporter.config import Config
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.database import Database

CONFIG: Final = web.AppKey("config", Config)
DATABASE: Final = web.AppKey("database", Database)
RECORDER: Final = web.AppKey("recorder", Recorder)
EXECUTOR: Final = web.AppKey("executor", Executor)

T = TypeVar("T")


class Workspace(msgspec.Struct, frozen=True):
    """The workspace a request is about."""

    id: str
    slug: str


WORKSPACES: Final = web.AppKey("workspaces", dict[tuple[str | None, str | None], Workspace])
_WORKSPACES_KNOWN: Final = 10_000


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """``value`` as JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


async def read_body(request: web.Request) -> bytes:
    """The body. Raises 413 before reading one that says it is too large, 415 when it is not sent as JSON."""
    limit = request.app[CONFIG].max_body_bytes
    if request.content_length is not None and request.content_length > limit:
        raise problems.too_large(limit)
    if request.body_exists and request.content_type not in ("application/json", "application/octet-stream"):
        # A page of another site can send a form or plain text unasked, but not JSON.
        raise problems.not_json(request.content_type)
    return await request.read()


def decode(body: bytes, kind: type[T]) -> T:
    """The body as ``kind``. Raises 400 when it is not JSON, 422 with the place when it does not fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise problems.invalid_body(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.invalid_json(str(error)) from None


async def workspace_of(request: web.Request) -> Workspace:
    """The workspace named by ``X-Workspace-Id``, ``X-Workspace-Slug``, ``workspace_id`` or ``workspace_slug``.

    Without any, that of the caller's token, else the service's own. Raises 404 when there is no such workspace or the
    caller's token is for another one, 422 when two that are named differ.
    """
    bound = caller_of(request).workspace_id
    identifier = _agreed(request, "X-Workspace-Id", "workspace_id")
    slug = _agreed(request, "X-Workspace-Slug", "workspace_slug")
    if identifier is None and slug is None:
        identifier, slug = (bound, None) if bound is not None else (None, request.app[CONFIG].workspace)
    # A workspace once there stays as it is, so the second question about it needs no answer from the database.
    known = request.app[WORKSPACES]
    found = known.get((identifier, slug))
    if found is None:
        row = await request.app[DATABASE].read(lambda c: workspace_rows.workspace(c, identifier=identifier, slug=slug))
        if row is not None:
            if len(known) >= _WORKSPACES_KNOWN:
                known.clear()
            found = known[identifier, slug] = Workspace(row.id, row.slug)
    is_other = found is not None and bound is not None and found.id != bound
    if found is None or is_other or (identifier is not None and slug is not None and found.slug != slug):
        raise problems.workspace_not_found(identifier or slug or "")
    return found


async def project_of(request: web.Request, workspace: Workspace) -> str | None:
    """Slug of the project named by ``X-Project-Id`` or ``project_id`` (id or slug), or None. Raises 404."""
    wanted = _agreed(request, "X-Project-Id", "project_id")
    if wanted is None:
        return None
    found = await request.app[DATABASE].read(lambda c: workspace_rows.project(c, workspace.id, wanted))
    if found is None:
        raise problems.project_not_found(wanted)
    return str(found.slug)


def _agreed(request: web.Request, header: str, parameter: str) -> str | None:
    named = {value for value in (request.headers.get(header), request.query.get(parameter)) if value}
    if len(named) > 1:
        fault = Fault("conflict", parameter, f"the header {header} says otherwise")
        raise problems.invalid_parameters([fault])
    return named.pop() if named else None


async def workflow_of(request: web.Request, workspace: Workspace) -> Row[Any]:
    """The workflow in the path, by id or by name. Raises 404."""
    wanted = request.match_info["workflow_id"]
    found = await request.app[DATABASE].read(lambda c: definition_rows.find_definition(c, workspace.id, wanted))
    if found is None:
        raise problems.workflow_not_found(wanted)
    return found
