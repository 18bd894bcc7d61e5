"""Workspaces and projects: their rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.identity import workspace_id
from tachograph_exporter.store import event_log as event_log
from tachograph_exporter.store.schema import (
    projects,
    workspaces,
)


def add_workspace(connection: Connection, slug: str, now_ns: int, name: str | None = None) -> str:
    """Make the workspace's row if it is not there; its id."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    identifier = workspace_id(slug)
    values = {"id": identifier, "slug": slug, "name": name or slug, "created_ns": now_ns}
    connection.execute(insert(workspaces).values(values).on_conflict_do_nothing())
    return identifier


def add_project(connection: Connection, workspace: str, slug: str, now_ns: int, name: str | None = None) -> None:
    """Make the project's row if it is not there."""
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
    wanted = workspaces.c.id == identifier if identifier is not None else workspaces.c.slug == slug
    return connection.execute(select(workspaces).where(wanted)).first()


def find_workspace(connection: Connection, wanted: str) -> Row[Any] | None:
    """A workspace by slug, else by id, or None."""
    return workspace(connection, slug=wanted) or workspace(connection, identifier=wanted)


def project(connection: Connection, workspace_id: str, wanted: str) -> Row[Any] | None:
    """A workspace's project by id or slug, or None."""
    statement = select(projects).where(
        projects.c.workspace_id == workspace_id, (projects.c.id == wanted) | (projects.c.slug == wanted)
    )
    return connection.execute(statement).first()
