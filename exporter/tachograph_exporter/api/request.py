"""What handlers read from a request (workspace, project, workflow, body), and the JSON response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec
import re2
from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph.errors import Fault
from tachograph.recording.recorder import Recorder
from tachograph.workflow.executor import Executor
from tachograph_exporter.admission import Admission
from tachograph_exporter.api import encodings, problems
from tachograph_exporter.api.caller import Caller, caller_of
from tachograph_exporter.api.room import ROOM
from tachograph_exporter.api.workers import Workers
from tachograph_exporter.config import Config
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.database import Database, Lane

CONFIG: Final = web.AppKey("config", Config)
DATABASE: Final = web.AppKey("database", Database)
RECORDER: Final = web.AppKey("recorder", Recorder)
EXECUTOR: Final = web.AppKey("executor", Executor)
ADMISSION: Final = web.AppKey("admission", Admission)
WORKERS: Final = web.AppKey("workers", Workers)

T = TypeVar("T")


class Workspace(msgspec.Struct, frozen=True):
    """The workspace of a request."""

    id: str
    slug: str


WORKSPACE_CACHE: Final = web.AppKey("workspace_cache", dict[tuple[str | None, str | None], Workspace])
"""Workspaces by (id, slug) as requests name them."""
_READ_HEADERS: Final = frozenset({
    "accept", "accept-encoding", "authorization", "baggage", "content-encoding", "content-type", "host",
    "idempotency-key", "if-match", "if-none-match", "last-event-id", "origin", "sec-fetch-site",
    "sec-websocket-protocol", "traceparent", "tracestate", "x-project-id", "x-workspace-id", "x-workspace-slug",
})  # fmt: skip
"""The headers that are read, here or by the propagator; others may hold any bytes."""
_LATIN: Final = re2.Options()
_LATIN.encoding = re2.Options.Encoding.LATIN1
_SUSPICIOUS: Final = re2.compile(rb"\\u0000|[0-9]{19}", _LATIN)
"""`re` looks through 5 MB in 200 ms and keeps the interpreter meanwhile; this takes a twentieth and lets it go."""
_MIN_THREADED_BYTES: Final = 100_000
_MAX_CACHED_WORKSPACES: Final = 10_000


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """``value`` as JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


async def read_body(request: web.Request, limit: int | None = None) -> bytes:
    """The decoded body. Raises 413 if it exceeds the limit, before reading what exceeds it; 400 and 415 if it cannot be
    read; 408 if it does not arrive in time; 429 if there is no room for it now. ``limit``: bytes that it may have,
    instead of those of the configuration.
    """
    limit = request.app[CONFIG].max_body_bytes if limit is None else limit
    room = request.app[ROOM]
    try:
        body = await encodings.read(request, limit, lambda size: room.take(request, size))
    except encodings.NoRoom:
        raise problems.too_many_requests() from None
    except encodings.TooLarge:
        raise problems.too_large(limit) from None
    except encodings.TooSlow as error:
        raise problems.request_timeout("the body", error.seconds) from None
    except encodings.UnsupportedEncoding as error:
        raise problems.unsupported_encoding(str(error)) from None
    except encodings.Unreadable as error:
        raise problems.unreadable("the body", f"cannot be read: {error}") from None
    await room.take_values(request, body)
    return body


def is_text(text: str) -> bool:
    """Whether every database can store a text: valid UTF-8 (headers may hold other bytes), without U+0000."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(request: web.Request) -> None:
    """Raise 400 if the path, the query or a header in use is not valid text (see `is_text`)."""
    for name, value in request.headers.items():
        if not value.isascii() and name.lower() in _READ_HEADERS and not is_text(value):
            raise problems.unreadable(f"the header {name}", "is not UTF-8")
    for name, value in request.match_info.items():
        if not is_text(value):
            raise problems.unreadable(f'"{name}" in the path', "has the character U+0000")
    for name, value in request.query.items():
        if not is_text(name) or not is_text(value):
            raise problems.unreadable(f"the parameter {name!r}", "has the character U+0000")


def _check_values(body: bytes) -> None:
    """Raise 422 with the place of a text with U+0000 or of an integer beyond 64 bits: no database stores them."""
    if not _SUSPICIOUS.search(body):
        return
    # One iterator for each level: a list of what is left would take more memory than the document.
    levels: list[Iterator[tuple[str, Any]]] = [iter([("$", msgspec.json.decode(body))])]
    places: list[str] = []
    while levels:
        key, value = next(levels[-1], (None, None))
        if key is None:
            levels.pop()
            places = places[: max(0, len(levels) - 1)]
            continue
        fault = ""
        if (isinstance(value, str) and "\0" in value) or "\0" in key:
            fault = "the text at {} has the character U+0000"
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            fault = "the integer at {} does not fit into 64 bits"
        if fault:
            raise problems.invalid_body(fault.format("".join([*places, key])[:200]))
        if isinstance(value, list):
            places.append(key)
            levels.append((f"[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            places.append(key)
            levels.append((f".{name}", item) for name, item in value.items())


def decode(body: bytes, kind: type[T]) -> T:
    """The body as ``kind``. Raises 400 if it is not JSON, 422 with the place if it does not match the type."""
    try:
        _check_values(body)
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise problems.invalid_body(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.invalid_json(str(error)) from None


async def decode_long(request: web.Request, body: bytes, kind: type[T]) -> T:
    """The body as ``kind``, a long one decoded off the event loop. Raises as `decode` does."""
    if len(body) < _MIN_THREADED_BYTES:
        return decode(body, kind)
    return await request.app[WORKERS].run(lambda: decode(body, kind))


async def read_document(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object, a long one decoded off the event loop. Raises as `read_body` and `decode` do."""
    return await decode_document(request, await read_body(request))


