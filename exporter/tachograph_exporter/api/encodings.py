"""Bodies as they were before they were compressed: bounded while they grow, whole, and off the event loop."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

from aiohttp import web

SUPPORTED: Final = ("identity", "gzip", "deflate")
_STEP: Final = 1 << 18


class TooLarge(Exception):
    """A body is larger than the service accepts."""


class NoRoom(Exception):
    """The bodies that are being read take all the room there is."""


class UnsupportedEncoding(Exception):
    """A body has a Content-Encoding that the service does not read; the message names it."""


class Unreadable(Exception):
    """A body is not what its Content-Encoding says, or its end is missing."""


def encoding_of(request: web.Request) -> str:
    """The body's encoding. Raises `UnsupportedEncoding`."""
    encoding = ", ".join(request.headers.getall("Content-Encoding", ("identity",))).strip().lower() or "identity"
    if encoding == "x-gzip":
        encoding = "gzip"
    if encoding not in SUPPORTED:
        raise UnsupportedEncoding(f"send the body as {', '.join(SUPPORTED)}, not {encoding[:40]}")
    return encoding


async def read(request: web.Request, limit: int, reserve: Callable[[int], bool]) -> bytes:
    """The decoded body. ``reserve`` is asked for room for bytes as they arrive, and as they are decoded.

    Raises `TooLarge`, `NoRoom`, `UnsupportedEncoding`, `Unreadable`, or what aiohttp raises for a broken body.
    """
    encoding = encoding_of(request)
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise TooLarge
        if not reserve(len(chunk)):
            raise NoRoom
        chunks.append(chunk)
    body = b"".join(chunks)
    if encoding == "identity" or not body:
        return body
    return await asyncio.to_thread(decoded, body, encoding, limit, reserve)


def decoded(body: bytes, encoding: str, limit: int, reserve: Callable[[int], bool]) -> bytes:
    """A compressed body, decoded. Raises `TooLarge`, `NoRoom` or `Unreadable`."""
    parts: list[bytes] = []
    size = 0
    rest = body
    try:
        while True:
            decoder = _decoder(encoding, rest)
            while not decoder.eof:
                part = decoder.decompress(rest, _STEP)
                rest = decoder.unconsumed_tail
                size += len(part)
                if size > limit:
                    raise TooLarge
                if part:
                    if not reserve(len(part)):
                        raise NoRoom
                    parts.append(part)
                elif not decoder.eof:
                    raise Unreadable(f"the {encoding} data ends too soon")
            rest = decoder.unused_data
            # A gzip file may have several members (RFC 1952, section 2.2).
            if not rest:
                return b"".join(parts)
            if encoding != "gzip":
                raise Unreadable(f"something follows the {encoding} data")
    except zlib.error as error:
        raise Unreadable(f"it is not {encoding}: {error}") from None


def _decoder(encoding: str, body: bytes) -> zlib._Decompress:
    if encoding == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    # deflate is zlib's format (RFC 9110, section 8.4.1.2), but some programs send the bare data.
    has_header = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
