"""Connections to clients: bounded in time and number, and input that is not HTTP gets a problem document.

aiohttp keeps a connection that sends half a request for an hour. Here nobody waits for ever: a request's head has to
arrive in time (`HEAD_SECONDS`), a body too (see `encodings`), and a response has to be read. One address holds a
bounded number of connections, and those that wait longest without a request make room for new ones. Streams have a
bound and a stall limit of their own (see `tachograph_exporter.stream.hub`), so they do not count here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tachograph_exporter.api.problems import Problem, request_timeout, too_many_connections

log = logging.getLogger(__name__)

HEAD_SECONDS: Final = 10.0
"""How long the head of a request (its first line and headers) may take, from the first byte or the connection on."""
KEEPALIVE_SECONDS: Final = 75.0
"""How long a connection may stay open between requests; longer than proxies keep theirs."""
READ_SECONDS: Final = 60.0
"""How long a client may leave a response unread in the socket's buffers."""
LINGERING_SECONDS: Final = 2.0
"""How long what still comes of a body is read and thrown away, so that the client sees the response to it."""
MAX_HANDSHAKES: Final = 100
"""TLS handshakes of one address at the same time; each may take `HEAD_SECONDS`."""
BACKLOG: Final = 1_024
"""Connections that may wait to be accepted; with fewer places a flood keeps others waiting for seconds."""
AT_ONCE: Final = 8
"""Connections that begin, or end, in one turn of the event loop. Each costs a tenth of a millisecond, so hundreds at
once would keep everybody else waiting; what others ask for has its turn in between."""
MAX_DESCRIPTORS: Final = 65_536
_SWEEP_SECONDS: Final = 1.0


class _Connection(RequestHandler):
    __slots__ = ("_head_since", "_is_stream", "_paused_since", "_peer")

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._peer = ""
        self._is_stream = False
        self._head_since: float | None = None
        self._paused_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection; one too many for its address takes the place of another, or is refused."""
        super().connection_made(transport)
        self._head_since = self._loop.time()
        server = self._manager
        if not isinstance(server, _Server):
            return
        self._peer = peer_of(transport.get_extra_info("peername"))
        if not server.admit(self):
            self.refuse(too_many_connections(server.limit))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting it, and take it apart when it is its turn."""
        self.uncount()
        if isinstance(self._manager, _Server):
            self._manager.ended(self, exc)
        else:
            self.take_apart(exc)

    def take_apart(self, exc: BaseException | None) -> None:
        """Cancel what the ended connection asked for, and forget it."""
        super().connection_lost(exc)

    def uncount(self) -> None:
        """Count the connection no more: it has ended, or it became a stream."""
        if isinstance(self._manager, _Server):
            self._manager.uncount(self, self._peer)

    def become_stream(self) -> None:
        """Leave the bounds to the stream that the connection carries from now on."""
        self.uncount()
        self._is_stream = True

    @property
    def peer(self) -> str:
        """Whom it counts for."""
        return self._peer

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a request."""
        return not self._messages and (self._waiter is not None or self._head_since is not None)

    @property
    def is_unfinished(self) -> bool:
        """Whether it waits for the rest of a request's head, or for the first byte."""
        return self._head_since is not None

    def data_received(self, data: bytes) -> None:
        """Note when the head of a request begins, and when it has arrived."""
        count = self._request_count
        super().data_received(data)
        if self._request_count != count:
            self._head_since = None
            if isinstance(self._manager, _Server):
                self._manager.used(self)
        elif self._head_since is None and self._waiter is not None:
            self._head_since = self._loop.time()

    def pause_writing(self) -> None:
        """Note since when the client does not read."""
        super().pause_writing()
        self._paused_since = self._loop.time()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._paused_since = None

    def check(self, now: float) -> None:
        """Close the connection if what is due has not come."""
        if self._is_stream:
            return
        if self._head_since is not None and now - self._head_since > HEAD_SECONDS and self.is_waiting:
            self.refuse(request_timeout("the head of the request", HEAD_SECONDS))
        elif self._paused_since is not None and now - self._paused_since > READ_SECONDS and self.transport is not None:
            self.transport.abort()

    def refuse(self, problem: Problem) -> None:
        """Write a problem to a client whose request was not read, and close the connection."""
        transport = self.transport
        if transport is not None:
            transport.write(as_bytes(problem))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to what could not be read; the connection closes, because the next request cannot be found."""
        if isinstance(exc, ConnectionError):
            # The client has gone in the middle of its request; nobody reads the response.
            log.debug("%s ended its connection: %s", request.remote, exc)
            return Problem(400, "bad_request", "the connection ended").response()
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        # Any client can cause this, so it is not logged.
        log.debug("unreadable request from %s: %s", request.remote, exc)
        reason = " ".join((message or "").split())[:200]
        return Problem(400, "bad_request", f"the request cannot be read: {reason or 'not HTTP'}").response()


def as_bytes(problem: Problem) -> bytes:
    """A problem as a response whose connection closes, for a request that has no `web.Request`."""
    response = problem.response()
    body = response.body
    assert isinstance(body, bytes)  # noqa: S101
    head = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{k}: {v}" for k, v in response.headers.items())]
    head += [f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def peer_of(address: Any) -> str:
    """Whom a connection counts for: an IPv4 address, the /64 network of an IPv6 address, or "" for a local socket."""
    host = str(address[0]).partition("%")[0] if isinstance(address, tuple) and address else ""
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host)
        if isinstance(ip, ipaddress.IPv6Address):
            if ip.ipv4_mapped is not None:
                return str(ip.ipv4_mapped)
            return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)).network_address)
    return host


def becomes_stream(request: web.Request) -> None:
    """Count a request's connection no more: from here on the limit of stream clients bounds it."""
    if isinstance(request.protocol, _Connection):
        request.protocol.become_stream()


