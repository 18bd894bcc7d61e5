"""Entity tags (RFC 9110, sections 8.8.3 and 13), cache headers and compression of responses.

Responses to clients on this machine are not compressed: for a long timeline, compressing takes longer than sending.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from aiohttp import web

from tachograph_exporter.api.encodings import accepted_coding
from tachograph_exporter.api.problems import Handler, precondition_failed
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
    is_read = request.method in ("GET", "HEAD") and response.status == 200
    if is_read and isinstance(body, bytes) and request.path.rstrip("/") != "/metrics":
        tag = response.headers.get("ETag") or await _entity_tag(body)
        response.headers["ETag"] = tag
        # Clients may store the response but must revalidate it each time.
        response.headers.setdefault("Cache-Control", "private, no-cache")
        if _is_named(request, "If-None-Match", tag):
            headers = {name: response.headers[name] for name in ("ETag", "Cache-Control", "X-Content-Type-Options")}
            return web.Response(status=304, headers=headers)
    response.headers.setdefault("Cache-Control", "no-store")
    if isinstance(body, bytes) and response.content_type in _COMPRESSIBLE and len(body) >= MIN_COMPRESSED_BYTES:
        response.headers.setdefault("Vary", "Accept-Encoding")
        if compress(request, response) and (sent := response.headers.get("ETag")) is not None:
            response.headers["ETag"] = _weak(sent)
    return response


def compress(request: web.Request, response: web.StreamResponse) -> bool:
    """Let a response be compressed if its client is on another machine and accepts that; whether it is."""
    coding = accepted_coding(request.headers.get("Accept-Encoding", ""), ("gzip", "deflate"))
    if coding == "identity" or not is_remote(request):
        return False
    response.enable_compression(web.ContentCoding(coding))
    return True


def is_remote(request: web.Request) -> bool:
    """Whether the client is on another machine, directly or behind a proxy that says so."""
    if is_proxied(request):
        return True
    return request.remote is None or not is_loopback(request.remote)


def is_proxied(request: web.Request) -> bool:
    """Whether a proxy says that it passed the request on."""
    return bool(request.headers.keys() & _PROXY_HEADERS)


def check_preconditions(request: web.Request, tag: str) -> None:
    """Raise 412 if the request is to change something of another version than ``tag`` names (RFC 9110, section 13.2.2).

    Tags are compared without ``W/``, also in If-Match: a compressed response has a weak tag, but of the same version.
    """
    if "If-Match" in request.headers and not _is_named(request, "If-Match", tag):
        raise precondition_failed(tag)
    if _is_named(request, "If-None-Match", tag):
        raise precondition_failed(tag)


def _is_named(request: web.Request, header: str, tag: str) -> bool:
    """Whether a header names a tag, or any (``*``)."""
    names = ",".join(request.headers.getall(header, ())).split(",")
    return any(name.strip() == "*" or _opaque_tag(name) == _opaque_tag(tag) for name in names)


async def _entity_tag(body: bytes) -> str:
    if len(body) < _MIN_THREADED_BYTES:
        return _weak_tag(body)
    return await asyncio.get_running_loop().run_in_executor(None, _weak_tag, body)


def _weak_tag(body: bytes) -> str:
    # Weak, because the compressed response has the same tag.
    return _weak(strong_tag(body))


def strong_tag(content: bytes) -> str:
    """An entity tag of some content."""
    return f'"{hashlib.sha256(content).hexdigest()[:24]}"'


def _weak(tag: str) -> str:
    return tag if tag.startswith("W/") else f"W/{tag}"


def _opaque_tag(tag: str) -> str:
    return tag.strip().removeprefix("W/")
