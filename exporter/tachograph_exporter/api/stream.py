"""Live events: WebSocket (RFC 6455) and server-sent events.

Both carry the messages of `tachograph_exporter.stream.messages`. What is written to a follower is made once for all;
a follower that takes nothing for a while is let go with close code 4008.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web

from tachograph.metrics.self_metrics import SelfMetrics
from tachograph_exporter.api import problems
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import CONFIG, DATABASE, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.stream.hub import STALL_SECONDS, Closing, Hub, TooSlow, Wanted
from tachograph_exporter.stream.messages import EVENT_TYPES, STATE_TYPES, Message, StreamMessage

HUB: Final = web.AppKey("hub", Hub)
OWN: Final = web.AppKey("own_series", SelfMetrics)
PROTOCOL: Final = "tachograph"
"""The subprotocol; browsers, which cannot send a header, offer their token beside it (see `access.BEARER`)."""
TOO_SLOW: Final = 4008
"""Close code: the client did not keep up. It may come again and go on where it was."""
_MAX_FROM_CLIENT: Final = 4096
_FRAMES_FROM_CLIENT: Final = 100
"""Messages that a client may send; it has nothing to say."""
_FULL_BYTES: Final = 256 * 1024
"""Bytes that may wait in a client's socket before further ones wait here."""
_LOOK_SECONDS: Final = 0.05


async def _wanted(
    request: web.Request,
    query: Query,
    *,
    workflow: str | None = None,
    execution: str | None = None,
    step: str | None = None,
) -> tuple[Wanted, int | None]:
    """What the client wants to hear of, and after which number."""
    workspace = await workspace_of(request)
    types = query.texts("types") or frozenset(STATE_TYPES)
    if types == {"all"}:
        types = frozenset(EVENT_TYPES)
    for unknown in sorted(types - set(EVENT_TYPES)):
        query.fault("types", f"{unknown!r} is none of all, {', '.join(EVENT_TYPES)}")
    after = query.number("after")
    last = request.headers.get("Last-Event-ID", "")
    if after is None and last.isascii() and last.isdigit() and len(last) < 19:
        after = int(last)
    query.done()
    if execution is not None:
        found = await request.app[DATABASE].read(lambda c: execution_rows.execution(c, workspace.id, execution))
        if found is None:
            raise problems.execution_not_found(execution)
    if workflow is not None:
        named = workflow
        row = await request.app[DATABASE].read(lambda c: definition_rows.find_definition(c, workspace.id, named))
        if row is None:
            raise problems.workflow_not_found(named)
        workflow = row.id
    wanted = Wanted(workspace_id=workspace.id, workflow_id=workflow, execution_id=execution, step_id=step, types=types)
    return wanted, after


def _check_room(request: web.Request) -> None:
    limit = request.app[CONFIG].max_stream_clients
    if request.app[HUB].followers >= limit:
        request.app[OWN].refused_stream("full")
        raise problems.too_many_clients(limit)


def _check_origin(request: web.Request) -> None:
    """A page of another site may open a WebSocket to here; the browser then says whose page it is."""
    origin = request.headers.get("Origin")
    if origin is None:
        return
    if urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower():
        raise problems.forbidden(f"a page of {origin} may not read this stream")


async def _websocket(request: web.Request, wanted: Wanted, after: int | None) -> web.WebSocketResponse:
    _check_room(request)
    socket = web.WebSocketResponse(
        heartbeat=30.0, max_msg_size=_MAX_FROM_CLIENT, compress=False, protocols=(PROTOCOL,), timeout=2.0
    )
    await socket.prepare(request)
    own = request.app[OWN]
    messages = request.app[HUB].follow(wanted, after)
    with own.stream_client("websocket"):
        telling = asyncio.create_task(_tell(request, socket, messages), name="tachograph websocket")
        try:
            count = 0
            async for message in socket:
                count += 1
                if message.type is not WSMsgType.TEXT or count > _FRAMES_FROM_CLIENT:
                    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"this stream only tells")
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
    return socket


