"""Access control: identifies the caller by its token and checks the scope that the route requires."""

from __future__ import annotations

import base64
import hmac
import time
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph_exporter.api import problems
from tachograph_exporter.api.caller import CALLER, FULL_ACCESS, Caller
from tachograph_exporter.api.problems import Handler
from tachograph_exporter.api.request import CONFIG, check_texts
from tachograph_exporter.api.routes import ROUTE_BY_HANDLER, SAFE_METHODS, Route
from tachograph_exporter.config import Config, is_loopback
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.store.tokens import digest, valid_token

BEARER_PROTOCOL: Final = "tachograph.bearer."
"""Prefix of the WebSocket subprotocol that carries a token in base64url (RFC 4648, section 5)."""
_OWN_SITES: Final = ("same-origin", "none")
"""What ``Sec-Fetch-Site`` says of a service's own page, and of a request that no page sent (Fetch Metadata)."""
_OF_ALL_WORKSPACES: Final = ("/metrics", "/api/queues", "/api/notices/test")
"""What these tell belongs to no workspace: no token that is bound to one may read it."""
PATH_TOKEN: Final = "ping_token"  # noqa: S105 - the name of the part
"""The part of a path that carries a token, for programs that can do nothing but fetch a URL."""
CACHE_SECONDS: Final = 2.0
"""How long a token lookup is cached. Revoking a token through this service takes effect at once."""
_MAX_CACHED: Final = 1000


def find_caller(connection: Connection, token: str) -> Caller | None:
    """The caller that a token identifies, or None when the token is unknown, expired or revoked."""
    row = valid_token(connection, token)
    return Caller(frozenset(row.scopes.split()), row.workspace_id, row.name) if row is not None else None


class Authenticator:
    """Finds the caller of a request by its token."""

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._database = database
        self._cache: dict[str, tuple[float, Caller]] = {}

    def clear_cache(self) -> None:
        """Look every token up again, because one was revoked."""
        self._cache.clear()

    async def caller(self, request: web.Request) -> Caller | None:
        """The caller identified by the request's token, or None without a token. Raises 401 for an invalid one."""
        header = request.headers.get("Authorization") or _websocket_authorization(request)
        if header is None and (token := request.match_info.get(PATH_TOKEN)):
            header = f"Bearer {token}"
        return await self.identified(header)

    async def identified(self, header: str | None) -> Caller | None:
        """The caller that an ``Authorization`` header identifies, or None without one. Raises 401 as `caller` does."""
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise problems.unauthorized()
        configured = self._config.token
        if configured is not None and hmac.compare_digest(token.encode(), configured.encode()):
            return FULL_ACCESS
        now = time.monotonic()
        key = digest(token)
        if (cached := self._cache.get(key)) is not None and cached[0] > now:
            return cached[1]
        caller = await self._database.read(lambda c: find_caller(c, token), Lane.VITAL)
        if caller is None:
            raise problems.unauthorized("the token is not valid: unknown, expired or revoked")
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[key] = (now + CACHE_SECONDS, caller)
        return caller


AUTHENTICATOR: Final = web.AppKey("authenticator", Authenticator)


def _websocket_authorization(request: web.Request) -> str | None:
    """The token sent as a WebSocket subprotocol: a browser cannot set headers on a WebSocket."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return None
    for offer in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
        protocol = offer.strip()
        if protocol.startswith(BEARER_PROTOCOL):
            text = protocol.removeprefix(BEARER_PROTOCOL)
            try:
                return "Bearer " + base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except ValueError:
                raise problems.unauthorized(f"the subprotocol {BEARER_PROTOCOL}… is not a token in base64url") from None
    return None


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request through if it is no foreign page's and its caller has the scope that the route requires.

    A request without a token is accepted only where none is required, and only if it names this machine as its host
    (against DNS rebinding).
    """
    check_texts(request)
    config = request.app[CONFIG]
    route = request.app[ROUTE_BY_HANDLER].get(request.match_info.handler)
    is_open = route is not None and (route.scope is None or (route.path == "/metrics" and config.open_metrics))
    if route.is_closed_to_foreign_pages if route is not None else request.method not in SAFE_METHODS:
        _check_origin(request)
    caller = None if is_open else await request.app[AUTHENTICATOR].caller(request)
    if caller is None:
        if config.needs_token and not is_open:
            raise problems.unauthorized()
        if route is not None and route.needs_token:
            raise problems.unauthorized("send an admin token, or use `tachograph tokens create` and `tokens revoke`")
        if not config.needs_token and not config.is_insecure:
            _check_host(request, config)
        caller = FULL_ACCESS
    if route is not None and route.scope is not None and not caller.may(route.scope):
        raise problems.forbidden(f'the token does not have the scope "{route.scope}"')
    if route is not None and route.path in _OF_ALL_WORKSPACES and caller.workspace_id is not None:
        raise problems.forbidden(f"{route.path} covers all workspaces, and the token is bound to one")
    if route is not None:
        _check_media_type(request, route)
    request[CALLER] = caller
    return await handler(request)


def _check_origin(request: web.Request) -> None:
    """Refuse pages of other sites, also those on another port of this machine.

    Browsers let a page of any site send requests here and open streams, but say whose it is: in ``Origin``, in
    ``Sec-Fetch-Site``, or in both, which no page can change. Other programs send neither.
    """
    host = request.headers.get("Host", "").lower()
    for origin in request.headers.getall("Origin", ()):
        if not host or origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise problems.foreign_page(origin[:200] or "another site")
    if any(site not in _OWN_SITES for site in request.headers.getall("Sec-Fetch-Site", ())):
        raise problems.foreign_page("another site")


def _check_media_type(request: web.Request, route: Route) -> None:
    """Refuse a body that does not say that it is JSON: pages send anything else without asking first.

    Routes with further media types check the type themselves, because they answer in the sender's.
    """
    if route.method in SAFE_METHODS or route.media or route.takes_text:
        return
    is_expected = route.body is not None and not route.body_is_optional
    if (is_expected or request.body_exists) and request.content_type != "application/json":
        raise problems.not_json(request.headers.get("Content-Type", ""))


def _check_host(request: web.Request, config: Config) -> None:
    # Names compare without case, and may end with a dot (RFC 1034, section 3.1).
    host = request.headers.get("Host", "").lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]") if host.startswith("[") else name.removesuffix(".")
    if name != config.host.lower() and not is_loopback(name):
        raise problems.wrong_host(name)
