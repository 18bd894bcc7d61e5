"""The page for people, from files in the package, and what it has to know of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api.request import CONFIG, json_response
from tachograph_exporter.api.routes import Route

_WEB: Final = Path(__file__).parent.parent / "web"
_KINDS: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
SAFE: Final = {
    # Nothing but the package's own files: no inline script, no other host, no framing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every page."""
_FILES: Final = {path.relative_to(_WEB).as_posix(): path for path in sorted(_WEB.rglob("*")) if path.suffix in _KINDS}


class About(msgspec.Struct, kw_only=True):
    """The service: its version, the workspace it is for unless one is named, and where links to traces lead."""

    version: str
    workspace: str
    trace_url: str | None


async def about(request: web.Request) -> web.Response:
    """``GET /api/about``: the service's version, its own workspace, and where links to traces lead."""
    config = request.app[CONFIG]
    return json_response(About(version=version(), workspace=config.workspace, trace_url=config.trace_url))


def file(name: str) -> web.Response:
    """A file that pages are made of. Raises 404."""
    path = _FILES.get(name)
    if path is None:
        raise web.HTTPNotFound
    return web.Response(body=path.read_bytes(), content_type=_KINDS[path.suffix], charset="utf-8", headers=SAFE)


async def index(_request: web.Request) -> web.Response:
    """``GET /``: the page."""
    return file("index.html")


async def web_file(request: web.Request) -> web.Response:
    """``GET /web/{file}``: a file that the page is made of."""
    return file(request.match_info["file"])


async def docs(_request: web.Request) -> web.Response:
    """``GET /docs``: the API's documentation, for people."""
    return file("docs.html")


ROUTES: Final = (
    Route(method="GET", path="/api/about", handler=about, in_workspace=False, answer=About),
)  # fmt: skip
PAGES: Final = (("/", index), ("/docs", docs), ("/web/{file:.+}", web_file))
"""Pages for people; open to everybody, since they hold nothing but the package's own text."""
