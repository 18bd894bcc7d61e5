"""The header ``Idempotency-Key``: a request that is sent again gets the same answer, and nothing is done twice.

Format: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/. Keys belong to the caller and its
workspace. Only successes are stored: a request that failed did nothing, and may be sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.errors import Fault
from tachograph_exporter.api import problems
from tachograph_exporter.api.caller import caller_of
from tachograph_exporter.api.request import DATABASE
from tachograph_exporter.store import idempotency
from tachograph_exporter.store.idempotency import Answer, KeyedRequest, KeyReused

HEADER: Final = "Idempotency-Key"
MAX_LENGTH: Final = 255
REPLAYED: Final = "Idempotency-Replayed"
"""A header of answers that an earlier request got already."""


def keyed_request(request: web.Request, body: bytes, workspace_id: str = "") -> KeyedRequest | None:
    """The request's key and what it belongs to; None without a key. Raises 422 if the key is not valid."""
    keys = request.headers.getall(HEADER, ())
    if not keys:
        return None
    key = keys[0].strip().strip('"')
    if len(keys) > 1 or not 1 <= len(key) <= MAX_LENGTH or not key.isascii() or not key.isprintable():
        fault = Fault("invalid", HEADER, f"expected one key of 1 to {MAX_LENGTH} printable ASCII characters")
        raise problems.invalid_parameters([fault])
    parts = (request.method, request.path_qs, request.headers.get("X-Project-Id", ""))
    fingerprint = hashlib.sha256("\0".join(parts).encode() + b"\0" + body).hexdigest()
    caller = caller_of(request)
    return KeyedRequest(f"{caller.workspace_id or workspace_id}/{caller.name}"[:300], key, fingerprint)


def answer(value: Any, status: int, location: str | None = None, etag: str | None = None) -> Answer:
    """``value`` as a JSON answer that can be stored."""
    return Answer(status, msgspec.json.encode(value), location, etag)


def respond(answer: Answer, *, is_replayed: bool = False) -> web.Response:
    """The response with an answer."""
    headers = {"Location": answer.location} if answer.location is not None else {}
    if answer.etag is not None:
        headers["ETag"] = answer.etag
    if is_replayed:
        headers[REPLAYED] = "true"
    return web.Response(body=answer.body, status=answer.status, content_type="application/json", headers=headers)


async def find_answer(request: web.Request, keyed: KeyedRequest) -> Answer | None:
    """The answer that an earlier request got. Raises 422 if the key was sent before with another request."""
    try:
        return await request.app[DATABASE].read(lambda c: idempotency.find(c, keyed))
    except KeyReused as error:
        raise problems.key_reused(error) from None


async def once(request: web.Request, keyed: KeyedRequest | None, work: Callable[[Connection], Answer]) -> web.Response:
    """Call ``work`` in a transaction and respond with its answer, or with the one that an earlier request got.

    Raises 422 if the key was sent before with another request.
    """

    def transaction(connection: Connection) -> tuple[Answer, bool]:
        if keyed is None:
            return work(connection), False
        earlier = idempotency.find_for_update(connection, keyed)
        if earlier is not None:
            return earlier, True
        new = work(connection)
        idempotency.remember(connection, keyed, new)
        return new, False

    try:
        given, is_replayed = await request.app[DATABASE].write(transaction)
    except KeyReused as error:
        raise problems.key_reused(error) from None
    return respond(given, is_replayed=is_replayed)
