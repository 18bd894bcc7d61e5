"""Access tokens: their rows. Only a SHA-256 digest of a token is stored.

That is enough because tokens are 256 random bits, not words that people choose: there is nothing to try out.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from tachograph.identity import new_id
from tachograph_exporter.store.schema import access_tokens, workspaces

TOKEN_PREFIX: Final = "tgr_"  # noqa: S105 - how ours begin, so that scanners for leaked secrets find them

_tokens = access_tokens.c


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
    return connection.execute(select(_tokens.id).where(is_valid_at(time.time_ns())).limit(1)).first() is not None


def is_valid_at(now_ns: int) -> Any:
    return _tokens.revoked_ns.is_(None) & (_tokens.expires_ns.is_(None) | (_tokens.expires_ns > now_ns))


READ: Final = "read"
WRITE: Final = "write"
INGEST: Final = "ingest"
ADMIN: Final = "admin"
SCOPES: Final = (READ, WRITE, INGEST, ADMIN)
"""What a token can be allowed: to look, to change and run, to send telemetry, and (with all of these) to manage."""
