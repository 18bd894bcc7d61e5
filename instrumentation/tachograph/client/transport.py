"""Requests to a service, by the standard library.

Answers are few and may be long, so what counts is decoding them, and that nothing more has to be installed beside the
program that is looked at: a second HTTP library would be the largest part of it.
"""

from __future__ import annotations

import http.client
import os
import threading
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from tachograph.client.answers import Fault, ProblemDetails
from tachograph.client.errors import NotFound, ServiceProblem, ServiceUnreachable, UnexpectedAnswer
from tachograph.errors import SetupError
from tachograph.service_address import parse
from tachograph.variables import TOKEN_VARIABLE, URL_VARIABLE, WORKSPACE_VARIABLE
from tachograph.version import version

T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:9923"
TIMEOUT_SECONDS: Final = 60.0
MAX_BYTES: Final = 256 << 20
"""Size of an answer."""
_MAX_IDLE: Final = 4
_STALE: Final = (ConnectionError, http.client.BadStatusLine, http.client.CannotSendRequest)
"""What a connection that the service closed meanwhile raises."""

Values = Mapping[str, str | Iterable[str] | None]


class Transport:
    """Connections to one service, for any number of threads.

    Args:
        url: the service's URL (default: ``TACHOGRAPH_URL``, else the default port of this machine).
        token: sent with each request, unless empty (default: ``TACHOGRAPH_TOKEN``).
        workspace: slug of the workspace to read (default: ``TACHOGRAPH_WORKSPACE``, else that of the token).
        timeout_seconds: how long the service may be silent.

    Raises `SetupError` when the URL is not one of a service, or the token cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        workspace: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).strip().rstrip("/")
        scheme, self._host, self._port, self._base = parse(self.url)
        self._kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        token = (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).strip()
        if not (token.isascii() and token.isprintable()):
            raise SetupError(f"the token has characters that no token has; see {TOKEN_VARIABLE}")
        self._workspace = workspace or os.environ.get(WORKSPACE_VARIABLE) or None
        self._headers = {"Accept-Encoding": "gzip", "User-Agent": f"tachograph-client/{version()}"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = timeout_seconds
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, path: str, values: Values, kind: type[T]) -> T:
        """The answer to a request. Raises `ServiceProblem`, `ServiceUnreachable` and `UnexpectedAnswer`."""
        body = self.read(path, values)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UnexpectedAnswer(f"{self.url} answers what this client does not read: {error}") from None

    def read(self, path: str, values: Values) -> bytes:
        """The body of the answer to a request. Raises as `get` does."""
        given = {"workspace_slug": self._workspace, **values}
        pairs = [(name, item) for name, value in given.items() for item in _items(value)]
        target = f"{self._base}{path}{'?' if pairs else ''}{urllib.parse.urlencode(pairs)}"
        try:
            status, headers, body = self._exchange(target)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ServiceUnreachable(f"{self.url} does not answer: {reason}") from None
        if status != 200:
            raise self._problem(status, headers, body)
        return body

    def close(self) -> None:
        """Close the connections that are open; later requests open new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, target: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        if self._process != os.getpid():
            # A forked child has no use for its parent's connections.
            self._process, self._lock, self._idle = os.getpid(), threading.Lock(), []
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._ask(self._kind(self._host, self._port, timeout=self._timeout), target)
            try:
                return self._ask(connection, target)
            except _STALE:
                continue

    def _ask(self, connection: http.client.HTTPConnection, target: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            body = self._plain(_received(response), response.headers.get("Content-Encoding", ""))
        except BaseException:
            connection.close()
            raise
        with self._lock:
            is_kept = response.isclosed() and not response.will_close and len(self._idle) < _MAX_IDLE
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()
        return response.status, response.headers, body

    def _plain(self, body: bytes, encoding: str) -> bytes:
        if encoding == "gzip":
            try:
                body = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, MAX_BYTES + 1)
            except zlib.error as error:
                raise UnexpectedAnswer(f"{self.url} answers what cannot be decompressed: {error}") from None
        if len(body) > MAX_BYTES:
            raise UnexpectedAnswer(f"{self.url} answers with more than {MAX_BYTES >> 20} MiB; ask for less")
        return body

    def _problem(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> ServiceProblem | UnexpectedAnswer:
        try:
            problem = msgspec.json.decode(body, type=ProblemDetails)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return UnexpectedAnswer(f"{self.url} answers {status}, and not as Tachograph does; is it a proxy?")
        hint = f"; is the token right ({TOKEN_VARIABLE})?" if status == 401 else ""
        faults = "".join(f"; {_fault(fault)}" for fault in problem.errors)
        after = headers.get("Retry-After", "")
        seconds = float(after) if after.isascii() and after.isdecimal() else None
        message = f"{self.url} answers {status}, {problem.detail}{faults}{hint}"
        return (NotFound if status == 404 else ServiceProblem)(message, problem, seconds)


def _received(response: http.client.HTTPResponse) -> bytes:
    body = response.read(MAX_BYTES + 1)
    if response.length and len(body) <= MAX_BYTES:
        # With a limit, the standard library does not mind that a body ends early.
        raise http.client.IncompleteRead(body, response.length)
    return body


def _items(value: str | Iterable[str] | None) -> Iterable[str]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _fault(fault: Fault) -> str:
    return f"{fault.at}: {fault.message}" if fault.at else fault.message
