"""Pings: a run reported with ``curl`` alone."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from aiohttp import web

from tachograph_exporter.api import problems
from tachograph_exporter.api.problems import Handler
from tachograph_exporter.api.request import read_body, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.ingest.pings import Action, NoRun, PingReceiver
from tachograph_exporter.store.tokens import INGEST

PINGS: Final = web.AppKey("pings", PingReceiver)
MAX_BODY_BYTES: Final = 10_000
_RUN: Final = re.compile(r"[0-9A-Za-z._-]{1,64}", re.ASCII)


async def ping(request: web.Request) -> web.Response:
    """``GET /ping/{workflow}/{action}``: a run of the workflow starts, or ends: `start`, `success`, `fail`, `log`.

    204 once it is committed; the header `X-Execution-Id` names the execution. The newest run that pings left open is
    meant. The token may be in the path: `/ping/~{token}/{workflow}/{action}`. Pages of other sites are refused.
    """
    return await _taken(request, "")


async def ping_with_text(request: web.Request) -> web.Response:
    """``POST /ping/{workflow}/{action}``: as GET, with text for the run's log; its last line says why it failed."""
    body = await read_body(request, MAX_BODY_BYTES)
    return await _taken(request, body.decode("utf-8", "replace"))


async def ping_run(request: web.Request) -> web.Response:
    """``GET /ping/{workflow}/{run}/{action}``: as without a run, for one of several runs at once.

    `run` is an id of your own: at most 64 letters, digits, dots and dashes. A ping that is sent again changes nothing.
    """
    return await _taken(request, "")


async def ping_run_with_text(request: web.Request) -> web.Response:
    """``POST /ping/{workflow}/{run}/{action}``: as GET, with text for the run's log.

    With `fail`, the last line says why.
    """
    body = await read_body(request, MAX_BODY_BYTES)
    return await _taken(request, body.decode("utf-8", "replace"))


async def _taken(request: web.Request, text: str) -> web.Response:
    workspace = await workspace_of(request)
    workflow, run = request.match_info["workflow"].strip(), request.match_info.get("run")
    try:
        action = Action(request.match_info["action"])
    except ValueError:
        raise problems.unreadable('"action" in the path', f"is none of {', '.join(Action)}") from None
    if not workflow or workflow.startswith("~"):
        raise problems.unreadable('"workflow" in the path', "is no name of a workflow")
    if run is not None and not _RUN.fullmatch(run):
        raise problems.unreadable('"run" in the path', "is not 1 to 64 letters, digits, dots and dashes")
    receiver = request.app[PINGS]
    try:
        execution_id = await asyncio.to_thread(
            receiver.take, workspace.id, workspace.slug, workflow, run, action, text
        )  # fmt: skip
    except NoRun:
        raise problems.no_open_run(workflow) from None
    return web.Response(status=204, headers={"X-Execution-Id": execution_id})


_TEXT_CODES: Final = ("body_too_large", "request_timeout", "too_many_requests", "unsupported_media_type")


def _routes(path: str, bare: Handler, with_text: Handler) -> tuple[Route, ...]:
    alias = path.replace("/ping/", "/ping/~{ping_token}/", 1)
    codes = ("execution_not_found", "store_unavailable")
    common: dict[str, Any] = {"path": path, "aliases": (alias,), "scope": INGEST, "status": 204, "changes": True}
    return (
        Route(method="GET", handler=bare, codes=codes, **common),
        Route(method="POST", handler=with_text, codes=(*codes, *_TEXT_CODES), takes_text=True, **common),
    )


# In this order: the first form with a token has as many parts as the second one without.
ROUTES = (
    *_routes("/ping/{workflow}/{action}", ping, ping_with_text),
    *_routes("/ping/{workflow}/{run}/{action}", ping_run, ping_run_with_text),
)
