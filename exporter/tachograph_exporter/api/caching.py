"""Entity tags (RFC 9110, sections 8.8.3 and 13.1.2), cache headers and compression of responses.

Responses to clients on this machine are not compressed: for a long timeline, compressing takes longer than sending.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from aiohttp import web

from tachograph_exporter.api.problems import Handler
from tachograph_exporter.config import is_loopback

MIN_COMPRESSED_BYTES: Final = 1_000
"""Smaller bodies are sent uncompressed."""
_MIN_THREADED_BYTES: Final = 1_000_000
_PROXY_HEADERS: Final = frozenset({"Forwarded", "X-Forwarded-For"})
_COMPRESSIBLE: Final = ("application/json", "application/problem+json", "text/html", "text/css", "text/javascript")


@web.middleware
async def caching_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add the headers common to all responses, respond with 304 where nothing changed, and compress."""
    response = await handler(request)
    if response.prepared:
        return response
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    body = response.body if isinstance(response, web.Response) else None
    if request.method == "GET" and response.status == 200 and isinstance(body, bytes) and request.path != "/metrics":
        tag = await _entity_tag(body)
        response.headers["ETag"] = tag
        # Clients may store the response but must revalidate it each time.
        response.headers.setdefault("Cache-Control", "private, no-cache")
        condition = request.headers.get("If-None-Match")
        if condition is not None and (
            condition.strip() == "*" or _opaque_tag(tag) in map(_opaque_tag, condition.split(","))
        ):
            headers = {name: response.headers[name] for name in ("ETag", "Cache-Control", "X-Content-Type-Options")}
            return web.Response(status=304, headers=headers)
    response.headers.setdefault("Cache-Control", "no-store")
    if isinstance(body, bytes) and response.content_type in _COMPRESSIBLE and len(body) >= MIN_COMPRESSED_BYTES:
        response.headers.setdefault("Vary", "Accept-Encoding")
        if is_remote(request):
            response.enable_compression()
    return response


def is_remote(request: web.Request) -> bool:
    """Whether the client is on another machine, directly or behind a proxy that says so."""
    if request.headers.keys() & _PROXY_HEADERS:
        return True
    return request.remote is None or not is_loopback(request.remote)


async def _entity_tag(body: bytes) -> str:
    if len(body) < _MIN_THREADED_BYTES:
        return _weak_tag(body)
    return await asyncio.get_running_loop().run_in_executor(None, _weak_tag, body)


def _weak_tag(body: bytes) -> str:
    # Weak, because the compressed response has the same tag.
    return f'W/"{hashlib.sha256(body).hexdigest()[:24]}"'


def _opaque_tag(tag: str) -> str:
    return tag.strip().removeprefix("W/")
