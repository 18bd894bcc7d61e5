"""``tachograph tokens``: create, list and revoke access tokens."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from sqlalchemy import Connection

from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    app,
    duration_ns,
    fail,
    out,
    print_json,
    read,
    write,
)
from tachograph_exporter.cli.tables import show_items
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.cli.workspaces import workspace_of
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store.tokens import SCOPES
from tachograph_exporter.views.workspaces import token_info

tokens_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke access tokens.")
app.add_typer(tokens_app, name="tokens")


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
    expires_ns = time.time_ns() + duration_ns(expires) if expires is not None else None

    def work(connection: Connection) -> tuple[str, str]:
        owner = workspace_of(connection, workspace).id if workspace is not None else None
        return token_rows.create_token(connection, name=name, scopes=scopes, workspace_id=owner, expires_ns=expires_ns)

    identifier, token = write(database, work)
    if as_json:
        print_json({"id": identifier, "token": token})
    else:
        # Only the token on standard output, so that a script can read it.
        out.print(token, soft_wrap=True)


@tokens_app.command("list")
def list_tokens(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List access tokens with their scopes and expiry. The secret parts are never shown."""
    now = time.time_ns()
    tokens = read(database, lambda c: [token_info(row, now) for row in token_rows.tokens(c)])
    show_items(tokens, ("name", "state", "scopes", "workspace", "expires_at", "id"), as_json)


@tokens_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Token id, as shown by `tokens list`.")],
    database: DatabaseOption = DATABASE,
) -> None:
    """Revoke an access token."""
    if not write(database, lambda c: token_rows.revoke_token(c, token_id)):
        fail(f'no token with id "{token_id}"')
    out.print(f"[green]✔[/] revoked {shown(token_id)}")
