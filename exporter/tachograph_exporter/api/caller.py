"""Who sends a request: the scopes it has and the workspace it is bound to."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from tachograph_exporter.store.tokens import ADMIN, SCOPES


class Caller(msgspec.Struct, frozen=True):
    """The sender of a request. ``workspace_id`` is the only workspace it may use; None means all of them."""

    scopes: frozenset[str]
    workspace_id: str | None = None
    name: str = ""

    def may(self, scope: str) -> bool:
        """Whether the caller has the scope; ``admin`` includes every other."""
        return scope in self.scopes or ADMIN in self.scopes


FULL_ACCESS: Final = Caller(frozenset(SCOPES))
CALLER: Final = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """The caller that the guard identified."""
    return request[CALLER]
