"""OTLP/gRPC ingest (https://opentelemetry.io/docs/specs/otlp/#otlpgrpc): another door to what ``/v1/traces`` does.

Requests are taken as bytes, because they are read where those of OTLP/HTTP are. A call is identified before its message
is read. Messages are decompressed here: gRPC bounds only their compressed size.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

# gRPC writes to stderr what any client can cause; its log level is read at the import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc
from grpc import StatusCode

from tachograph.errors import StoreUnavailable, TachographError
from tachograph.quiet_log import QuietLog
from tachograph_exporter.api import encodings, problems
from tachograph_exporter.api.caller import FULL_ACCESS
from tachograph_exporter.api.connections import HEAD_SECONDS, KEEPALIVE_SECONDS
from tachograph_exporter.api.exports import BUSY, EXPORTS, FAILED, GRPC, REFUSED, STORED, UNAVAILABLE, Exports
from tachograph_exporter.api.grpc_reads import READ_SECONDS, NoTurn, Reads
from tachograph_exporter.api.guard import AUTHENTICATOR
from tachograph_exporter.api.problems import Problem
from tachograph_exporter.api.request import CONFIG, Workspace, is_text, named_workspace
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.ingest.envelope import BadRequest
from tachograph_exporter.ingest.signals import SIGNALS, Signal
from tachograph_exporter.store.tokens import INGEST

quiet = QuietLog(logging.getLogger(__name__))

MAX_CALLS: Final = 1_000
"""Calls that are being answered; further ones are told to retry."""
MAX_CONNECTIONS: Final = 4_000
"""Connections to the address, of all clients."""
MAX_STREAMS: Final = 100
"""Calls on one connection."""
_HARD_LIMIT: Final = 2 * MAX_CALLS
_PING_SECONDS: Final = 60.0
_MIN_PING_SECONDS: Final = 5.0
_GZIP: Final = b"\x1f\x8b"
"""How gzip begins (RFC 1952, section 2.3.1), and no message does: 0x1f would be a field of wire type 7."""
_NONE_OR_GZIP: Final = 0b101
_READ_KEYS: Final = ("authorization", "origin", "x-workspace-id", "x-workspace-slug")
_CODES: Final[Mapping[int, StatusCode]] = {
    401: StatusCode.UNAUTHENTICATED, 403: StatusCode.PERMISSION_DENIED, 404: StatusCode.NOT_FOUND
}  # fmt: skip
"""The gRPC status for the status of a problem."""


class CannotBind(TachographError):
    """The address for OTLP/gRPC is not available."""


class _Failure:
    """The status that a call ends with; ``retry_seconds``: when it may be tried again, if it may."""

    def __init__(self, outcome: str, code: StatusCode, why: str, retry_seconds: int = 0) -> None:
        self.outcome = outcome
        self.code = code
        self.why = why
        self.retry_seconds = retry_seconds

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """``google.rpc.Status`` with a ``RetryInfo``, as OTLP asks for it (section "OTLP/gRPC Throttling")."""
        if not self.retry_seconds:
            return ()
        info = RetryInfo(retry_delay=Duration(seconds=self.retry_seconds))
        detail = AnyMessage()
        detail.Pack(info)
        status = Status(code=self.code.value[0], message=self.why, details=[detail])
        # Python's exporter looks for the bare message.
        return (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("google.rpc.retryinfo-bin", info.SerializeToString()),
        )


class GrpcDoor:
    """Takes exports on the address ``config.otlp_grpc`` for the service whose application is ``app``."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._config: Config = app[CONFIG]
        self._exports: Exports = app[EXPORTS]
        self._reads = Reads()
        self.calls = 0
        """Calls that are being answered."""
        self._server: Any = None
        self.port = 0

    @property
    def address(self) -> str:
        """What exporters take as their endpoint."""
        assert self._config.otlp_grpc is not None  # noqa: S101
        return f"{self._config.scheme}://{_joined(self._config.otlp_grpc[0], self.port)}"

    async def start(self) -> None:
        """Listen. Raises `CannotBind` or `ConfigError`."""
        config = self._config
        assert config.otlp_grpc is not None  # noqa: S101
        host, port = config.otlp_grpc
        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=_HARD_LIMIT)
        server.add_generic_rpc_handlers((_Handlers(self._export),))
        credentials = _credentials(config)
        where = _joined(host, port)
        try:
            if credentials is None:
                self.port = server.add_insecure_port(where)
            else:
                self.port = server.add_secure_port(where, credentials)
        except RuntimeError:
            await server.stop(0)
            raise CannotBind(f"cannot listen on {where} for OTLP/gRPC: {_why_not(host, port)}") from None
        self._server = server
        await server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls; those that are being answered have some seconds to end."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(seconds)

    def _options(self) -> list[tuple[str, int]]:
        def milliseconds(seconds: float) -> int:
            return round(seconds * 1_000)

        return [
            # Two services must not share a port unnoticed.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._config.max_otlp_body_bytes),
            ("grpc.per_message_decompression", 0),
            ("grpc.compression_enabled_algorithms_bitset", _NONE_OR_GZIP),
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            ("grpc.server_handshake_timeout_ms", milliseconds(HEAD_SECONDS)),
            ("grpc.max_connection_idle_ms", milliseconds(KEEPALIVE_SECONDS)),
            # Bytes of calls that wait stay with their senders.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.keepalive_time_ms", milliseconds(_PING_SECONDS)),
            ("grpc.keepalive_timeout_ms", milliseconds(HEAD_SECONDS)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", milliseconds(_MIN_PING_SECONDS)),
        ]

    async def _export(self, signal: Signal, context: Any) -> bytes:
        outcome = FAILED
        self.calls += 1
        try:
            try:
                answer = await self._answer(signal, context)
                outcome = STORED
                return answer
            except Exception as error:
                failure = _failure_of(error)
            outcome = failure.outcome
            await context.abort(failure.code, failure.why, failure.trailers())
            raise AssertionError("a call that was aborted goes on")
        finally:
            self.calls -= 1
            self._exports.count(GRPC, signal.name, outcome)

    async def _answer(self, signal: Signal, context: Any) -> bytes:
        if self.calls > MAX_CALLS:
            raise encodings.NoRoom
        workspace = await self._workspace(context)
        limit = self._config.max_otlp_body_bytes
        with self._exports.room() as room:
            async with self._reads.turn():
                body = await context.read()
            if body is grpc.aio.EOF:
                raise BadRequest("the call has no message")
            if not room.reserve(len(body)):
                raise encodings.NoRoom
            if body.startswith(_GZIP):
                body = await encodings.decode(body, "gzip", limit, room.reserve)
            message = await self._exports.store(workspace, body, signal)
        encoded: bytes = message.SerializeToString()
        return encoded

    async def _workspace(self, context: Any) -> Workspace:
        """The workspace that a call is for. Raises a `Problem` if its caller may not write there."""
        sent = _metadata(context)
        if "origin" in sent:
            raise problems.foreign_page(sent["origin"])
        caller = await self._app[AUTHENTICATOR].identified(sent.get("authorization"))
        if caller is None:
            if self._config.needs_grpc_token:
                raise problems.unauthorized()
            caller = FULL_ACCESS
        if not caller.may(INGEST):
            raise problems.forbidden(f'the token does not have the scope "{INGEST}"')
        return await named_workspace(self._app, caller, sent.get("x-workspace-id"), sent.get("x-workspace-slug"))


GRPC_DOOR: Final = web.AppKey("grpc_door", GrpcDoor)


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a call by its method's name.

    The handlers are those of a stream: on the wire there is no difference, and they are called before the message is
    there.
    """

    def __init__(self, export: Callable[[Signal, Any], Awaitable[bytes]]) -> None:
        def handler(signal: Signal) -> Any:
            async def answer(_messages: Any, context: Any) -> bytes:
                return await export(signal, context)

            return grpc.stream_unary_rpc_method_handler(answer)

        self._by_method = {f"/{signal.service}/Export": handler(signal) for signal in SIGNALS}

    def service(self, handler_call_details: Any) -> Any:
        """The handler, or None: the call ends with UNIMPLEMENTED."""
        return self._by_method.get(handler_call_details.method)


def _failure_of(error: Exception) -> _Failure:
    """The status that tells a client what went wrong."""
    if isinstance(error, encodings.NoRoom | NoTurn):
        return _Failure(BUSY, StatusCode.RESOURCE_EXHAUSTED, "too many requests are waiting; retry later", 1)
    if isinstance(error, encodings.TooLarge):
        return _Failure(REFUSED, StatusCode.RESOURCE_EXHAUSTED, "the message is larger than the limit of this service")
    if isinstance(error, TimeoutError):
        return _Failure(REFUSED, StatusCode.DEADLINE_EXCEEDED, f"the message did not arrive within {READ_SECONDS:g} s")
    if isinstance(error, encodings.Unreadable):
        return _Failure(REFUSED, StatusCode.INVALID_ARGUMENT, f"the message cannot be read: {error}")
    if isinstance(error, BadRequest):
        return _Failure(REFUSED, StatusCode.INVALID_ARGUMENT, str(error))
    if isinstance(error, Problem) and error.status != 503:
        return _Failure(REFUSED, _CODES.get(error.status, StatusCode.INVALID_ARGUMENT), error.detail)
    if isinstance(error, StoreUnavailable | MemoryError | Problem):
        return _Failure(UNAVAILABLE, StatusCode.UNAVAILABLE, "the database is unavailable; retry later", 5)
    quiet.exception(type(error), "an export by gRPC failed")
    return _Failure(FAILED, StatusCode.INTERNAL, "unexpected error; the service's log has the details")


def _metadata(context: Any) -> dict[str, str]:
    """What a call says of itself, the first value of each key. Raises a `Problem` for what is no text."""
    sent: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if key not in _READ_KEYS:
            continue
        if not isinstance(value, str) or not is_text(value):
            raise problems.unreadable(f"the metadata {key}", "is not text")
        sent.setdefault(key, value)
    return sent


def _credentials(config: Config) -> Any:
    """TLS with the service's certificate; None without. Raises `ConfigError`."""
    if config.certificate is None:
        return None
    try:
        chain = config.certificate.read_bytes()
        key = config.key.read_bytes() if config.key is not None else chain
    except OSError as error:
        raise ConfigError(f"cannot use {config.certificate} for TLS: {error}") from None
    return grpc.ssl_server_credentials([(key, chain)])


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int) -> str:
    """Why nobody can listen on an address: gRPC does not say it."""
    try:
        with contextlib.closing(socket.create_server((host, port), family=_family(host))):
            return "gRPC refuses it"
    except OSError as error:
        return error.strerror or str(error)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
