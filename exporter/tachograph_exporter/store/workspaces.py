"""Rows of workspaces and projects."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.identity import workspace_id
from tachograph_exporter.store.schema import projects, workspaces


def add_workspace(connection: Connection, slug: str, now_ns: int, name: str | None = None) -> str:
    """Ensure that a workspace has a row. Returns its id."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    identifier = workspace_id(slug)
    values = {"id": identifier, "slug": slug, "name": name or slug, "created_ns": now_ns}
    connection.execute(insert(workspaces).values(values).on_conflict_do_nothing())
    return identifier


def add_project(connection: Connection, workspace: str, slug: str, now_ns: int, name: str | None = None) -> None:
    """Ensure that a project has a row. ``workspace`` is a slug."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = {
        "id": workspace_id(f"{workspace}/{slug}"),
        "workspace_id": workspace_id(workspace),
        "slug": slug,
        "name": name or slug,
        "created_ns": now_ns,
    }
    connection.execute(insert(projects).values(values).on_conflict_do_nothing())


def workspace(connection: Connection, *, identifier: str | None = None, slug: str | None = None) -> Row[Any] | None:
    """A workspace by id or by slug, or None."""
    matches = workspaces.c.id == identifier if identifier is not None else workspaces.c.slug == slug
    return connection.execute(select(workspaces).where(matches)).first()


def find_workspace(connection: Connection, slug_or_id: str) -> Row[Any] | None:
    """A workspace by slug, else by id, or None."""
    return workspace(connection, slug=slug_or_id) or workspace(connection, identifier=slug_or_id)


def project(connection: Connection, workspace_id: str, slug_or_id: str) -> Row[Any] | None:
    """A workspace's project by slug or id, or None."""
    statement = select(projects).where(
        projects.c.workspace_id == workspace_id, (projects.c.id == slug_or_id) | (projects.c.slug == slug_or_id)
    )
    return connection.execute(statement).first()
