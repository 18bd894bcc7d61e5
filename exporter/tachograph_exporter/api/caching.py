"""How answers travel: compressed, with an entity tag (RFC 9110, 8.8.3 and 13.1.2), never kept without asking.

What stays on this machine is not compressed: there it takes longer to pack and unpack a long timeline than to send it.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from aiohttp import web

from tachograph_exporter.api.problems import Handler
from tachograph_exporter.config import is_loopback

WORTH_PACKING: Final = 1_000
"""Bytes from which compressing is worth it."""
_LARGE: Final = 1_000_000
_FORWARDED: Final = frozenset({"Forwarded", "X-Forwarded-For"})
_PACKED: Final = ("application/json", "application/problem+json", "text/html", "text/css", "text/javascript")


@web.middleware
async def deliver(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add what every answer has."""
    response = await handler(request)
    if response.prepared:
        return response
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    body = response.body if isinstance(response, web.Response) else None
    if request.method == "GET" and response.status == 200 and isinstance(body, bytes) and request.path != "/metrics":
        tag = await _tag(body)
        response.headers["ETag"] = tag
        # May be kept, if it is asked every time whether it is still true.
        response.headers.setdefault("Cache-Control", "private, no-cache")
        wanted = request.headers.get("If-None-Match")
        if wanted is not None and (wanted.strip() == "*" or _bare(tag) in map(_bare, wanted.split(","))):
            kept = {name: response.headers[name] for name in ("ETag", "Cache-Control", "X-Content-Type-Options")}
            return web.Response(status=304, headers=kept)
    response.headers.setdefault("Cache-Control", "no-store")
    if isinstance(body, bytes) and response.content_type in _PACKED and len(body) >= WORTH_PACKING:
        response.headers.setdefault("Vary", "Accept-Encoding")
        if is_far(request):
            response.enable_compression()
    return response


def is_far(request: web.Request) -> bool:
    """Whether the answer leaves this machine, as far as can be told: a proxy on it says for whom it asks."""
    if request.headers.keys() & _FORWARDED:
        return True
    return request.remote is None or not is_loopback(request.remote)


async def _tag(body: bytes) -> str:
    if len(body) < _LARGE:
        return _digest(body)
    return await asyncio.get_running_loop().run_in_executor(None, _digest, body)


def _digest(body: bytes) -> str:
    # Weak: the same for the compressed answer.
    return f'W/"{hashlib.sha256(body).hexdigest()[:24]}"'


def _bare(tag: str) -> str:
    return tag.strip().removeprefix("W/")
