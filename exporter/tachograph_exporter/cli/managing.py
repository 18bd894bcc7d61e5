"""``tachograph workspaces``, ``projects``, ``tokens``, ``rollups`` and ``archive``: looking after a database."""

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
    told,
)
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

workspaces_app = typer.Typer(no_args_is_help=True, help="Make and list workspaces.")
projects_app = typer.Typer(no_args_is_help=True, help="Make and list projects of a workspace.")
tokens_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke access tokens.")
rollups_app = typer.Typer(no_args_is_help=True, help="Check the rollups, or make them anew.")
app.add_typer(workspaces_app, name="workspaces")
app.add_typer(projects_app, name="projects")
app.add_typer(tokens_app, name="tokens")
app.add_typer(rollups_app, name="rollups")

SlugArgument = Annotated[str, typer.Argument(help="Its name in addresses: lower case, digits, dots, dashes.")]
NameOption = Annotated[str | None, typer.Option(help="Its name for people.")]
OfWorkspace = Annotated[str, typer.Option("--workspace", help="Workspace, by slug or id.")]


def _changing(url: str, work: Callable[[Connection], T]) -> T:
    with told():
        store = open_database(url)
        try:
            return store.run(work)
        finally:
            store.close()
    raise AssertionError


def _looking(url: str, work: Callable[[Connection], T]) -> T:
    with told():
        store = open_database(url, must_exist=True)
        try:
            return store.look(work)
        finally:
            store.close()
    raise AssertionError


def _checked(slug: str) -> None:
    try:
        msgspec.convert({"slug": slug}, NewWorkspace)
    except msgspec.ValidationError:
        fail(f"{slug!r} is no slug: use lower-case letters, digits, dots, dashes and underscores, at most 100")


def _workspace(connection: Connection, wanted: str) -> Row[Any]:
    found = workspace_rows.find_workspace(connection, wanted)
    if found is None:
        fail(f'there is no workspace "{wanted}"; make it with: tachograph workspaces create {wanted}')
    return found


@workspaces_app.command("create")
def create_workspace(slug: SlugArgument, name: NameOption = None, database: DatabaseOption = DATABASE) -> None:
    """Make a workspace, with a project called default."""
    _checked(slug)

    def work(connection: Connection) -> str:
        if workspace_rows.workspace(connection, slug=slug) is not None:
            fail(f'there is a workspace "{slug}" already')
        now = time.time_ns()
        identifier = add_workspace(connection, slug, now, name)
        add_project(connection, slug, "default", now)
        return identifier

    out.print(f"[green]✔[/] workspace {slug}   {_changing(database, work)}")


