"""Workspaces, projects and tokens: request and response types."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class WorkspaceInfo(msgspec.Struct, kw_only=True):
    """A workspace."""

    id: str
    slug: str
    name: str
    created_at: str


class ProjectInfo(msgspec.Struct, kw_only=True):
    """A project of a workspace."""

    id: str
    slug: str
    name: str
    workspace_id: str
    created_at: str


class NewWorkspace(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A workspace or project to create. The slug is its name in URLs and cannot be changed."""

    slug: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?$")]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


class NewToken(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A token to create. Without ``workspace`` it is valid for all workspaces."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    scopes: Annotated[list[Literal["read", "write", "ingest", "admin"]], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["read"]
    )
    workspace: str | None = None
    expires_in_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] | None = None


class TokenInfo(msgspec.Struct, kw_only=True):
    """A token, without its secret. ``state`` is active, expired or revoked."""

    id: str
    name: str
    scopes: list[str]
    workspace: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    state: str


class CreatedToken(TokenInfo, kw_only=True):
    """A new token with its secret, which is shown only this once."""

    token: str
