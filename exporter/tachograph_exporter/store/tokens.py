"""Rows of access tokens. Only a SHA-256 digest of a token is stored.

A plain digest is enough: tokens are 256 random bits, not passwords that people choose, so they cannot be guessed.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from tachograph.identity import new_id
from tachograph_exporter.store.schema import access_tokens, workspaces

TOKEN_PREFIX: Final = "tgr_"  # noqa: S105 - a prefix by which scanners for leaked secrets recognise ours

_tokens = access_tokens.c


def digest(token: str) -> str:
    """The digest of a token, as stored."""
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
    """Revoke a token. Returns False if no token (of the workspace, if given) has this id."""
    matches = _tokens.id == identifier
    if workspace_id is not None:
        matches &= _tokens.workspace_id == workspace_id
    exists = connection.execute(select(_tokens.id).where(matches)).first() is not None
    if exists:
        is_valid = matches & _tokens.revoked_ns.is_(None)
        connection.execute(update(access_tokens).where(is_valid).values(revoked_ns=time.time_ns()))
    return exists


def any_token(connection: Connection) -> bool:
    """Whether any token is valid now."""
    return connection.execute(select(_tokens.id).where(is_valid_at(time.time_ns())).limit(1)).first() is not None


def valid_token(connection: Connection, token: str) -> Row[Any] | None:
    """The row of a token, or None if the token is unknown, expired or revoked."""
    matches = (_tokens.digest == digest(token)) & is_valid_at(time.time_ns())
    return connection.execute(select(access_tokens).where(matches)).first()


def is_valid_at(now_ns: int) -> Any:
    """The SQL condition that a token is neither revoked nor expired."""
    return _tokens.revoked_ns.is_(None) & (_tokens.expires_ns.is_(None) | (_tokens.expires_ns > now_ns))


READ: Final = "read"
WRITE: Final = "write"
INGEST: Final = "ingest"
ADMIN: Final = "admin"
SCOPES: Final = (READ, WRITE, INGEST, ADMIN)
"""What a token may allow: reading, changing and running, sending telemetry; ``admin`` allows all and managing."""
