"""Who may do what: tokens with scopes, bound to a workspace or to none; and the guard at the door.

Only a SHA-256 digest of a token is stored. That is enough because tokens are 256 random bits, not words that people
choose: there is nothing to try out.
"""

from __future__ import annotations

import base64
import hmac
import time
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection, select

from tachograph.clock import NS
from tachograph_exporter.api import problems
from tachograph_exporter.api.problems import Handler
from tachograph_exporter.api.routes import Route
from tachograph_exporter.config import Config, is_loopback
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import access_tokens
from tachograph_exporter.store.tokens import ADMIN, SCOPES, digest, is_valid_at

_tokens = access_tokens.c
BEARER: Final = "tachograph.bearer."
"""Begins the WebSocket subprotocol whose rest is a token in base64url (RFC 4648, 5)."""
KNOWN_SECONDS: Final = 2.0
"""How long a token that was looked up is taken to be as it was; revoking it here takes effect at once."""
_KNOWN_LIMIT: Final = 1000


class Caller(msgspec.Struct, frozen=True):
    """Who calls: what it may do, and in which workspace (id; None: in all)."""

    scopes: frozenset[str]
    workspace_id: str | None = None
    name: str = ""

    def may(self, scope: str) -> bool:
        """Whether it has the scope; ``admin`` has all."""
        return scope in self.scopes or ADMIN in self.scopes


EVERYTHING: Final = Caller(frozenset(SCOPES))
CALLER: Final = web.RequestKey("caller", Caller)


def find_token(connection: Connection, token: str) -> Caller | None:
    """Who a token makes its bearer, or None when it is worth nothing."""
    row = connection.execute(
        select(access_tokens).where(_tokens.digest == digest(token), is_valid_at(time.time_ns()))
    ).first()
    return Caller(frozenset(row.scopes.split()), row.workspace_id, row.name) if row is not None else None


class Doorkeeper:
    """Finds out who calls."""

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._database = database
        self._known: dict[str, tuple[float, Caller]] = {}

    def forget(self) -> None:
        """Look every token up again: one was revoked."""
        self._known.clear()

    async def caller(self, request: web.Request) -> Caller | None:
        """Whose token the request carries, if it carries one. Raises 401 for one that is worth nothing."""
        header = request.headers.get("Authorization") or _offered(request)
        if header is None:
            return None
        scheme, _, given = header.partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise problems.unauthorized()
        own = self._config.token
        if own is not None and hmac.compare_digest(given.encode(), own.encode()):
            return EVERYTHING
        now = time.monotonic()
        key = digest(given)
        if (known := self._known.get(key)) is not None and known[0] > now:
            return known[1]
        found = await self._database.read(lambda c: find_token(c, given))
        if found is None:
            raise problems.unauthorized("the token is not valid: unknown, expired or revoked")
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[key] = (now + KNOWN_SECONDS, found)
        return found


def _offered(request: web.Request) -> str | None:
    """The token that a browser offers as a WebSocket subprotocol, for it cannot send a header."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return None
    for offered in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
        name = offered.strip()
        if name.startswith(BEARER):
            text = name.removeprefix(BEARER)
            try:
                return "Bearer " + base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except ValueError:
                raise problems.unauthorized(f"the subprotocol {BEARER}… is not a token in base64url") from None
    return None


DOORKEEPER: Final = web.AppKey("doorkeeper", Doorkeeper)
ROUTE_OF: Final = web.AppKey("route_of", dict[Handler, Route])
GUARDED: Final = web.AppKey("guarded", Config)


def caller_of(request: web.Request) -> Caller:
    """Who calls."""
    return request[CALLER]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in whoever may.

    Without a token only requests that name this machine are answered (no DNS rebinding), and only where no token is
    asked for.
    """
    config = request.app[GUARDED]
    route = request.app[ROUTE_OF].get(request.match_info.handler)
    is_open = route is not None and (route.scope is None or (route.path == "/metrics" and config.open_metrics))
    caller = None if is_open else await request.app[DOORKEEPER].caller(request)
    if caller is None:
        if config.needs_token and not is_open:
            raise problems.unauthorized()
        if not config.needs_token and not config.is_insecure:
            _check_host(request, config)
        caller = EVERYTHING
    if route is not None and route.scope is not None and not caller.may(route.scope):
        raise problems.forbidden(f'the token does not have the scope "{route.scope}"')
    if route is not None and not route.in_workspace and caller.workspace_id is not None and route.path == "/metrics":
        raise problems.forbidden("/metrics tells of all workspaces, and the token is for one")
    request[CALLER] = caller
    return await handler(request)


def _check_host(request: web.Request, config: Config) -> None:
    host = (request.headers.get("Host") or "").rpartition("@")[2]
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]")
    if name and name != config.host and not is_loopback(name):
        raise problems.wrong_host(name)


def expiry(days: float | None) -> int | None:
    """Unix nanoseconds so many days from now."""
    return None if days is None else time.time_ns() + round(days * 86_400 * NS)