async def decode_document(request: web.Request, body: bytes) -> dict[str, Any]:
    """A body as a JSON object, a long one decoded off the event loop. Raises as `decode` does."""
    return await decode_long(request, body, dict[str, Any])


async def workspace_of(request: web.Request) -> Workspace:
    """The workspace named by ``X-Workspace-Id``, ``X-Workspace-Slug``, ``workspace_id`` or ``workspace_slug``.

    Defaults to the workspace of the caller's token, else to the service's own. Raises 404 if there is no such
    workspace or the caller's token is bound to another; 422 if header and parameter name different ones.
    """
    identifier = _header_or_parameter(request, "X-Workspace-Id", "workspace_id")
    slug = _header_or_parameter(request, "X-Workspace-Slug", "workspace_slug")
    return await named_workspace(request.app, caller_of(request), identifier, slug)


async def named_workspace(app: web.Application, caller: Caller, identifier: str | None, slug: str | None) -> Workspace:
    """The workspace with this id or slug, else the caller's, else the service's own. Raises as `workspace_of` does."""
    bound_id = caller.workspace_id
    if identifier is None and slug is None:
        identifier, slug = (bound_id, None) if bound_id is not None else (None, app[CONFIG].workspace)
    # A workspace never changes its id or slug and is never deleted, so entries cannot go stale.
    cache = app[WORKSPACE_CACHE]
    workspace = cache.get((identifier, slug))
    if workspace is None:
        row = await app[DATABASE].read(
            lambda c: workspace_rows.workspace(c, identifier=identifier, slug=slug), Lane.VITAL
        )
        if row is not None:
            if len(cache) >= _MAX_CACHED_WORKSPACES:
                cache.clear()
            workspace = cache[identifier, slug] = Workspace(row.id, row.slug)
    is_foreign = workspace is not None and bound_id is not None and workspace.id != bound_id
    if workspace is None or is_foreign or (identifier is not None and slug is not None and workspace.slug != slug):
        raise problems.workspace_not_found(identifier or slug or "")
    return workspace


async def project_of(request: web.Request, workspace: Workspace) -> str | None:
    """Slug of the project named by ``X-Project-Id`` or ``project_id`` (id or slug), or None. Raises 404."""
    name = _header_or_parameter(request, "X-Project-Id", "project_id")
    return await project_slug(request, workspace, name) if name is not None else None


async def project_slug(request: web.Request, workspace: Workspace, name: str) -> str:
    """Slug of a workspace's project, by id or slug. Raises 404."""
    row = await request.app[DATABASE].read(lambda c: workspace_rows.project(c, workspace.id, name))
    if row is None:
        raise problems.project_not_found(name)
    return str(row.slug)


def _header_or_parameter(request: web.Request, header: str, parameter: str) -> str | None:
    values = {value for value in (request.headers.get(header), request.query.get(parameter)) if value}
    if len(values) > 1:
        raise problems.invalid_parameters([Fault("conflict", parameter, f"it contradicts the header {header}")])
    return values.pop() if values else None


def find_workflow(connection: Connection, workspace: Workspace, name: str) -> Row[Any]:
    """A workflow of a workspace, by id or by name. Raises 404.

    For reads that go on with it: it is the workflow of the same state of the database.
    """
    row = definition_rows.find_definition(connection, workspace.id, name)
    if row is None:
        raise problems.workflow_not_found(name)
    return row


async def workflow_of(request: web.Request, workspace: Workspace) -> Row[Any]:
    """The workflow in the path, by id or by name. Raises 404."""
    name = request.match_info["workflow_id"]
    return await request.app[DATABASE].read(lambda c: find_workflow(c, workspace, name))
