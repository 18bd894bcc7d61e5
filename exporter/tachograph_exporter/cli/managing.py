"""``tachograph workspaces``, ``projects``, ``tokens``, ``rollups`` and ``archive``: administration of a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection, Row, select

from tachograph.errors import ArchiveError
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    app,
    fail,
    open_database,
    out,
    print_json,
    report_errors,
)
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.store import archiving
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
from tachograph_exporter.store.schema import projects, workspaces
from tachograph_exporter.store.tokens import SCOPES
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.times import parse_duration
from tachograph_exporter.views.schemas.workspaces import NewWorkspace
from tachograph_exporter.views.workspaces import project_info, token_info, workspace_info

T = TypeVar("T")

workspaces_app = typer.Typer(no_args_is_help=True, help="Create and list workspaces.")
projects_app = typer.Typer(no_args_is_help=True, help="Create and list projects in a workspace.")
tokens_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke access tokens.")
rollups_app = typer.Typer(no_args_is_help=True, help="Check or rebuild the rollups.")
app.add_typer(workspaces_app, name="workspaces")
app.add_typer(projects_app, name="projects")
app.add_typer(tokens_app, name="tokens")
app.add_typer(rollups_app, name="rollups")

SlugArgument = Annotated[
    str, typer.Argument(help="Name used in URLs: lower-case letters, digits, dots, dashes, underscores.")
]
NameOption = Annotated[str | None, typer.Option(help="Display name.")]
OwnerOption = Annotated[str, typer.Option("--workspace", help="Workspace slug or id.")]


def _write(url: str, work: Callable[[Connection], T]) -> T:
    with report_errors():
        store = open_database(url)
        try:
            return store.run(work)
        finally:
            store.close()
    raise AssertionError


def _read(url: str, work: Callable[[Connection], T]) -> T:
    with report_errors():
        store = open_database(url, must_exist=True)
        try:
            return store.look(work)
        finally:
            store.close()
    raise AssertionError


def _check_slug(slug: str) -> None:
    try:
        msgspec.convert({"slug": slug}, NewWorkspace)
    except msgspec.ValidationError:
        fail(f"{slug!r} is not a valid slug: use at most 100 lower-case letters, digits, dots, dashes and underscores")


def _workspace(connection: Connection, workspace: str) -> Row[Any]:
    row = workspace_rows.find_workspace(connection, workspace)
    if row is None:
        fail(f'no workspace "{workspace}"; create it with: tachograph workspaces create {workspace}')
    return row


@workspaces_app.command("create")
def create_workspace(slug: SlugArgument, name: NameOption = None, database: DatabaseOption = DATABASE) -> None:
    """Create a workspace, with a project called default."""
    _check_slug(slug)

    def work(connection: Connection) -> str:
        if workspace_rows.workspace(connection, slug=slug) is not None:
            fail(f'workspace "{slug}" already exists')
        now = time.time_ns()
        identifier = add_workspace(connection, slug, now, name)
        add_project(connection, slug, "default", now)
        return identifier

    out.print(f"[green]✔[/] workspace {slug}   {_write(database, work)}")


@workspaces_app.command("list")
def list_workspaces(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List workspaces."""
    rows = _read(database, lambda c: c.execute(select(workspaces).order_by(workspaces.c.slug)).all())
    _show([workspace_info(row) for row in rows], ("slug", "name", "id", "created_at"), as_json)


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
        owner = _workspace(connection, workspace)
        if workspace_rows.project(connection, owner.id, slug) is not None:
            fail(f'project "{slug}" already exists in workspace "{workspace}"')
        add_project(connection, owner.slug, slug, time.time_ns(), name)

    _write(database, work)
    out.print(f"[green]✔[/] project {slug} in workspace {shown(workspace)}")


@projects_app.command("list")
def list_projects(
    workspace: OwnerOption = "default", database: DatabaseOption = DATABASE, as_json: JsonOption = False
) -> None:
    """List the projects of a workspace."""

    def work(connection: Connection) -> list[Any]:
        owner = _workspace(connection, workspace)
        query = select(projects).where(projects.c.workspace_id == owner.id).order_by(projects.c.slug)
        return [project_info(row) for row in connection.execute(query)]

    _show(_read(database, work), ("slug", "name", "id", "created_at"), as_json)