class _Early(asyncio.Protocol):
    """Keeps what follows a handshake until the connection's own protocol is there: often it is in the same packet."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.data.append(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """There is nothing to go on with."""
        self.is_lost = True


class _Handshake(asyncio.Protocol):
    """A connection until it is encrypted. asyncio's own listener does not know its address then, and waits a minute."""

    def __init__(self, server: _Server, context: ssl.SSLContext) -> None:
        self._server = server
        self._context = context
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake; the oldest one of an address with too many makes room."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        # What comes belongs to the handshake.
        transport.pause_reading()
        peer = peer_of(transport.get_extra_info("peername"))
        waiting = self._server.handshakes.setdefault(peer, {})
        if len(waiting) >= MAX_HANDSHAKES:
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.abort()
        waiting[transport] = None
        self._task = asyncio.get_running_loop().create_task(self._encrypt(transport, peer))

    async def _encrypt(self, transport: asyncio.Transport, peer: str) -> None:
        early = _Early()
        encrypted: asyncio.Transport | None = None
        try:
            encrypted = await asyncio.get_running_loop().start_tls(
                transport, early, self._context, server_side=True, ssl_handshake_timeout=HEAD_SECONDS
            )
        except (OSError, RuntimeError) as error:
            # Any client can cause this, so it is not logged.
            log.debug("no TLS with %s: %s", peer, error)
        finally:
            waiting = self._server.handshakes.get(peer, {})
            waiting.pop(transport, None)
            if not waiting:
                self._server.handshakes.pop(peer, None)
            if encrypted is None:
                transport.abort()
        if encrypted is None or early.is_lost or transport.is_closing():
            return
        connection = self._server.connection()
        encrypted.set_protocol(connection)
        connection.connection_made(encrypted)
        for data in early.data:
            connection.data_received(data)


