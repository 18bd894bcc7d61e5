"""``tachograph notices``: what did not hold, who was told, and silences."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import Annotated, Final

import typer
from sqlalchemy import Connection

from tachograph.expectation import SEVERITIES
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
from tachograph_exporter.expectations.silencing import read_silence, silence_info
from tachograph_exporter.expectations.views import notice_info
from tachograph_exporter.store import notices as notice_rows
from tachograph_exporter.store import silences as silence_rows
from tachograph_exporter.store.silences import Silence
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.expectations import NoticeInfo
from tachograph_exporter.views.schemas.silences import NewSilence

notices_app = typer.Typer(no_args_is_help=True, help="Look at notices, test who is told, and silence them.")
app.add_typer(notices_app, name="notices")
DEFAULT_SILENCE: Final = "2h"
_OPTIONS: Final = {"duration": "--for", "until": "--until", "kind": "--kind", "severity": "--severity"}


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
        if notice.silence_id is not None:
            out.print(f"    silenced by {shown(notice.silence_id)}", soft_wrap=True)
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
    severity: Annotated[
        str | None, typer.Option(help=f"Only notices that are no worse: {', '.join(SEVERITIES)}.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Only in a workspace.")] = None,
    duration: Annotated[str | None, typer.Option("--for", help="How long, such as 90m. Default: 2h.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Until when, such as 2026-12-01T07:00+01:00, instead of --for.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever lists silences.")] = "",
    created_by: Annotated[str | None, typer.Option("--by", help="Who says so. Default: you.")] = None,
    database: DatabaseOption = DATABASE,
) -> None:
    """Tell nobody of something for a while. It is recorded all the same, and told if it still holds afterwards."""
    now_ns = time.time_ns()
    if until is None and duration is None:
        duration = DEFAULT_SILENCE
    asked = NewSilence(workflow=workflow, kind=kind, severity=severity, until=until, duration=duration, reason=reason)

    def work(connection: Connection) -> Silence:
        workspace_id = workspace_of(connection, workspace).id if workspace is not None else None
        entry, faults = read_silence(asked, workspace_id, created_by or user_name(), now_ns)
        if entry is None:
            fail("; ".join(f"{_OPTIONS.get(fault.at, fault.at)}: {fault.message}" for fault in faults))
        if not silence_rows.add_silence(connection, entry, now_ns):
            fail(f"there are {silence_rows.MAX_SILENCES} silences already; end some with `tachograph notices "
                 "unsilence ID`")  # fmt: skip
        return entry

    entry = write(database, work)
    out.print(f"[green]✔[/] silent until {rfc3339(entry.until_ns)}; end it with `tachograph notices unsilence "
              f"{entry.id}`", soft_wrap=True)  # fmt: skip


def user_name() -> str:
    """Who is at the terminal; "" if the machine does not know."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


@notices_app.command("silences")
def list_silences(
    with_ended: Annotated[bool, typer.Option("--ended", help="Also those that have ended.")] = False,
    database: DatabaseOption = DATABASE,
    as_json: JsonOption = False,
) -> None:
    """List silences, the first to end first. A dash is anything; a severity is the greatest that is silenced."""
    now_ns = time.time_ns()
    rows = read(database, lambda c: silence_rows.listed_silences(c, None, now_ns, with_ended=with_ended))
    infos = [silence_info(row, now_ns) for row in rows]
    if as_json:
        print_json(infos)
        return
    show_items(infos, ("workflow", "kind", "severity", "workspace", "until", "created_by", "reason", "id"), as_json)


@notices_app.command("unsilence")
def unsilence(
    silence_id: Annotated[str, typer.Argument(help="Id, as shown by `notices silences`.")],
    database: DatabaseOption = DATABASE,
) -> None:
    """End a silence now. What still holds is told."""
    if not write(database, lambda c: silence_rows.end_silence(c, silence_id, time.time_ns())):
        fail(f'there is no silence with id "{silence_id}"')
    out.print(f"[green]✔[/] ended {shown(silence_id)}")
