"""The web page, served from the package's files, and the settings that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api.request import CONFIG, json_response
from tachograph_exporter.api.routes import Route

_DIRECTORY: Final = Path(__file__).parent.parent / "web"
_CONTENT_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
SECURITY_HEADERS: Final = {
    # Only the package's own files: no inline scripts, no other host, no framing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Sent with every file of the page."""
_FILES: Final = {
    path.relative_to(_DIRECTORY).as_posix(): path
    for path in sorted(_DIRECTORY.rglob("*"))
    if path.suffix in _CONTENT_TYPES
}


class About(msgspec.Struct, kw_only=True):
    """The service's version, its default workspace, and the templates of links to traces and to logs.

    ``trace_url`` has ``{trace_id}`` in it; ``logs_url`` ``{trace_id}``, ``{span_id}`` or ``{execution_id}``, and maybe
    ``{from_ms}`` and ``{to_ms}`` (unix milliseconds).
    """

    version: str
    workspace: str
    trace_url: str | None
    logs_url: str | None = None


async def about(request: web.Request) -> web.Response:
    """``GET /api/about``: the service's version, its default workspace, and the templates of links."""
    config = request.app[CONFIG]
    return json_response(
        About(
            version=version(), workspace=config.workspace, trace_url=config.trace_url, logs_url=config.logs_url_template
        )
    )


def _file(name: str) -> web.Response:
    """A file of the page. Raises 404."""
    path = _FILES.get(name)
    if path is None:
        raise web.HTTPNotFound
    return web.Response(
        body=path.read_bytes(), content_type=_CONTENT_TYPES[path.suffix], charset="utf-8", headers=SECURITY_HEADERS
    )


async def index(_request: web.Request) -> web.Response:
    """``GET /``: the page."""
    return _file("index.html")


async def web_file(request: web.Request) -> web.Response:
    """``GET /web/{file}``: a file of the page."""
    return _file(request.match_info["file"])


async def docs(_request: web.Request) -> web.Response:
    """``GET /docs``: the API reference."""
    return _file("docs.html")


ROUTES: Final = (
    Route(method="GET", path="/api/about", handler=about, in_workspace=False, response=About),
)  # fmt: skip
PAGES: Final = (("/", index), ("/docs", docs), ("/web/{file:.+}", web_file))
"""(path, handler) of the page. No token is required: these files ship with the package and contain no data."""
