"""Events of child processes, delivered to the process that started them.

A step in a child process is a step of its parent's run, so the parent's recorder must hear of it: it feeds the metrics
that are scraped, counts the run's steps, and knows what the next step waited for. A child therefore sends its events
to its parent and waits for the answer before its outermost step returns. By the time the parent has the result of the
work, it has its events.

Wire format, over a Unix stream socket in a directory of the parent's own user: the client first sends the 16 bytes of
the server's token; then frames of a 4-byte big-endian length and a msgpack array of events. Each frame is answered with
one byte once the parent's recorder has it: 6, or 7 when a frame follows with what is asked of the child (an array of
`StackWish`).
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import selectors
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tachograph.events import Event
from tachograph.folded_stacks import StackWish
from tachograph.stacks.wishes import fulfil

log = logging.getLogger(__name__)

TOKEN_BYTES: Final = 16
MAX_FRAME_BYTES: Final = 256 << 20
TIMEOUT_SECONDS: Final = 30.0
"""How long a child waits for its parent's answer before it records on its own."""
_HEADER: Final = struct.Struct(">I")
_ACKNOWLEDGED: Final = b"\x06"
_ASKED: Final = b"\x07"
_READ_BYTES: Final = 1 << 18

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Event]).decode
_decode_wishes: Final = msgspec.msgpack.Decoder(list[StackWish]).decode


class RelayAddress(NamedTuple):
    """Where a parent process takes its children's events: the socket's path, and the token that opens it."""

    path: str
    token: bytes


def _framed(values: Sequence[Event] | Sequence[StackWish]) -> bytes:
    body = _encode(values)
    return _HEADER.pack(len(body)) + body


class RelayServer:
    """Takes events of child processes, in a thread of its own.

    Args:
        receive: called with each batch, from the server's thread; what it raises is logged. Returns what is asked of
            the child.

    Raises `OSError` when the socket cannot be made.
    """

    def __init__(self, receive: Callable[[Sequence[Event]], Sequence[StackWish]]) -> None:
        self._receive = receive
        self._directory = tempfile.mkdtemp(prefix="tachograph-")
        self._token = os.urandom(TOKEN_BYTES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = str(Path(self._directory) / "relay")
        try:
            self._socket.bind(path)
            self._socket.listen(128)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        self.address = RelayAddress(path, self._token)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._children: dict[int, _Child] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="tachograph-relay", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not self._is_closed:
                for key, _ in selector.select():
                    if key.fileobj is self._socket:
                        with contextlib.suppress(OSError):
                            accepted, _ = self._socket.accept()
                            child = self._children[accepted.fileno()] = _Child(accepted, self._token)
                            selector.register(accepted, selectors.EVENT_READ, child)
                    elif isinstance(child := key.data, _Child) and not self._read(child):
                        selector.unregister(child.socket)
                        del self._children[key.fd]
                        child.socket.close()
        self._close_sockets()

    def _read(self, child: _Child) -> bool:
        """Take what has arrived; False when the child is gone or is none of ours."""
        try:
            data = child.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data:
            return False
        for frame in child.feed(data):
            wishes: Sequence[StackWish] = ()
            try:
                wishes = self._receive(_decode(frame))
            except Exception:
                log.exception("events of a child process could not be recorded")
            try:
                child.socket.sendall(_ASKED + _framed(wishes) if wishes else _ACKNOWLEDGED)
            except OSError:
                return False
        return not child.is_refused

    def close(self) -> None:
        """Stop, and remove the socket. Children that still run record on their own from now on."""
        if not self._is_closed:
            self._is_closed = True
            with contextlib.suppress(OSError):
                self._wake_writer.send(b"x")
            if threading.current_thread() is not self._thread:
                self._thread.join(2.0)
            shutil.rmtree(self._directory, ignore_errors=True)

    def after_fork(self) -> None:
        """In a forked child: close what was inherited and leave the parent's socket alone."""
        self._is_closed = True
        self._close_sockets()

    def _close_sockets(self) -> None:
        for child in self._children.values():
            child.socket.close()
        for end in (self._socket, self._wake_reader, self._wake_writer):
            end.close()


class _Child:
    """What one child has sent."""

    def __init__(self, connection: socket.socket, token: bytes) -> None:
        connection.settimeout(TIMEOUT_SECONDS)
        self.socket = connection
        self.is_refused = False
        self._token = token
        self._is_open = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now."""
        buffer = self._buffer
        buffer += data
        if not self._is_open:
            if len(buffer) < TOKEN_BYTES:
                return []
            self._is_open = hmac.compare_digest(bytes(buffer[:TOKEN_BYTES]), self._token)
            self.is_refused = not self._is_open
            del buffer[:TOKEN_BYTES]
        frames: list[bytes] = []
        while self._is_open and len(buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(buffer)
            if size > MAX_FRAME_BYTES:
                self.is_refused = True
                break
            end = _HEADER.size + size
            if len(buffer) < end:
                break
            frames.append(bytes(buffer[_HEADER.size : end]))
            del buffer[:end]
        return frames


class RelayClient:
    """Sends a child's events to its parent. Raises `OSError` when the parent is gone or does not answer."""

    def __init__(self, address: RelayAddress) -> None:
        self.address = address
        self._socket: socket.socket | None = None

    def send(self, events: Sequence[Event]) -> list[StackWish]:
        """Deliver a batch; returns once the parent has it: what is asked of this process."""
        try:
            connection = self._send(events)
            answer = connection.recv(1)
            if answer == _ASKED:
                (size,) = _HEADER.unpack(self._read(_HEADER.size))
                return _decode_wishes(self._read(size))
            if answer != _ACKNOWLEDGED:
                raise ConnectionError("the parent process closed the connection")
        except OSError:
            self.close()
            raise
        return []

    def _read(self, size: int) -> bytes:
        assert self._socket is not None  # noqa: S101
        data = b""
        while len(data) < size:
            if not (part := self._socket.recv(min(size - len(data), _READ_BYTES))):
                raise ConnectionError("the parent process closed the connection")
            data += part
        return data

    def _send(self, events: Sequence[Event]) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(TIMEOUT_SECONDS)
            self._socket.connect(self.address.path)
            self._socket.sendall(self.address.token)
        self._socket.sendall(_framed(events))
        return self._socket

    def post(self, events: Sequence[Event]) -> None:
        """Give the parent a last batch without waiting for its answer: it has it though this process ends now."""
        try:
            self._send(events)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class ParentListener:
    """In a child: delivers batches to the parent process, and does what it asks.

    What cannot be delivered goes to ``on_lost``.
    """

    def __init__(self, client: RelayClient, on_lost: Callable[[Sequence[Event]], None]) -> None:
        self.client = client
        self._on_lost = on_lost

    def apply(self, events: Sequence[Event]) -> None:
        """Deliver a batch."""
        try:
            wishes = self.client.send(events)
        except OSError as error:
            log.info("the parent process takes no more events (%s); recording on our own", error)
            self.client.close()
            self._on_lost(events)
        else:
            fulfil(wishes)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
