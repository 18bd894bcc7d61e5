"""The service as a store: events go to ``POST /api/events``, and are stored when it answers.

Only the standard library is used, so a worker needs neither the service's libraries nor the database's password.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import logging
import os
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from tachograph.errors import StoreUnavailable
from tachograph.event_batch import MAX_EVENTS, PATH, BatchAnswer, EventBatch, decode_answer, encode
from tachograph.events import Event
from tachograph.identity import DEFAULT_WORKSPACE, new_id
from tachograph.quiet_log import QuietLog
from tachograph.recording import fork_gate
from tachograph.service_address import parse
from tachograph.stacks.wishes import fulfil
from tachograph.variables import TOKEN_VARIABLE

quiet = QuietLog(logging.getLogger(__name__))

TIMEOUT_SECONDS: Final = 10.0
"""How long the service may take to answer."""
MAX_RETRY_SECONDS: Final = 60.0
"""The longest time that ``Retry-After`` is followed."""
_GZIP_BYTES: Final = 1_024
_ANSWER_BYTES: Final = 4 << 20
_AWAY: Final = frozenset({401, 403, 404, 405, 407, 408, 421, 425, 429})
"""Statuses that say nothing about the events: someone may create the token or the workspace, or there is more room."""


class ServiceUnavailable(StoreUnavailable):
    """The service cannot be reached, or does not take events now. ``retry_after_seconds``: what it asks for, or 0."""

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EventsRefused(Exception):
    """The service does not take events, and would not later either; the message says why."""


class ServiceStore:
    """A `BatchListener` that sends events to the service at ``url``.

    Args:
        url: the service's URL, such as ``http://host:9923``.
        token: sent with each request, unless empty (default: ``TACHOGRAPH_TOKEN``).

    Raises `SetupError` when the URL is not one of a service.
    """

    takes_folded: Final = False

    def __init__(self, url: str, token: str | None = None) -> None:
        scheme, host, port, path = parse(url)
        self._is_secure, self._host, self._port, self._path = scheme == "https", host, port, path + PATH
        self._token = os.environ.get(TOKEN_VARIABLE, "").strip() if token is None else token
        self._connection: http.client.HTTPConnection | None = None
        self._begin()

    def _begin(self) -> None:
        self._sender = new_id()
        self._sequence = 0
        self._last: Sequence[Event] | None = None

    def apply(self, events: Sequence[Event]) -> None:
        """Send a batch; it is committed when this returns.

        Raises `ServiceUnavailable` when the service cannot be reached or takes nothing now: then the same batch may be
        offered again. Raises `EventsRefused` when it does not take all of them. An empty batch only asks whether it is
        there.
        """
        if not events:
            self._send(encode(EventBatch(sender=self._sender, sequence=max(1, self._sequence), events=[])), "default")
            return
        if events is not self._last:
            # The same batch keeps its number: the answer to it may have been lost.
            self._last = events
            self._sequence += -(-len(events) // MAX_EVENTS)
        parts = range(0, len(events), MAX_EVENTS)
        first = self._sequence - len(parts) + 1
        for i, start in enumerate(parts):
            self.apply_batch(self._sender, first + i, events[start : start + MAX_EVENTS])
        self._last = None

    def apply_batch(self, sender: str, sequence: int, events: Sequence[Event]) -> None:
        """Send a batch under this sender's name and number. Raises as `apply` does."""
        by_workspace: dict[str, list[Event]] = {}
        for event in events:
            by_workspace.setdefault(event.execution.workspace, []).append(event)
        refused: list[str] = []
        for workspace, own in by_workspace.items():
            batch = EventBatch(sender=sender, sequence=sequence, events=own)
            answer = self._send(encode(batch), workspace)
            refused += [event.reason for event in answer.refused]
            fulfil(answer.stacks)
        if refused:
            raise EventsRefused(f"the service refused {len(refused)} of {len(events)} event(s): {refused[0]}")

    def _send(self, body: bytes, workspace: str) -> BatchAnswer:
        headers = {"Content-Type": "application/json", "User-Agent": "tachograph"}
        if len(body) >= _GZIP_BYTES:
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        # Who names no workspace means that of the token, or the service's own.
        if workspace != DEFAULT_WORKSPACE and workspace.isascii() and workspace.isprintable():
            headers["X-Workspace-Slug"] = workspace
        status, reason, data, retry_after = self._request(body, headers)
        if status == 200:
            try:
                return decode_answer(data)
            except (msgspec.MsgspecError, ValueError) as error:
                raise ServiceUnavailable(f"{self._place} is no Tachograph service: {error}") from None
        said = f"{self._place} answers {status} {reason}: {_detail(data)}"
        if status in _AWAY or status >= 500 or 300 <= status < 400:
            raise ServiceUnavailable(said, retry_after)
        raise EventsRefused(said)

    @property
    def _place(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._is_secure else 'http'}://{host}:{self._port}"

    def _request(self, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes, float]:
        """(status, reason, body, seconds of ``Retry-After``) of the answer."""
        is_new = self._connection is None
        try:
            return self._exchange(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if is_new:
                raise ServiceUnavailable(f"{self._place}: {str(error) or type(error).__name__}") from None
        # The service closes connections that are idle for a while.
        try:
            return self._exchange(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServiceUnavailable(f"{self._place}: {str(error) or type(error).__name__}") from None

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes, float]:
        connection = self._connection
        if connection is None:
            kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
            connection = self._connection = kind(self._host, self._port, timeout=TIMEOUT_SECONDS)
        connection.request("POST", self._path, body, headers)
        fork_gate.wait_for_answer(connection.sock, TIMEOUT_SECONDS)
        response = connection.getresponse()
        data = response.read(_ANSWER_BYTES)
        if response.will_close or not response.isclosed():
            self.close()
        return response.status, response.reason, data, _seconds(response.getheader("Retry-After"))

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connection alone, and count batches anew."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.sock is not None:
            _leave(connection.sock)
        self._begin()

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _leave(connection: socket.socket) -> None:
    """Close this process's end of what is its parent's, also where somebody was about to read from it."""
    with contextlib.suppress(OSError):
        os.close(connection.detach())


def is_service(url: str) -> bool:
    """Whether a URL is that of a service, rather than a database's."""
    return url.strip().lower().startswith(("http://", "https://"))


def open_service(url: str, *, token: str | None = None, wait_seconds: float = 0.0) -> ServiceStore:
    """The service at a URL, as `SpooledStore` opens it; it is connected to when there is something to send."""
    del wait_seconds
    return ServiceStore(url, token)


def _seconds(header: str | None) -> float:
    text = (header or "").strip()
    # A date is not followed: the clocks may differ.
    return min(float(text[:6]), MAX_RETRY_SECONDS) if text.isascii() and text.isdecimal() else 0.0


def _detail(data: bytes) -> str:
    try:
        problem = msgspec.json.decode(data)
        return str(problem["detail"])[:300]
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError):
        return data[:100].decode("utf-8", "replace")
