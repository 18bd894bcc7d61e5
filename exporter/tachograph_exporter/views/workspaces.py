"""Workspaces, projects and tokens, from their rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.schemas.workspaces import ProjectInfo, TokenInfo, WorkspaceInfo


def workspace_info(row: Row[Any]) -> WorkspaceInfo:
    return WorkspaceInfo(id=row.id, slug=row.slug, name=row.name, created_at=rfc3339(row.created_ns))


def project_info(row: Row[Any]) -> ProjectInfo:
    return ProjectInfo(
        id=row.id, slug=row.slug, name=row.name, workspace_id=row.workspace_id, created_at=rfc3339(row.created_ns)
    )


def token_info(row: Row[Any], now_ns: int) -> TokenInfo:
    is_expired = row.expires_ns is not None and row.expires_ns <= now_ns
    return TokenInfo(
        id=row.id,
        name=row.name,
        scopes=row.scopes.split(),
        workspace=row.workspace,
        created_at=rfc3339(row.created_ns),
        expires_at=rfc3339_or_none(row.expires_ns),
        revoked_at=rfc3339_or_none(row.revoked_ns),
        state="revoked" if row.revoked_ns is not None else "expired" if is_expired else "active",
    )