@workspaces_app.command("list")
def list_workspaces(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List the workspaces."""
    rows = _looking(database, lambda c: c.execute(select(workspaces).order_by(workspaces.c.slug)).all())
    found = [workspace_info(row) for row in rows]
    _show(found, ("slug", "name", "id", "created_at"), as_json)


@projects_app.command("create")
def create_project(
    slug: SlugArgument,
    workspace: OfWorkspace = "default",
    name: NameOption = None,
    database: DatabaseOption = DATABASE,
) -> None:
    """Make a project in a workspace."""
    _checked(slug)

    def work(connection: Connection) -> None:
        owner = _workspace(connection, workspace)
        if workspace_rows.project(connection, owner.id, slug) is not None:
            fail(f'workspace "{workspace}" has a project "{slug}" already')
        add_project(connection, owner.slug, slug, time.time_ns(), name)

    _changing(database, work)
    out.print(f"[green]✔[/] project {slug} in workspace {workspace}")


@projects_app.command("list")
def list_projects(
    workspace: OfWorkspace = "default", database: DatabaseOption = DATABASE, as_json: JsonOption = False
) -> None:
    """List a workspace's projects."""

    def work(connection: Connection) -> list[Any]:
        owner = _workspace(connection, workspace)
        wanted = select(projects).where(projects.c.workspace_id == owner.id).order_by(projects.c.slug)
        return [project_info(row) for row in connection.execute(wanted)]

    _show(_looking(database, work), ("slug", "name", "id", "created_at"), as_json)


@tokens_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[list[str] | None, typer.Option(help=f"May be repeated: {', '.join(SCOPES)}.")] = None,
    workspace: Annotated[str | None, typer.Option(help="The workspace it is for; else it is for all.")] = None,
    expires: Annotated[str | None, typer.Option(help="For how long it is valid, for instance 90d.")] = None,
    database: DatabaseOption = DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Make a token. It is shown now, and never again."""
    scopes = scope or ["read"]
    for word in scopes:
        if word not in SCOPES:
            fail(f"{word!r} is no scope; there are: {', '.join(SCOPES)}")
    try:
        expires_ns = time.time_ns() + parse_duration(expires) if expires is not None else None
    except ValueError as error:
        fail(str(error))

    def work(connection: Connection) -> tuple[str, str]:
        owner = _workspace(connection, workspace).id if workspace is not None else None
        return token_rows.create_token(connection, name=name, scopes=scopes, workspace_id=owner, expires_ns=expires_ns)

    identifier, token = _changing(database, work)
    if as_json:
        print_json({"id": identifier, "token": token})
    else:
        # The token alone on standard output, so that a script can take it.
        out.print(token, soft_wrap=True)


@tokens_app.command("list")
def list_tokens(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List the tokens: what they may and until when, not what they are."""
    now = time.time_ns()
    found = _looking(database, lambda c: [token_info(row, now) for row in token_rows.tokens(c)])
    _show(found, ("name", "state", "scopes", "workspace", "expires_at", "id"), as_json)


@tokens_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Its id, as `tokens list` shows it.")],
    database: DatabaseOption = DATABASE,
) -> None:
    """Make a token worthless from now on."""
    if not _changing(database, lambda c: token_rows.revoke_token(c, token_id)):
        fail(f'there is no token "{token_id}"')
    out.print(f"[green]✔[/] revoked {token_id}")


@rollups_app.command("rebuild")
def rebuild(
    database: DatabaseOption = DATABASE,
    check: Annotated[bool, typer.Option(help="Only say whether anything differs; exit code 1 if so.")] = False,
) -> None:
    """Make the rollups anew from the executions. They should be the same; says how many rows were not."""
    with told():
        store = open_database(database, must_exist=True)
        wrong = 0
        keys = store.look(rollup_rebuild.workflows_with_executions)
        for key in keys:
            # A workflow at a time, so that nobody waits for all of them.
            wrong += store.run(lambda c, key=key: rollup_rebuild.rebuild_one(c, key, write=not check))  # type: ignore[misc]
        store.close()
    verb = "differ" if check else "differed, and are right now"
    out.print(f"{len(keys)} workflow(s): {f'{wrong} row(s) {verb}' if wrong else 'every row is as it should be'}")
    raise typer.Exit(1 if check and wrong else 0)


@app.command()
def archive(
    older_than: Annotated[str, typer.Option(help="Executions that ended so long ago, for instance 90d.")],
    to: Annotated[Path | None, typer.Option(help="Directory for the Parquet files.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them instead.")] = False,
    database: DatabaseOption = DATABASE,
) -> None:
    """Move old executions to Parquet files. They stay listed and readable; rollups keep counting them."""
    if (to is None) == (not delete):
        fail("say where to with --to DIR, or --delete to delete them")
    try:
        age_ns = parse_duration(older_than)
    except ValueError as error:
        fail(str(error))
    with told():
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
        out.print(f"[yellow]{moved.left} changed meanwhile and stay for the next time[/]")


def _show(found: list[Any], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    table = Table(*[column.removesuffix("_at") for column in columns], box=None)
    for one in found:
        values = [getattr(one, column) for column in columns]
        table.add_row(*[Text(" ".join(v) if isinstance(v, list) else str(v if v is not None else "–")) for v in values])
    out.print(table)
