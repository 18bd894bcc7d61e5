"""``tachograph workspaces`` and ``projects``: create and list them."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from tachograph_exporter.cli.administration import open_administration
from tachograph_exporter.cli.common import (
    JsonOption,
    app,
    fail,
    out,
)
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.tables import show_items
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.views.schemas.workspaces import NewWorkspace

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


@workspaces_app.command("create")
def create_workspace(
    slug: SlugArgument, name: NameOption = None, database: ReadDatabaseOption = None, url: UrlOption = None
) -> None:
    """Create a workspace, with a project called default."""
    _check_slug(slug)
    with open_administration(database, url, must_exist=False) as administration:
        workspace = administration.create_workspace(slug, name)
    out.print(f"[green]✔[/] workspace {slug}   {shown(workspace.id)}")


@workspaces_app.command("list")
def list_workspaces(database: ReadDatabaseOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List workspaces."""
    with open_administration(database, url) as administration:
        show_items(list(administration.workspaces()), ("slug", "name", "id", "created_at"), as_json)


@projects_app.command("create")
def create_project(
    slug: SlugArgument,
    workspace: OwnerOption = "default",
    name: NameOption = None,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
) -> None:
    """Create a project in a workspace."""
    _check_slug(slug)
    with open_administration(database, url, must_exist=False) as administration:
        administration.create_project(workspace, slug, name)
    out.print(f"[green]✔[/] project {slug} in workspace {shown(workspace)}")


@projects_app.command("list")
def list_projects(
    workspace: OwnerOption = "default",
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the projects of a workspace."""
    with open_administration(database, url) as administration:
        show_items(list(administration.projects(workspace)), ("slug", "name", "id", "created_at"), as_json)
