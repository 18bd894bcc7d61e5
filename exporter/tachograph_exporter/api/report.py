"""An execution as one HTML file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from aiohttp import web
from sqlalchemy import Connection

from tachograph.errors import QueryTimeout
from tachograph_exporter.api.caching import is_proxied
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import CONFIG, DATABASE, WORKERS, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.report_file import reading
from tachograph_exporter.report_file.contents import Contents
from tachograph_exporter.report_file.document import MEDIA_TYPE, document, file_name, policy
from tachograph_exporter.store.database import Database, Lane

T = TypeVar("T")

LINK: Final = web.AppKey("link", str)
"""The address of the page as people reach it; empty: not known."""


async def report(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/report``: the execution as one HTML file, at most 5 MB long.

    Its timeline, graph, log and why it was slow or failed, as the page shows them. It opens without a service and
    requests nothing.
    """
    Query(request).done()
    workspace = await workspace_of(request)
    execution_id, now_ns = request.match_info["execution_id"], time.time_ns()
    database = request.app[DATABASE]
    # Off the event loop on PostgreSQL too.
    lane = Lane.READ if database.is_sqlite else Lane.SEARCH

    try:
        contents = await database.read(lambda c: reading.read_all(c, workspace.id, execution_id, now_ns), lane)
    except QueryTimeout:
        contents = await _in_parts(database, lane, workspace.id, execution_id, now_ns)
    contents.address, contents.trace_url = _address(request), request.app[CONFIG].trace_url
    body = await request.app[WORKERS].run(lambda: document(contents))
    headers = {
        "Content-Disposition": f'attachment; filename="{file_name(contents)}"',
        # Whatever opens it in place: without the rights of the service's own pages.
        "Content-Security-Policy": f"sandbox allow-scripts allow-downloads; {policy()}",
    }
    return web.Response(body=body, content_type=MEDIA_TYPE, charset="utf-8", headers=headers)


async def _in_parts(database: Database, lane: Lane, workspace: str, execution_id: str, now_ns: int) -> Contents:
    """What can be read in time: the history of other runs must not keep this one from being saved."""

    async def in_time(read: Callable[[Connection], T], what: str) -> T | None:
        try:
            return await database.read(read, lane)
        except QueryTimeout:
            contents.omitted.append(f"{what} is not in the report: reading it took too long.")
            return None

    contents = await database.read(lambda c: reading.read_contents(c, workspace, execution_id, now_ns), lane)
    contents.comparison = await in_time(
        lambda c: reading.read_comparison(c, workspace, execution_id), "How the run compares with usual ones"
    )
    contents.why = await in_time(
        lambda c: reading.read_reasons(c, workspace, execution_id, now_ns), "Why it took so long"
    )
    return contents


def _address(request: web.Request) -> str | None:
    """Where people find the page, or None: a proxy may have changed what the request says."""
    if link := request.app[LINK]:
        return link.rstrip("/")
    return None if is_proxied(request) else f"{request.scheme}://{request.host}"


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions/{execution_id}/report", handler=report, media=(MEDIA_TYPE,),
          codes=("archive_unavailable",)),
)  # fmt: skip
