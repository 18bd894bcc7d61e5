"""Bodies as they were before they were compressed: bounded while they grow, whole, and off the event loop."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Final

from aiohttp import web

from tachograph_exporter.api.workers import Workers

# The extra "zstd" is optional.
SUPPORTED: Final = ("identity", "gzip", "deflate", *(("zstd",) if find_spec("zstandard") is not None else ()))
IDLE_SECONDS: Final = 10.0
"""How long a body may pause."""
BODY_SECONDS: Final = 60.0
"""How long a body may take in all."""
_STEP: Final = 1 << 18
_MAX_WINDOW: Final = 8 << 20
"""Memory that zstd may take for what it refers back to; every decoder has to support as much (RFC 9659)."""
_MAX_BLOCKS: Final = 100_000
_MAX_MEMBERS: Final = 1_000
_workers: Final = Workers("decode")


class TooLarge(Exception):
    """A body is larger than the service accepts."""


class NoRoom(Exception):
    """The bodies that are being read take all the room there is."""


class TooSlow(Exception):
    """A body did not arrive in time. ``seconds`` is the limit that it exceeded."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not arrive within {seconds:g} s")
        self.seconds = seconds


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
        hint = " (zstd needs pip install 'tachograph[zstd]')" if encoding == "zstd" else ""
        raise UnsupportedEncoding(f"send the body as {', '.join(SUPPORTED)}, not {encoding[:40]}{hint}")
    return encoding


def accepted_coding(accept: str, offered: Sequence[str] = ("gzip",)) -> str:
    """The first of the ``offered`` codings with the highest quality in an Accept-Encoding header, or ``identity``.

    Source: RFC 9110, section 12.5.3. An empty header accepts no coding; ``gzip;q=0`` refuses one.
    """
    qualities: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        try:
            quality = next((float(word[2:]) for word in parameters if word.startswith("q=")), 1.0)
        except ValueError:
            quality = 0.0
        qualities["gzip" if name == "x-gzip" else name] = quality if 0 <= quality <= 1 else 0.0
    others = qualities.get("*", 0.0)
    best = max(offered, key=lambda coding: qualities.get(coding, others))
    quality = qualities.get(best, others)
    # Uncompressed is worse than any accepted coding, unless the client says otherwise.
    return best if quality > 0 and quality >= qualities.get("identity", 0.0) else "identity"


async def read(request: web.Request, limit: int, reserve: Callable[[int], bool]) -> bytes:
    """The decoded body. ``reserve`` is asked for room for bytes as they arrive, and as they are decoded.

    Raises `TooLarge`, `NoRoom`, `TooSlow`, `UnsupportedEncoding`, `Unreadable`, or what aiohttp raises for a broken
    body.
    """
    encoding = encoding_of(request)
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge
    body = await _arrived(request, limit, reserve)
    if encoding == "identity" or not body:
        return body
    return await decode(body, encoding, limit, reserve)


async def decode(body: bytes, encoding: str, limit: int, reserve: Callable[[int], bool]) -> bytes:
    """A compressed body, decoded off the event loop. Raises as `decoded` does."""
    return await _workers.run(lambda: decoded(body, encoding, limit, reserve))


async def _arrived(request: web.Request, limit: int, reserve: Callable[[int], bool]) -> bytes:
    """The body as it was sent, once it is there."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BODY_SECONDS
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(None) as deadline:
            while True:
                deadline.reschedule(min(loop.time() + IDLE_SECONDS, end))
                chunk = await request.content.readany()
                if not chunk:
                    return b"".join(chunks)
                size += len(chunk)
                if size > limit:
                    raise TooLarge
                if not reserve(len(chunk)):
                    raise NoRoom
                chunks.append(chunk)
    except TimeoutError:
        raise TooSlow(BODY_SECONDS if loop.time() >= end else IDLE_SECONDS) from None


def decoded(body: bytes, encoding: str, limit: int, reserve: Callable[[int], bool]) -> bytes:
    """A compressed body, decoded. Raises `TooLarge`, `NoRoom` or `Unreadable`."""
    if encoding == "zstd":
        return _decoded_zstd(body, limit, reserve)
    parts: list[bytes] = []
    size = members = 0
    # In slices: what a decoder leaves over is a copy.
    slices = (body[i : i + _STEP] for i in range(0, len(body), _STEP))
    rest = next(slices, b"")
    try:
        while True:
            decoder = _decoder(encoding, body)
            members += 1
            if members > _MAX_MEMBERS:
                raise Unreadable(f"it has more than {_MAX_MEMBERS} parts")
            while not decoder.eof:
                is_last = not rest and not (rest := next(slices, b""))
                part = decoder.decompress(rest, _STEP)
                rest = decoder.unconsumed_tail
                if not part and is_last and not decoder.eof:
                    raise Unreadable(f"the {encoding} data ends too soon")
                size += len(part)
                if size > limit:
                    raise TooLarge
                if part and not reserve(len(part)):
                    raise NoRoom
                parts.append(part)
            rest = decoder.unused_data or next(slices, b"")
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


def _decoded_zstd(body: bytes, limit: int, reserve: Callable[[int], bool]) -> bytes:
    if not _is_whole_zstd(body):
        raise Unreadable("it is not zstd, or its end is missing")
    import zstandard

    parts: list[bytes] = []
    size = 0
    try:
        decoder: Any = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        with decoder.stream_reader(body, read_across_frames=True) as reader:
            while part := reader.read(_STEP):
                size += len(part)
                if size > limit:
                    raise TooLarge
                if not reserve(len(part)):
                    raise NoRoom
                parts.append(part)
    except zstandard.ZstdError as error:
        raise Unreadable(f"it is not zstd: {error}") from None
    return b"".join(parts)


def _is_whole_zstd(body: bytes) -> bool:
    """Whether a body consists of whole frames (RFC 8878, section 3.1): the decoder does not miss what was cut off."""
    at, blocks = 0, 0
    while at < len(body):
        magic = int.from_bytes(body[at : at + 4], "little")
        at += 4
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # skippable
            at += 4 + int.from_bytes(body[at : at + 4], "little")
            continue
        if magic != 0xFD2FB528 or at >= len(body):
            return False
        descriptor = body[at]
        is_single = descriptor >> 5 & 1
        size_bytes = (is_single, 2, 4, 8)[descriptor >> 6]
        at += 1 + (not is_single) + (0, 1, 2, 4)[descriptor & 3] + size_bytes
        is_last = False
        while not is_last:
            blocks += 1
            if at + 3 > len(body) or blocks > _MAX_BLOCKS:
                return False
            header = int.from_bytes(body[at : at + 3], "little")
            is_last = bool(header & 1)
            # A run-length block holds one byte, however long it becomes.
            at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        at += 4 * (descriptor >> 2 & 1)
    return at == len(body)
