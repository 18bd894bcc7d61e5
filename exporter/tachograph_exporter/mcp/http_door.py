"""The protocol's streamable HTTP transport for a server that is not ASGI: a request's bytes in, a response's bytes out.

Without sessions and streams: every request is answered by itself, in JSON, so nothing is kept between two of them and
nothing needs to find its way back to the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mcp.server import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from tachograph_exporter.mcp.server import Ask, build_server

MAX_BODY_BYTES: Final = 256 << 10
"""A question is short."""
_PASSED: Final = ("accept", "content-type")
_PASSED_PREFIX: Final = "mcp-"
_ASK: Final = "tachograph.ask"


class Reply(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpDoor:
    """Answers requests of the protocol while it is open."""

    def __init__(self) -> None:
        # Who may ask, and with which Host and Origin, was decided before.
        self._manager = StreamableHTTPSessionManager(
            build_server(_ask_of), json_response=True, stateless=True, max_request_body_size=MAX_BODY_BYTES
        )
        self._task: asyncio.Task[None] | None = None
        # It tells of every request.
        logging.getLogger("mcp").setLevel(logging.WARNING)

    async def open(self) -> None:
        """Begin to answer."""
        is_open = asyncio.get_running_loop().create_future()

        async def run() -> None:
            # A task of its own: its group of tasks must end in the task in which it began.
            async with self._manager.run():
                is_open.set_result(None)
                await asyncio.Event().wait()

        self._task = asyncio.create_task(run(), name="tachograph mcp")
        await asyncio.wait({is_open, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """Stop; requests that are being answered end without an answer."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def answer(self, headers: Mapping[str, str], body: bytes, ask: Ask) -> Reply:
        """The response to a POST. Of its headers only those are passed on that belong to the protocol: no token."""
        passed = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in headers.items()
            if name.lower() in _PASSED or name.lower().startswith(_PASSED_PREFIX)
        ]
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/mcp", "raw_path": b"/mcp", "query_string": b"", "root_path": "", "headers": passed, _ASK: ask,
        }  # fmt: skip
        unread = [body]
        status = 500
        sent: dict[str, str] = {}
        chunks: list[bytes] = []

        async def receive() -> dict[str, Any]:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            # The client's connection is watched elsewhere.
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
            elif message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))

        await self._manager.handle_request(scope, receive, send)
        kept = {name: value for name, value in sent.items() if name in ("content-type", "allow")}
        return Reply(status, kept, b"".join(chunks))


def _ask_of(context: ServerRequestContext[Any]) -> Ask:
    assert context.request is not None  # noqa: S101 - the transport sets it
    ask: Ask = context.request.scope[_ASK]
    return ask
