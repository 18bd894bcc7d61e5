"""Who may do what: tokens with scopes, bound to a workspace or to none; and the guard at the door.

Only a SHA-256 digest of a token is stored. That is enough because tokens are 256 random bits, not words that people
choose: there is nothing to try out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Any, Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection, Row, insert, select, update

from tachograph.events import NS, new_id
from tachograph.exporter.api import errors
from tachograph.exporter.api.errors import Handler
from tachograph.exporter.api.routes import ADMIN, SCOPES, Route
from tachograph.exporter.config import Config, is_loopback
from tachograph.exporter.store.database import Database
from tachograph.exporter.store.schema import access_tokens, workspaces

TOKEN_PREFIX: Final = "tgr_"  # noqa: S105 - how ours begin, so that scanners for leaked secrets find them
BEARER: Final = "tachograph.bearer."
"""Begins the WebSocket subprotocol whose rest is a token in base64url (RFC 4648, 5)."""
KNOWN_SECONDS: Final = 2.0
"""How long a token that was looked up is taken to be as it was; revoking it here takes effect at once."""
_KNOWN_LIMIT: Final = 1000

_tokens = access_tokens.c


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


def digest(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def create_token(
    connection: Connection,
    *,
    name: str,
    scopes: list[str],
    workspace_id: str | None = None,
    expires_ns: int | None = None,
) -> tuple[str, str]:
    """(id, token) of a new token. The token is not stored and cannot be shown again."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    identifier = new_id()
    connection.execute(
        insert(access_tokens).values(
            id=identifier,
            digest=digest(token),
            name=name,
            scopes=" ".join(scope for scope in SCOPES if scope in scopes),
            workspace_id=workspace_id,
            created_ns=time.time_ns(),
            expires_ns=expires_ns,
        )
    )
    return identifier, token


def tokens(connection: Connection, workspace_id: str | None = None) -> list[Row[Any]]:
    """All tokens (or those of a workspace), newest first, with their workspace's slug."""
    statement = (
        select(access_tokens, workspaces.c.slug.label("workspace"))
        .outerjoin(workspaces, workspaces.c.id == _tokens.workspace_id)
        .order_by(_tokens.created_ns.desc())
    )
    if workspace_id is not None:
        statement = statement.where(_tokens.workspace_id == workspace_id)
    return list(connection.execute(statement))


def revoke_token(connection: Connection, identifier: str, workspace_id: str | None = None) -> bool:
    """Make a token worthless from now on; False when there is none with that id (in the workspace, if one is given)."""
    wanted = _tokens.id == identifier
    if workspace_id is not None:
        wanted &= _tokens.workspace_id == workspace_id
    found = connection.execute(select(_tokens.id).where(wanted)).first()
    if found is not None:
        still = wanted & _tokens.revoked_ns.is_(None)
        connection.execute(update(access_tokens).where(still).values(revoked_ns=time.time_ns()))
    return found is not None


def any_token(connection: Connection) -> bool:
    """Whether there is a token that is valid now."""
    return connection.execute(select(_tokens.id).where(_valid(time.time_ns())).limit(1)).first() is not None


def _valid(now_ns: int) -> Any:
    return _tokens.revoked_ns.is_(None) & (_tokens.expires_ns.is_(None) | (_tokens.expires_ns > now_ns))


def find_token(connection: Connection, token: str) -> Caller | None:
    """Who a token makes its bearer, or None when it is worth nothing."""
    row = connection.execute(
        select(access_tokens).where(_tokens.digest == digest(token), _valid(time.time_ns()))
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
            raise errors.unauthorized()
        own = self._config.token
        if own is not None and hmac.compare_digest(given.encode(), own.encode()):
            return EVERYTHING
        now = time.monotonic()
        key = digest(given)
        if (known := self._known.get(key)) is not None and known[0] > now:
            return known[1]
        found = await self._database.read(lambda c: find_token(c, given))
        if found is None:
            raise errors.unauthorized("the token is not valid: unknown, expired or revoked")
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
                raise errors.unauthorized(f"the subprotocol {BEARER}… is not a token in base64url") from None
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
            raise errors.unauthorized()
        if not config.needs_token and not config.is_insecure:
            _check_host(request, config)
        caller = EVERYTHING
    if route is not None and route.scope is not None and not caller.may(route.scope):
        raise errors.forbidden(f'the token does not have the scope "{route.scope}"')
    if route is not None and not route.in_workspace and caller.workspace_id is not None and route.path == "/metrics":
        raise errors.forbidden("/metrics tells of all workspaces, and the token is for one")
    request[CALLER] = caller
    return await handler(request)


def _check_host(request: web.Request, config: Config) -> None:
    host = (request.headers.get("Host") or "").rpartition("@")[2]
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]")
    if name and name != config.host and not is_loopback(name):
        raise errors.wrong_host(name)


def expiry(days: float | None) -> int | None:
    """Unix nanoseconds so many days from now."""
    return None if days is None else time.time_ns() + round(days * 86_400 * NS)
