"""``tachograph dashboards``: write files for Grafana, Prometheus and Alertmanager, or push them to a Grafana."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import typer

from tachograph_exporter import dashboard_files
from tachograph_exporter.cli.common import app, fail, out
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.dashboard_files import State

TOKEN: Final = "GRAFANA_TOKEN"  # noqa: S105 - the name of a variable
_FOLDER: Final = "tachograph"

group = typer.Typer(help="Dashboards, rules and provisioning for Grafana, Prometheus and Alertmanager.",
                    no_args_is_help=True)  # fmt: skip
app.add_typer(group, name="dashboards")


@group.command("export")
def export(
    directory: Annotated[Path, typer.Argument(help="Output directory; created if it does not exist.")],
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file with limits of the alerts, for all workflows or for single ones."),
    ] = None,
    runbooks: Annotated[str | None, typer.Option(help="Base URL of your runbooks, for the links in alerts.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Overwrite files that were edited, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
) -> None:
    """Write dashboards, rules, provisioning files and a compose file.

    A later export writes only what has changed, and keeps files that you have edited.
    """
    from tachograph_exporter.alerting.thresholds import InvalidThresholds

    try:
        files = dashboard_files.plan(directory, thresholds=thresholds, runbooks=runbooks)
        if not dry_run:
            dashboard_files.write(directory, files, overwrite=yes)
    except InvalidThresholds as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot export to {directory}: {error.filename or ''}: {error.strerror or error}")
    for path, _, state in files:
        out.print(f"{_done(state, overwrite=yes):<10}{shown(str(path))}", soft_wrap=True)
    conflicts = sum(state is State.CONFLICT for _, _, state in files)
    if conflicts and not yes:
        them = "it" if conflicts == 1 else "them"
        fail(f"{conflicts} {'file was' if conflicts == 1 else 'files were'} edited and differ from what is exported "
             f"now; --yes overwrites {them}")  # fmt: skip


def _done(state: State, *, overwrite: bool) -> str:
    if state is State.UNCHANGED:
        return "unchanged"
    return "kept" if state in (State.EDITED, State.CONFLICT) and not overwrite else "written"


@group.command("push")
def push(
    url: Annotated[str, typer.Option(help="Grafana URL, such as http://localhost:3000.")],
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token of a Grafana service account (or set {TOKEN}).")
    ] = None,
    folder: Annotated[str, typer.Option(help="Grafana folder.")] = "Tachograph",
) -> None:
    """Create or replace the dashboards in a Grafana, over its HTTP API."""
    token = os.environ.get(TOKEN)
    if token_file is not None:
        try:
            token = token_file.read_text().strip()
        except OSError as error:
            fail(f"cannot read the token from {token_file}: {error.strerror or error}")
    if not token:
        fail(f"Grafana needs a token: use --token-file FILE or set {TOKEN}")
    try:
        asyncio.run(_push(url.rstrip("/"), token, folder))
    except aiohttp.InvalidURL:
        fail(f"{url!r} is not a valid URL; expected http://HOST:PORT")
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        fail(f"{url} does not answer: {error}")


async def _push(url: str, token: str, folder: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(30)) as session:
        # 409 and 412: the folder exists already.
        await _post(session, f"{url}/api/folders", {"uid": _FOLDER, "title": folder}, accepted=(409, 412))
        for board in dashboard_files.dashboards():
            body = {"dashboard": {**board, "id": None}, "folderUid": _FOLDER, "overwrite": True}
            answer = await _post(session, f"{url}/api/dashboards/db", body)
            out.print(f"{board['title']:<24}{shown(url)}{shown(answer.get('url', ''))}", soft_wrap=True)


async def _post(session: aiohttp.ClientSession, url: str, body: Any, accepted: tuple[int, ...] = ()) -> dict[str, Any]:
    async with session.post(url, json=body) as answer:
        if answer.status in accepted:
            return {}
        if answer.status >= 300:
            text = (await answer.text())[:300]
            reason = {401: "the token is not valid", 403: "the token does not allow this"}.get(answer.status, text)
            fail(f"{url} answered {answer.status}: {reason}")
        document: dict[str, Any] = await answer.json()
        return document