class _Server(web.Server):
    def __init__(self, limit: int, context: ssl.SSLContext | None, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limit = limit
        self.handshakes: dict[str, dict[asyncio.Transport, None]] = {}
        """Connections that are not encrypted yet, by address, in the order in which they came."""
        self._context = context
        # By address, in the order in which they last asked for something.
        self._counted: dict[str, dict[_Connection, None]] = {}
        self._ended: deque[tuple[_Connection, BaseException | None]] = deque()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def __call__(self) -> Any:
        """The protocol of a connection that is accepted."""
        return self.connection() if self._context is None else _Handshake(self, self._context)

    def connection(self) -> _Connection:
        """The protocol of a connection that speaks HTTP."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    def admit(self, connection: _Connection) -> bool:
        """Count a connection; False if its address has as many as it may, and each is being answered."""
        counted = self._counted.setdefault(connection.peer, {})
        if len(counted) >= self.limit:
            # Between requests is better than never having asked for anything.
            waiting = next((other for other in counted if other.is_unfinished), None)
            waiting = waiting or next((other for other in counted if other.is_waiting), None)
            if waiting is None:
                return False
            self.uncount(waiting, waiting.peer)
            waiting.force_close()
            counted = self._counted.setdefault(connection.peer, {})
        counted[connection] = None
        return True

    def used(self, connection: _Connection) -> None:
        """A request has come: the connection is the last one that has to make room."""
        counted = self._counted.get(connection.peer, {})
        if connection in counted:
            del counted[connection]
            counted[connection] = None

    def ended(self, connection: _Connection, exc: BaseException | None) -> None:
        """Take a connection apart that has ended, `AT_ONCE` in a turn of the event loop."""
        if not self._ended:
            self._loop.call_soon(self._take_apart)
        self._ended.append((connection, exc))

    def _take_apart(self, most: int = AT_ONCE) -> None:
        for _ in range(min(most, len(self._ended))):
            connection, exc = self._ended.popleft()
            connection.take_apart(exc)
        if self._ended:
            self._loop.call_soon(self._take_apart)

    def uncount(self, connection: _Connection, peer: str) -> None:
        """Forget a connection."""
        counted = self._counted.get(peer)
        if counted is not None:
            counted.pop(connection, None)
            if not counted:
                del self._counted[peer]

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in self.connections:
            if isinstance(connection, _Connection):
                connection.check(now)
        self._timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's own
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
        self._take_apart(len(self._ended))
        for waiting in self.handshakes.values():
            for transport in waiting:
                transport.abort()
        await super().shutdown(timeout)


class Runner(web.AppRunner):
    """Serves an application to bounded connections that answer everything with problems.

    ``max_connections_per_peer`` is how many connections one address may have, streams not counted. ``tls`` encrypts
    them: it is given here, not to the site that listens.
    """

    def __init__(
        self, app: web.Application, *, max_connections_per_peer: int, tls: ssl.SSLContext | None = None, **options: Any
    ) -> None:
        super().__init__(app, keepalive_timeout=KEEPALIVE_SECONDS, lingering_time=LINGERING_SECONDS, **options)
        self._limit = max_connections_per_peer
        self._tls = tls

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            self._limit, self._tls, server.request_handler, request_factory=server.request_factory, **server._kwargs
        )


class Site(web.TCPSite):
    """Listens for connections: `BACKLOG` may wait, and `AT_ONCE` of them are accepted in a turn of the event loop."""

    def __init__(self, runner: Runner, host: str, port: int) -> None:
        super().__init__(runner, host, port, reuse_address=True, backlog=AT_ONCE)

    async def start(self) -> None:
        """Listen; raises `OSError` where the address is not available."""
        await super().start()
        # asyncio takes one number for two things: how many may wait, and how many it accepts in one turn.
        for listening in self._sockets():
            with listening.dup() as copy:
                copy.listen(BACKLOG)

    @property
    def bound_port(self) -> int:
        """The port that it listens on."""
        return int(self._sockets()[0].getsockname()[1])

    def _sockets(self) -> Sequence[Any]:
        assert isinstance(self._server, asyncio.Server)  # noqa: S101 - it was started
        return self._server.sockets


def raise_descriptor_limit() -> None:
    """Let the process open as many files and sockets as it may, up to `MAX_DESCRIPTORS`; the default is often 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
