"""Live events: WebSocket (RFC 6455) and server-sent events.

Both carry the messages of `tachograph_exporter.stream.messages`. Each frame is built once for all clients. A client
that reads nothing for a while is disconnected, on a WebSocket with close code 4008.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, web

from tachograph.errors import QueryTimeout, StoreUnavailable
from tachograph.metrics.self_metrics import SelfMetrics
from tachograph_exporter.api import problems
from tachograph_exporter.api.connections import becomes_stream
from tachograph_exporter.api.guard import AUTHENTICATOR
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import CONFIG, DATABASE, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.stream.hub import STALL_SECONDS, Closing, Hub, StreamFilter, TooSlow
from tachograph_exporter.stream.messages import CONNECTED, EVENT_TYPES, STATE_TYPES, Message, StreamMessage

HUB: Final = web.AppKey("hub", Hub)
SELF_METRICS: Final = web.AppKey("own_series", SelfMetrics)
PROTOCOL: Final = "tachograph"
"""The subprotocol. Browsers cannot set headers on a WebSocket, so they offer their token as a second subprotocol."""
TOO_SLOW: Final = 4008
"""Close code: the client did not keep up. It may reconnect and resume."""
_MAX_CLIENT_FRAME_BYTES: Final = 4096
_MAX_CLIENT_FRAMES: Final = 100
"""Text frames a client may send before it is disconnected; their content is ignored."""
_MAX_BUFFERED_BYTES: Final = 256 * 1024
"""Bytes buffered in a client's socket before further messages wait in the hub."""
_POLL_SECONDS: Final = 0.05
TOKEN_SECONDS: Final = 5.0
"""How often the token of a stream is looked up: it ends this long after its token at most."""
_CLOSE_SECONDS: Final = 2.0
"""How long a client has to read that its stream ends."""
_REVOKED: Final = "the token is not valid any more"


async def _subscription(
    request: web.Request,
    query: Query,
    *,
    workflow: str | None = None,
    execution: str | None = None,
    step: str | None = None,
) -> tuple[StreamFilter, int | None]:
    """The filter that the client asks for, and the sequence number to resume after."""
    workspace = await workspace_of(request)
    types = query.texts("types") or frozenset(STATE_TYPES)
    if types == {"all"}:
        types = frozenset(EVENT_TYPES)
    for unknown in sorted(types - set(EVENT_TYPES)):
        query.fault("types", f"{unknown!r} is not an event type; expected all, {', '.join(EVENT_TYPES)}")
    after = query.optional_integer("after")
    last = request.headers.get("Last-Event-ID", "")
    if after is None and last.isascii() and last.isdigit() and len(last) < 19:
        after = int(last)
    query.done()
    if execution is not None:
        row = await request.app[DATABASE].read(lambda c: execution_rows.execution(c, workspace.id, execution))
        if row is None:
            raise problems.execution_not_found(execution)
    if workflow is not None:
        name = workflow
        row = await request.app[DATABASE].read(lambda c: definition_rows.find_definition(c, workspace.id, name))
        if row is None:
            raise problems.workflow_not_found(name)
        workflow = row.id
    stream_filter = StreamFilter(
        workspace_id=workspace.id, workflow_id=workflow, execution_id=execution, step_id=step, types=types
    )
    return stream_filter, after


def _check_limit(request: web.Request) -> None:
    limit = request.app[CONFIG].max_stream_clients
    if request.app[HUB].follower_count >= limit:
        request.app[SELF_METRICS].stream_client_refused("full")
        raise problems.too_many_clients(limit)


