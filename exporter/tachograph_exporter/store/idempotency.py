"""Answers to requests that carry an Idempotency-Key, so that a repeated request gets the same answer and does nothing.

An answer is stored in the transaction that does what was asked for. It is kept for `KEEP_SECONDS`. The key itself is
not stored: its digest finds the answer, and the key unseals it, because the answer may hold the secret of a new token.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select

from tachograph.clock import NS
from tachograph.errors import TachographError
from tachograph_exporter.store import locking
from tachograph_exporter.store.schema import keyed_answers

KEEP_SECONDS: Final = 86_400.0

_answers = keyed_answers.c
_FIND: Final = select(_answers.fingerprint, _answers.status, _answers.nonce, _answers.answer).where(
    _answers.scope == bindparam("scope"),
    _answers.digest == bindparam("digest"),
    _answers.created_ns >= bindparam("since"),
)


class KeyReused(TachographError):
    """A key was sent again with another request."""


class KeyedRequest(NamedTuple):
    """A request with a key. ``scope``: whose keys these are. ``fingerprint``: what the request asks for."""

    scope: str
    key: str
    fingerprint: str

    @property
    def digest(self) -> str:
        """What finds the answer."""
        return hashlib.sha256(b"find\0" + self.key.encode()).hexdigest()


class Answer(NamedTuple):
    """An answer with a JSON ``body``. ``etag``: the entity tag of what was made."""

    status: int
    body: bytes
    location: str | None = None
    etag: str | None = None


def find(connection: Connection, request: KeyedRequest) -> Answer | None:
    """The answer that a request with this key got; None if there was none. Raises `KeyReused`."""
    since = time.time_ns() - round(KEEP_SECONDS * NS)
    parameters = {"scope": request.scope, "digest": request.digest, "since": since}
    row = connection.execute(_FIND, parameters).first()
    if row is None:
        return None
    if row.fingerprint != request.fingerprint:
        raise KeyReused(f"the key {request.key!r} was sent before with another request")
    body, location, etag = msgspec.msgpack.decode(
        _sealed(request.key, row.nonce, row.answer), type=tuple[bytes, str | None, str | None]
    )
    return Answer(row.status, body, location, etag)


def find_for_update(connection: Connection, request: KeyedRequest) -> Answer | None:
    """As `find`, in a transaction that goes on to do what is asked for: no other does it meanwhile."""
    locking.lock(connection)
    return find(connection, request)


def remember(connection: Connection, request: KeyedRequest, answer: Answer) -> None:
    """Store the answer to a request, in the transaction that does what it asks for."""
    nonce = secrets.token_bytes(16)
    sealed = _sealed(request.key, nonce, msgspec.msgpack.encode((answer.body, answer.location, answer.etag)))
    values = {
        "scope": request.scope, "digest": request.digest, "fingerprint": request.fingerprint,
        "status": answer.status, "nonce": nonce, "answer": sealed, "created_ns": time.time_ns(),
    }  # fmt: skip
    # One whose time is over may still be there.
    connection.execute(delete(keyed_answers).where(_answers.scope == request.scope, _answers.digest == request.digest))
    connection.execute(insert(keyed_answers), values)


def prune(connection: Connection) -> None:
    """Delete answers older than `KEEP_SECONDS`."""
    connection.execute(delete(keyed_answers).where(_answers.created_ns < time.time_ns() - round(KEEP_SECONDS * NS)))


def _sealed(key: str, nonce: bytes, data: bytes) -> bytes:
    """Data combined with a stream of bytes that only the key gives (SHAKE-256); doing it again gives the data."""
    stream = hashlib.shake_256(b"seal\0" + nonce + key.encode()).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")
