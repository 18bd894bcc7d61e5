"""Connections to clients: input that is not HTTP gets a problem document, as any other error does."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tachograph_exporter.api.problems import Problem

log = logging.getLogger(__name__)


class _Connection(RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to what could not be read; the connection closes, because the next request cannot be found."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        # Any client can cause this, so it is not logged.
        log.debug("unreadable request from %s: %s", request.remote, exc)
        reason = " ".join((message or "").split())[:200]
        return Problem(400, "bad_request", f"the request cannot be read: {reason or 'not HTTP'}").response()


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application to connections that answer everything with problems."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # Bodies are decoded off the event loop, see `encodings`.
        options: dict[str, Any] = {**server._kwargs, "auto_decompress": False}
        return _Server(server.request_handler, request_factory=server.request_factory, **options)
