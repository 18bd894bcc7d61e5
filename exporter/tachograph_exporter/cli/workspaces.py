"""``tachograph workspaces`` and ``projects``: create and list them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
import typer
from sqlalchemy import Connection, Row

from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    app,
    fail,
    out,
    read,
    write,
)
from tachograph_exporter.cli.tables import show_items
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.views.schemas.workspaces import NewWorkspace
from tachograph_exporter.views.workspaces import project_info, workspace_info

workspaces_app = typer.Typer(no_args_is_help=True, help="Create and list workspaces.")
projects_app = typer.Typer(no_args_is_help=True, help="Create and list projects in a workspace.")
app.add_typer(workspaces_app, name="workspaces")
app.add_typer(projects_app, name="projects")

SlugArgument = Annotated[
    str, typer.Argument(help="Name used in URLs: lower-case letters, digits, dots, dashes, underscores.")
]
NameOption = Annotated[str | None, typer.Option(help="Display name.")]
OwnerOption = Annotated[str, typer.Option("--workspace", help="Workspace slug or id.")]


def _check_slug(slug: str) -> None:
    try:
        msgspec.convert({"slug": slug}, NewWorkspace)
    except msgspec.ValidationError:
        fail(f"{slug!r} is not a valid slug: use at most 100 lower-case letters, digits, dots, dashes and underscores")


def workspace_of(connection: Connection, workspace: str) -> Row[Any]:
    """A workspace by slug or id; fails if there is none."""
    row = workspace_rows.find_workspace(connection, workspace)
    if row is None:
        fail(f'no workspace "{workspace}"; create it with: tachograph workspaces create {workspace}')
    return row


@workspaces_app.command("create")
def create_workspace(slug: SlugArgument, name: NameOption = None, database: DatabaseOption = DATABASE) -> None:
    """Create a workspace, with a project called default."""
    _check_slug(slug)

    row = write(database, lambda c: workspace_rows.create_workspace(c, slug, time.time_ns(), name))
    if row is None:
        fail(f'workspace "{slug}" already exists')
    out.print(f"[green]✔[/] workspace {slug}   {row.id}")


@workspaces_app.command("list")
def list_workspaces(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List workspaces."""
    rows = read(database, workspace_rows.list_workspaces)
    show_items([workspace_info(row) for row in rows], ("slug", "name", "id", "created_at"), as_json)


@projects_app.command("create")
def create_project(
    slug: SlugArgument,
    workspace: OwnerOption = "default",
    name: NameOption = None,
    database: DatabaseOption = DATABASE,
) -> None:
    """Create a project in a workspace."""
    _check_slug(slug)

    def work(connection: Connection) -> None:
        owner = workspace_of(connection, workspace)
        if workspace_rows.create_project(connection, owner.slug, slug, time.time_ns(), name) is None:
            fail(f'project "{slug}" already exists in workspace "{workspace}"')

    write(database, work)
    out.print(f"[green]✔[/] project {slug} in workspace {shown(workspace)}")


@projects_app.command("list")
def list_projects(
    workspace: OwnerOption = "default", database: DatabaseOption = DATABASE, as_json: JsonOption = False
) -> None:
    """List the projects of a workspace."""
    rows = read(database, lambda c: workspace_rows.list_projects(c, workspace_of(c, workspace).id))
    show_items([project_info(row) for row in rows], ("slug", "name", "id", "created_at"), as_json)