async def _tell(
    request: web.Request, socket: web.WebSocketResponse, messages: AsyncGenerator[list[Message], None]
) -> None:
    """Write to a client what there is for it, as it takes it."""
    own = request.app[OWN]
    try:
        async with contextlib.aclosing(messages):
            async for group in messages:
                transport = request.transport
                if transport is None or socket.closed:
                    return
                # Whole frames, made once for all clients, straight to the socket.
                transport.write(b"".join([message.frame for message in group]))
                waited = 0.0
                while (size := transport.get_write_buffer_size()) > _FULL_BYTES:
                    await asyncio.sleep(_LOOK_SECONDS)
                    waited = waited + _LOOK_SECONDS if transport.get_write_buffer_size() >= size else 0.0
                    if waited >= STALL_SECONDS:
                        raise TooSlow(f"nothing was read for {STALL_SECONDS:g} s")  # noqa: TRY301
    except TooSlow as why:
        own.refused_stream("too_slow")
        await socket.close(code=TOO_SLOW, message=str(why).encode()[:120])
        if request.transport is not None:
            request.transport.abort()
    except Closing:
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the service stops")
    except (ConnectionError, OSError):
        return


async def ws_stream(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/stream``: Live events of a workspace, by WebSocket."""
    return await _open(request)


async def ws_workflow(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/{workflow_id}``: Live events of a workflow, by WebSocket."""
    return await _open(request, workflow=request.match_info["workflow_id"])


async def ws_execution(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/executions/{execution_id}``: Live events of an execution, by WebSocket."""
    return await _open(request, execution=request.match_info["execution_id"])


async def ws_step(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/steps/{step_id}``: Live events of a step, in all executions of its workflow, by WebSocket."""
    return await _open(request, step=request.match_info["step_id"])


async def _open(
    request: web.Request, *, workflow: str | None = None, execution: str | None = None, step: str | None = None
) -> web.StreamResponse:
    query = Query(request)
    wanted, after = await _wanted(request, query, workflow=workflow, execution=execution, step=step)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise problems.upgrade_required()
    _check_origin(request)
    return await _websocket(request, wanted, after)


async def sse_stream(request: web.Request) -> web.StreamResponse:
    """``GET /api/stream``: Live events as server-sent events, all of a workspace or of one workflow, execution, step.

    Goes on behind `after` or the header `Last-Event-ID`. Never ends by itself.
    """
    query = Query(request)
    workflow, execution, step = query.text("workflow_id"), query.text("execution_id"), query.text("step_id")
    wanted, after = await _wanted(request, query, workflow=workflow, execution=execution, step=step)
    _check_room(request)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    response = web.StreamResponse(headers=headers)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    own = request.app[OWN]
    await response.prepare(request)
    with own.stream_client("sse"), contextlib.suppress(ConnectionError, Closing):
        async with contextlib.aclosing(request.app[HUB].follow(wanted, after)) as messages:
            try:
                async for group in messages:
                    # Returns when the socket has room again.
                    async with asyncio.timeout(STALL_SECONDS):
                        await response.write(b"".join([message.sse for message in group]))
            except (TooSlow, TimeoutError):
                own.refused_stream("too_slow")
                if request.transport is not None:
                    request.transport.abort()
    return response


_TYPES: Final = Parameter(
    name="types", kind="texts", about="Only events of these types; `all`: also those that are not about state.",
    example="step_failed,workflow_failed",
)  # fmt: skip
_AFTER: Final = Parameter(
    name="after", kind="integer", about="Go on behind this sequence number.", low=0, high=(1 << 63) - 1
)
_BOTH: Final = (_TYPES, _AFTER)
_CODES: Final = ("upgrade_required", "too_many_clients")

ROUTES: Final = (
    Route(method="GET", path="/ws/workflows/stream", handler=ws_stream, query=_BOTH, status=101, codes=_CODES),
    Route(method="GET", path="/ws/workflows/executions/{execution_id}", handler=ws_execution, query=_BOTH, status=101,
          codes=_CODES),
    Route(method="GET", path="/ws/workflows/steps/{step_id}", handler=ws_step, query=_BOTH, status=101, codes=_CODES),
    Route(method="GET", path="/ws/workflows/{workflow_id}", handler=ws_workflow, query=_BOTH, status=101,
          codes=_CODES),
    Route(method="GET", path="/api/stream", handler=sse_stream, answer=StreamMessage, media=("text/event-stream",),
          codes=("too_many_clients", "workflow_not_found", "execution_not_found"), query=(
              *_BOTH,
              Parameter(name="workflow_id", about="Only of this workflow, by id or name."),
              Parameter(name="execution_id", about="Only of this execution."),
              Parameter(name="step_id", about="Only of this step."))),
)  # fmt: skip
