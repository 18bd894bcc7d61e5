"""``tachograph tokens``: create, list and revoke access tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from tachograph.clock import NS
from tachograph_exporter.cli.administration import open_administration
from tachograph_exporter.cli.common import (
    JsonOption,
    app,
    duration_ns,
    fail,
    out,
    print_json,
)
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.tables import show_items
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.store.tokens import SCOPES

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
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an access token. It is shown only once."""
    scopes = scope or ["read"]
    for scope_name in scopes:
        if scope_name not in SCOPES:
            fail(f"--scope {scope_name!r} is not valid; expected one of {', '.join(SCOPES)}")
    lifetime = duration_ns(expires) / NS if expires is not None else None
    with open_administration(database, url, must_exist=False) as administration:
        identifier, token = administration.create_token(name, scopes, workspace, lifetime)
    if as_json:
        print_json({"id": identifier, "token": token})
    else:
        # Only the token on standard output, so that a script can read it.
        out.print(token, soft_wrap=True)


@tokens_app.command("list")
def list_tokens(database: ReadDatabaseOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List access tokens with their scopes and expiry. The secret parts are never shown."""
    with open_administration(database, url) as administration:
        tokens = list(administration.tokens())
    show_items(tokens, ("name", "state", "scopes", "workspace", "expires_at", "id"), as_json)


@tokens_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Token id, as shown by `tokens list`.")],
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
) -> None:
    """Revoke an access token."""
    with open_administration(database, url) as administration:
        is_revoked = administration.revoke_token(token_id)
    if not is_revoked:
        fail(f'no token with id "{token_id}"')
    out.print(f"[green]✔[/] revoked {shown(token_id)}")