async def _websocket(
    request: web.Request, stream_filter: StreamFilter, after: int | None, *, says_connected: bool
) -> web.WebSocketResponse:
    _check_limit(request)
    socket = web.WebSocketResponse(
        heartbeat=30.0, max_msg_size=_MAX_CLIENT_FRAME_BYTES, compress=False, protocols=(PROTOCOL,), timeout=2.0
    )
    async with contextlib.aclosing(request.app[HUB].follow(stream_filter, after)) as messages:
        first = await _first(messages)
        if not says_connected:
            first = [message for message in first if message.event_type != CONNECTED]
        await socket.prepare(request)
        becomes_stream(request)
        with request.app[SELF_METRICS].stream_client("websocket"):
            sending = asyncio.create_task(_send(request, socket, first, messages), name="tachograph websocket")
            watching = asyncio.create_task(
                _end_with_token(request, lambda: _close(request, socket, WSCloseCode.POLICY_VIOLATION, _REVOKED)),
                name="tachograph websocket token",
            )
            transport = request.transport
            try:
                count = 0
                async for message in socket:
                    count += 1
                    if message.type is not WSMsgType.TEXT or count > _MAX_CLIENT_FRAMES:
                        await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"this stream is read-only")
            finally:
                sending.cancel()
                watching.cancel()
                await asyncio.gather(sending, watching, return_exceptions=True)
                if transport is not None:
                    # A client that reads nothing would keep the rest, and the descriptor, for ever.
                    asyncio.get_running_loop().call_later(_CLOSE_SECONDS, transport.abort)
    return socket


