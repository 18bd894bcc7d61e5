"""Answers for agents: the Model Context Protocol over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.errors import QueryTimeout
from tachograph.identity import workspace_id as id_of_workspace
from tachograph_exporter.api.problems import Problem, mcp_not_served
from tachograph_exporter.api.request import CONFIG, DATABASE, Workspace, decode, read_body, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.mcp.context import Context
from tachograph_exporter.reading.connection_reader import ConnectionReader
from tachograph_exporter.store.database import Lane

MAX_AT_ONCE: Final = 16
"""How many requests of agents are answered at the same time; further ones are refused."""
MAX_READING: Final = 2
"""How many of them read at the same time: they leave most of the threads for reading to people."""
MAX_BODY_BYTES: Final = 256 << 10
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?")

Ask = Callable[[Callable[[Context], Any]], Awaitable[Any]]


class McpMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message of the Model Context Protocol: a request or a notification of JSON-RPC 2.0.

    See https://modelcontextprotocol.io/specification.
    """

    jsonrpc: str
    method: str
    id: int | str | None = None
    params: dict[str, Any] | None = None


class McpReply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The result of a request, or its error."""

    jsonrpc: str
    id: int | str | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class _Reply(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Door(Protocol):
    """Speaks the protocol. See `tachograph_exporter.mcp.http_door`."""

    async def answer(self, headers: Mapping[str, str], body: bytes, ask: Ask) -> _Reply:
        """The response to a request."""
        ...


class Served:
    """The door, who goes through it now, and the page's address if a setting says it."""

    def __init__(self, door: Door, base: str | None) -> None:
        self.door = door
        self.base = base
        self.count = 0
        self.reading = asyncio.Semaphore(MAX_READING)


SERVED: Final = web.AppKey("mcp", Served)


async def mcp(request: web.Request) -> web.Response:
    """``POST /mcp``: answer an agent, by the Model Context Protocol (streamable HTTP, without sessions and streams).

    Served with `tachograph serve --mcp`. The body is a message of JSON-RPC; a request is answered with 200 and a
    result, a notification with 202. Its tools read only, in one workspace.
    """
    workspace = await workspace_of(request)
    served = request.app.get(SERVED)
    if served is None:
        raise mcp_not_served()
    body = await read_body(request, MAX_BODY_BYTES)
    decode(body, McpMessage)
    if served.count >= MAX_AT_ONCE:
        detail = f"{MAX_AT_ONCE} requests of agents are being answered; try again later"
        raise Problem(429, "too_many_requests", detail, headers={"Retry-After": "1"})
    served.count += 1
    try:
        reply = await served.door.answer(request.headers, body, _ask(request, workspace, served))
    finally:
        served.count -= 1
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def _ask(request: web.Request, workspace: Workspace, served: Served) -> Ask:
    config, database = request.app[CONFIG], request.app[DATABASE]
    base = served.base
    if base is None:
        base = f"{request.scheme}://{request.host}" if _HOST.fullmatch(request.host) else config.address
    own_id = id_of_workspace(config.workspace)

    async def ask(question: Callable[[Context], Any]) -> Any:
        def read(connection: Connection) -> Any:
            now_ns = time.time_ns()
            return question(Context(ConnectionReader(connection, workspace.id, own_id, now_ns), base, now_ns))

        # Runs may have ten thousand steps: off the event loop on PostgreSQL too.
        lane = Lane.READ if database.is_sqlite else Lane.SEARCH
        async with _turn(served.reading, config.read_timeout_seconds):
            return await database.read(read, lane)

    return ask


@contextlib.asynccontextmanager
async def _turn(turns: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """Wait for a turn, and have it for the duration of a block. Raises `QueryTimeout`."""
    try:
        async with asyncio.timeout(seconds):
            await turns.acquire()
    except TimeoutError:
        raise QueryTimeout(seconds) from None
    try:
        yield
    finally:
        turns.release()


ROUTES: Final = (
    Route(method="POST", path="/mcp", handler=mcp, body=McpMessage, response=McpReply, other_statuses=(202,),
          body_example={"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                        "params": {"name": "why", "arguments": {"run": "last"}}},
          codes=("mcp_not_served",)),
)  # fmt: skip
