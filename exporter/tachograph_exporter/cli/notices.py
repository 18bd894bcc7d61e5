"""``tachograph notices``: what did not hold, who was told, and silences."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from tachograph.identity import new_id
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    app,
    fail,
    out,
    print_json,
    read,
    report_errors,
    write,
)
from tachograph_exporter.cli.tables import show_items
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.cli.workspaces import workspace_of
from tachograph_exporter.expectations.file import NOTHING, all_targets, read_file
from tachograph_exporter.expectations.findings import KINDS
from tachograph_exporter.expectations.messages import message_of_test
from tachograph_exporter.expectations.routing import NOTIFY_VARIABLE
from tachograph_exporter.expectations.sending import MaybeSent, NotSent, send
from tachograph_exporter.expectations.views import notice_info
from tachograph_exporter.store import notices as notice_rows
from tachograph_exporter.store.notices import Silence
from tachograph_exporter.times import parse_duration, rfc3339
from tachograph_exporter.views.schemas.expectations import NoticeInfo

notices_app = typer.Typer(no_args_is_help=True, help="Look at notices, test who is told, and silence them.")
app.add_typer(notices_app, name="notices")


@notices_app.command("list")
def list_notices(
    workspace: Annotated[str | None, typer.Option(help="Only those of a workspace.")] = None,
    is_open: Annotated[bool, typer.Option("--open", help="Only what does not hold now.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many of the newest.")] = 50,
    database: DatabaseOption = DATABASE,
    as_json: JsonOption = False,
) -> None:
    """List notices, the newest first, with what became of the messages about them."""

    def work(connection: Connection) -> list[NoticeInfo]:
        workspace_id = workspace_of(connection, workspace).id if workspace is not None else None
        rows = notice_rows.listed(connection, workspace_id, is_open=is_open, limit=limit)
        return [notice_info(*row) for row in rows]

    notices = read(database, work)
    if as_json:
        print_json(notices)
        return
    for notice in notices:
        end = f"until {notice.recovered_at}" if notice.recovered_at else "[red]until now[/]"
        name = f"{shown(notice.workflow)} ({shown(notice.workspace)})"
        out.print(f"[bold]{notice.kind}[/]  {name}, since {notice.since} {end}", soft_wrap=True)
        out.print(f"    {shown(notice.text)}", soft_wrap=True)
        for message in notice.deliveries:
            reason = f": {shown(message.reason)}" if message.reason else ""
            out.print(f"    {message.phase} → {shown(message.receiver)}: {message.state}{reason}", soft_wrap=True)
    if not notices:
        out.print("there are no notices")


@notices_app.command("test")
def send_test(
    expectations: Annotated[
        Path | None, typer.Option(help="File of what is expected, and who is told, as `serve` has it.")
    ] = None,
    notify: Annotated[
        list[str] | None, typer.Option(metavar="URL", envvar=NOTIFY_VARIABLE, help="A receiver. Repeatable.")
    ] = None,
    receiver: Annotated[str | None, typer.Option(help="Only the receiver with this name.")] = None,
) -> None:
    """Send a test message to every receiver now; exit code 1 if one does not take it."""
    with report_errors():
        file = read_file(expectations) if expectations is not None else NOTHING
        targets = [t for t in all_targets(file, notify or ()) if receiver is None or t.name == receiver]
    if not targets:
        fail("there is no receiver; name one with --notify URL or in a file with --expectations FILE")
    failures = 0
    for target in targets:
        message = message_of_test(file.link, time.time_ns())
        try:
            send(target, message, message.data.id)
        except (NotSent, MaybeSent) as error:
            failures += 1
            out.print(f"[red]✖[/] {shown(target.name)} ({shown(target.shown)}): {shown(str(error))}", soft_wrap=True)
        else:
            out.print(f"[green]✔[/] {shown(target.name)} ({shown(target.shown)})", soft_wrap=True)
    raise typer.Exit(1 if failures else 0)


@notices_app.command("silence")
def silence(
    workflow: Annotated[
        str | None, typer.Argument(help="Name of a workflow, with * and ? as wildcards. Default: all.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only notices of a kind: {', '.join(KINDS)}.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Only in a workspace.")] = None,
    duration: Annotated[str, typer.Option("--for", help="How long, such as 2h.")] = "2h",
    reason: Annotated[str, typer.Option(help="Why, for whoever lists silences.")] = "",
    database: DatabaseOption = DATABASE,
) -> None:
    """Tell nobody of something for a while. It is recorded and listed all the same."""
    if kind is not None and kind not in KINDS:
        fail(f"--kind {kind!r} is not valid; expected one of {', '.join(KINDS)}")
    now_ns = time.time_ns()
    try:
        until_ns = now_ns + parse_duration(duration)
    except ValueError as error:
        fail(str(error))

    def work(connection: Connection) -> Silence | None:
        workspace_id = workspace_of(connection, workspace).id if workspace is not None else None
        entry = Silence(new_id(now_ns), workspace_id, workflow, kind, until_ns, reason[:1000])
        return entry if notice_rows.silence(connection, entry, now_ns) else None

    entry = write(database, work)
    if entry is None:
        fail(f"there are {notice_rows.MAX_SILENCES} silences already; end some with `tachograph notices unsilence ID`")
    out.print(f"[green]✔[/] silent until {rfc3339(entry.until_ns)}; end it with `tachograph notices unsilence "
              f"{entry.id}`", soft_wrap=True)  # fmt: skip


@notices_app.command("silences")
def list_silences(database: DatabaseOption = DATABASE, as_json: JsonOption = False) -> None:
    """List silences that have not ended."""
    silences = read(database, lambda c: notice_rows.silences(c, time.time_ns()))
    items = [
        {"id": s.id, "workflow": s.workflow or "*", "kind": s.kind or "*", "workspace": s.workspace_id or "*",
         "until": rfc3339(s.until_ns), "reason": s.reason}
        for s in silences
    ]  # fmt: skip
    show_items(items, ("workflow", "kind", "workspace", "until", "reason", "id"), as_json)


@notices_app.command("unsilence")
def unsilence(
    silence_id: Annotated[str, typer.Argument(help="Id, as shown by `notices silences`.")],
    database: DatabaseOption = DATABASE,
) -> None:
    """End a silence now."""
    if not write(database, lambda c: notice_rows.end_silence(c, silence_id, time.time_ns())):
        fail(f'there is no silence with id "{silence_id}"')
    out.print(f"[green]✔[/] ended {shown(silence_id)}")