async def _close(request: web.Request, socket: web.WebSocketResponse, code: int, text: str) -> None:
    """Close with a code, if the client still reads; then for good."""
    with contextlib.suppress(TimeoutError, ConnectionError, OSError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await socket.close(code=code, message=text.encode()[:120])
    if request.transport is not None:
        request.transport.abort()


async def _hang_up(request: web.Request) -> None:
    """End a stream of server-sent events: what was written is sent, and nothing more."""
    if request.transport is not None:
        request.transport.close()


async def _end_with_token(request: web.Request, end: Callable[[], Awaitable[None]]) -> None:
    """Call ``end`` once the token that the client sent is revoked or has expired."""
    authenticator = request.app[AUTHENTICATOR]
    while True:
        await asyncio.sleep(TOKEN_SECONDS)
        try:
            if await authenticator.caller(request) is None:
                return  # It sent none.
        except problems.Problem:
            await end()
            return
        except (StoreUnavailable, QueryTimeout):
            continue


async def _first(messages: AsyncGenerator[list[Message], None]) -> list[Message]:
    """The first messages. Once they are there, following is effective, so the handshake is answered only then.

    Raises 503.
    """
    try:
        return await anext(messages)
    except Closing:
        raise problems.shutting_down() from None
    except TimeoutError:
        raise problems.store_unavailable() from None


async def _from_first(
    first: list[Message], messages: AsyncGenerator[list[Message], None]
) -> AsyncIterator[list[Message]]:
    yield first
    async for group in messages:
        yield group


async def _send(
    request: web.Request,
    socket: web.WebSocketResponse,
    first: list[Message],
    messages: AsyncGenerator[list[Message], None],
) -> None:
    """Write messages to a client as fast as it reads them."""
    try:
        async for group in _from_first(first, messages):
            transport = request.transport
            if transport is None or socket.closed:
                return
            # Whole frames, built once for all clients, written straight to the socket.
            transport.write(b"".join([message.frame for message in group]))
            waited = 0.0
            while (size := transport.get_write_buffer_size()) > _MAX_BUFFERED_BYTES:
                await asyncio.sleep(_POLL_SECONDS)
                waited = waited + _POLL_SECONDS if transport.get_write_buffer_size() >= size else 0.0
                if waited >= STALL_SECONDS:
                    raise TooSlow(f"nothing read for {STALL_SECONDS:g} s")  # noqa: TRY301
    except TooSlow as error:
        request.app[SELF_METRICS].stream_client_refused("too_slow")
        await _close(request, socket, TOO_SLOW, str(error))
    except Closing:
        await _close(request, socket, WSCloseCode.GOING_AWAY, "the service is stopping")
    except (ConnectionError, OSError):
        return


async def ws_stream(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/stream``: Live events of a workspace, by WebSocket."""
    return await _open(request)


async def ws_everything(request: web.Request) -> web.StreamResponse:
    """``GET /ws/stream``: Live events of a workspace, by WebSocket, for older clients: without `connected`."""
    return await _open(request, says_connected=False)


async def ws_workflow(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/{workflow_id}``: Live events of a workflow, by WebSocket."""
    return await _open(request, workflow=request.match_info["workflow_id"])


async def ws_execution(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/executions/{execution_id}``: Live events of an execution, by WebSocket."""
    return await _open(request, execution=request.match_info["execution_id"])


async def ws_step(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/steps/{step_id}``: Live events of a step in all executions of its workflow, by WebSocket."""
    return await _open(request, step=request.match_info["step_id"])


async def ws_step_of_workflow(request: web.Request) -> web.StreamResponse:
    """``GET /ws/workflows/{workflow_id}/step/{step_id}``: Live events of a step of a workflow, by WebSocket.

    For older clients: without `connected`.
    """
    path = request.match_info
    return await _open(request, workflow=path["workflow_id"], step=path["step_id"], says_connected=False)


async def _open(
    request: web.Request,
    *,
    workflow: str | None = None,
    execution: str | None = None,
    step: str | None = None,
    says_connected: bool = True,
) -> web.StreamResponse:
    query = Query(request)
    stream_filter, after = await _subscription(request, query, workflow=workflow, execution=execution, step=step)
    if request.method != "GET" or request.headers.get("Upgrade", "").lower() != "websocket":
        raise problems.upgrade_required()
    return await _websocket(request, stream_filter, after, says_connected=says_connected)


async def sse_stream(request: web.Request) -> web.StreamResponse:
    """``GET /api/stream``: Live events of a workspace, or of one workflow, execution or step, as server-sent events.

    Resumes after `after` or the header `Last-Event-ID`. Does not end until the client disconnects.
    """
    query = Query(request)
    workflow, execution, step = query.text("workflow_id"), query.text("execution_id"), query.text("step_id")
    stream_filter, after = await _subscription(request, query, workflow=workflow, execution=execution, step=step)
    _check_limit(request)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    response = web.StreamResponse(headers=headers)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    self_metrics = request.app[SELF_METRICS]
    async with contextlib.aclosing(request.app[HUB].follow(stream_filter, after)) as messages:
        first = await _first(messages)
        await response.prepare(request)
        becomes_stream(request)
        response.force_close()
        with self_metrics.stream_client("sse"), contextlib.suppress(ConnectionError, Closing):
            watching = asyncio.create_task(
                _end_with_token(request, partial(_hang_up, request)), name="tachograph sse token"
            )
            try:
                async for group in _from_first(first, messages):
                    # `write` waits until the socket's buffer has room.
                    async with asyncio.timeout(STALL_SECONDS):
                        await response.write(b"".join([message.sse for message in group]))
            except (TooSlow, TimeoutError):
                self_metrics.stream_client_refused("too_slow")
                if request.transport is not None:
                    request.transport.abort()
            finally:
                watching.cancel()
    return response


_TYPES: Final = Parameter(
    name="types", kind="texts",
    description="Only events of these types; `all` includes those that do not change a status.",
    example="step_failed,workflow_failed",
)  # fmt: skip
_AFTER: Final = Parameter(
    name="after", kind="integer", description="Resume after this sequence number.", low=0, high=(1 << 63) - 1
)
_QUERY: Final = (_TYPES, _AFTER)
_CODES: Final = ("upgrade_required", "too_many_clients")

ROUTES: Final = (
    Route(method="GET", path="/ws/workflows/stream", handler=ws_stream, query=_QUERY, status=101, codes=_CODES),
    Route(method="GET", path="/ws/workflows/executions/{execution_id}", handler=ws_execution, query=_QUERY, status=101,
          codes=_CODES),
    Route(method="GET", path="/ws/workflows/steps/{step_id}", handler=ws_step, query=_QUERY, status=101, codes=_CODES),
    Route(method="GET", path="/ws/workflows/{workflow_id}", handler=ws_workflow, query=_QUERY, status=101,
          codes=_CODES),
    Route(method="GET", path="/ws/workflows/{workflow_id}/step/{step_id}", handler=ws_step_of_workflow, query=_QUERY,
          status=101, codes=_CODES),
    Route(method="GET", path="/ws/stream", handler=ws_everything, query=_QUERY, status=101, codes=_CODES),
    Route(method="GET", path="/api/stream", handler=sse_stream, response=StreamMessage, media=("text/event-stream",),
          codes=("too_many_clients", "workflow_not_found", "execution_not_found"), query=(
              *_QUERY,
              Parameter(name="workflow_id", description="Only this workflow, by id or name."),
              Parameter(name="execution_id", description="Only this execution."),
              Parameter(name="step_id", description="Only this step."))),
)  # fmt: skip
