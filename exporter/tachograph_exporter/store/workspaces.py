"""Rows of workspaces and projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.identity import workspace_id
from tachograph_exporter.store.schema import projects, workspaces


def add_workspace(connection: Connection, slug: str, now_ns: int, name: str | None = None) -> str:
    """Ensure that a workspace has a row. Returns its id."""
    _insert(connection, workspaces, _workspace_values(slug, now_ns, name))
    return workspace_id(slug)


def add_project(connection: Connection, workspace: str, slug: str, now_ns: int, name: str | None = None) -> None:
    """Ensure that a project has a row. ``workspace`` is a slug."""
    _insert(connection, projects, _project_values(workspace, slug, now_ns, name))


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


def create_workspace(connection: Connection, slug: str, now_ns: int, name: str | None = None) -> Row[Any] | None:
    """Add a workspace with a project called ``default``. Returns its row, or None if the slug is taken."""
    if not _insert(connection, workspaces, _workspace_values(slug, now_ns, name)):
        return None
    add_project(connection, slug, "default", now_ns)
    return workspace(connection, slug=slug)


def create_project(
    connection: Connection, workspace: str, slug: str, now_ns: int, name: str | None = None
) -> Row[Any] | None:
    """Add a project to the workspace with the slug ``workspace``. Returns its row, or None if its slug is taken."""
    if not _insert(connection, projects, _project_values(workspace, slug, now_ns, name)):
        return None
    return project(connection, workspace_id(workspace), slug)


def list_workspaces(connection: Connection, identifier: str | None = None) -> Sequence[Row[Any]]:
    """All workspaces by slug, or only the one with this id."""
    statement = select(workspaces).order_by(workspaces.c.slug)
    if identifier is not None:
        statement = statement.where(workspaces.c.id == identifier)
    return connection.execute(statement).all()


def list_projects(connection: Connection, workspace_id: str) -> Sequence[Row[Any]]:
    """A workspace's projects by slug."""
    statement = select(projects).where(projects.c.workspace_id == workspace_id).order_by(projects.c.slug)
    return connection.execute(statement).all()


def _workspace_values(slug: str, now_ns: int, name: str | None) -> dict[str, Any]:
    return {"id": workspace_id(slug), "slug": slug, "name": name or slug, "created_ns": now_ns}


def _project_values(workspace: str, slug: str, now_ns: int, name: str | None) -> dict[str, Any]:
    return {
        "id": workspace_id(f"{workspace}/{slug}"),
        "workspace_id": workspace_id(workspace),
        "slug": slug,
        "name": name or slug,
        "created_ns": now_ns,
    }


def _insert(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Insert a row. Returns False if there is one with the same key already."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return connection.execute(dialect.insert(table).values(values).on_conflict_do_nothing()).rowcount == 1