@tokens_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="What the token is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help=f"Scope: {', '.join(SCOPES)}. Repeatable. Default: read.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Limit the token to a workspace. Default: all workspaces.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Lifetime, such as 90d. Default: no expiry.")] = None,
    database: DatabaseOption = DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Create an access token. It is shown only once."""
    scopes = scope or ["read"]
    for scope_name in scopes:
        if scope_name not in SCOPES:
            fail(f"--scope {scope_name!r} is not valid; expected one of {', '.join(SCOPES)}")
    try:
        expires_ns = time.time_ns() + parse_duration(expires) if expires is not None else None
    except ValueError as error:
        fail(str(error))

    def work(connection: Connection) -> tuple[str, str]:
        owner = _workspace(connection, workspace).id if workspace is not None else None
        return token_rows.create_token(connection, name=name, scopes=scopes, workspace_id=owner, expires_ns=expires_ns)

    identifier, token = _write(database, work)
    if as_json:
        print_json({"id": identifier, "token": token})
    else:
        # Only the token on standard output, so that a script can read it.
        out.print(token, soft_wrap=True)


@tokens_app.command("list")
def list_tokens(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List access tokens with their scopes and expiry. The tokens themselves are never shown."""
    now = time.time_ns()
    tokens = _read(database, lambda c: [token_info(row, now) for row in token_rows.tokens(c)])
    _show(tokens, ("name", "state", "scopes", "workspace", "expires_at", "id"), as_json)


@tokens_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Token id, as shown by `tokens list`.")],
    database: DatabaseOption = DATABASE,
) -> None:
    """Revoke an access token."""
    if not _write(database, lambda c: token_rows.revoke_token(c, token_id)):
        fail(f'no token with id "{token_id}"')
    out.print(f"[green]✔[/] revoked {shown(token_id)}")


@rollups_app.command("rebuild")
def rebuild(
    database: DatabaseOption = DATABASE,
    check: Annotated[bool, typer.Option(help="Only report differences; exit code 1 if there are any.")] = False,
) -> None:
    """Rebuild the rollups from the executions and report how many rows differed. There should be none."""
    with report_errors():
        store = open_database(database, must_exist=True)
        differing = 0
        keys = store.look(rollup_rebuild.workflows_with_executions)
        for key in keys:
            # One transaction per workflow, so that other writers are not blocked for long.
            differing += store.run(lambda c, key=key: rollup_rebuild.rebuild_one(c, key, write=not check))  # type: ignore[misc]
        store.close()
    verb = "differ" if check else "differed and were corrected"
    out.print(f"{len(keys)} workflow(s): {f'{differing} row(s) {verb}' if differing else 'all rows are correct'}")
    raise typer.Exit(1 if check and differing else 0)


@app.command()
def archive(
    older_than: Annotated[str, typer.Option(help="Only executions that ended at least this long ago, such as 90d.")],
    to: Annotated[Path | None, typer.Option(help="Directory for the Parquet files.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the executions instead of archiving them.")] = False,
    database: DatabaseOption = DATABASE,
) -> None:
    """Move old executions to Parquet files. They stay listed and readable, and rollups keep counting them."""
    if (to is None) == (not delete):
        fail("give either --to DIR to archive executions, or --delete to delete them")
    try:
        age_ns = parse_duration(older_than)
    except ValueError as error:
        fail(str(error))
    with report_errors():
        store = open_database(database, must_exist=True)
        try:
            moved = archiving.archive(
                store,
                time.time_ns() - age_ns,
                to,
                on_day=lambda day, count: out.print(f"  {day}  {count} execution(s)"),
            )
        except ArchiveError as error:
            fail(str(error))
        finally:
            store.close()
    where = f" to {to}: {len(moved.files)} file(s), {moved.bytes:,} bytes" if to is not None else ""
    out.print(f"[green]✔[/] {'archived' if to else 'deleted'} {moved.executions} execution(s){where}", soft_wrap=True)
    if moved.left:
        out.print(f"[yellow]{moved.left} changed in the meantime and are left for the next run[/]")


def _show(items: list[Any], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json(items)
        return
    table = Table(*[column.removesuffix("_at") for column in columns], box=None)
    for item in items:
        values = [getattr(item, column) for column in columns]
        table.add_row(*[Text(" ".join(v) if isinstance(v, list) else str(v if v is not None else "–")) for v in values])
    out.print(table)
