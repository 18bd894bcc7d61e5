"""``tachograph notices``: what did not hold, who was told, and silences."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from tachograph.expectation import SEVERITIES
from tachograph_exporter.cli.administration import open_administration
from tachograph_exporter.cli.common import (
    JsonOption,
    app,
    fail,
    out,
    print_json,
    report_errors,
)
from tachograph_exporter.cli.service_administration import ServiceAdministration
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.tables import show_items
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.defaults import URL_VARIABLE
from tachograph_exporter.expectations.file import NOTHING, all_targets, read_file
from tachograph_exporter.expectations.findings import KINDS
from tachograph_exporter.expectations.routing import NOTIFY_VARIABLE
from tachograph_exporter.expectations.testing import tell_of_test
from tachograph_exporter.views.schemas.expectations import ReceiverTest
from tachograph_exporter.views.schemas.silences import NewSilence

notices_app = typer.Typer(no_args_is_help=True, help="Look at notices, test who is told, and silence them.")
app.add_typer(notices_app, name="notices")
DEFAULT_SILENCE: Final = "2h"


@notices_app.command("list")
def list_notices(
    workspace: Annotated[str | None, typer.Option(help="Only those of a workspace.")] = None,
    is_open: Annotated[bool, typer.Option("--open", help="Only what does not hold now.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many of the newest.")] = 50,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List notices, the newest first, with what became of the messages about them."""
    with open_administration(database, url) as administration:
        notices = administration.notices(workspace, limit, is_open=is_open)
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
    url: Annotated[
        str | None,
        typer.Option(
            help=f"Have this service send it to its own receivers. Default: {URL_VARIABLE}, if nothing else is given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Send a test message to every receiver now; exit code 1 if one does not take it."""
    if url is not None and (expectations is not None or notify):
        fail("give either --url or receivers (--expectations, --notify), not both")
    if expectations is None and not notify:
        url = url or os.environ.get(URL_VARIABLE) or None
    tests: Iterable[ReceiverTest]
    if url is not None:
        tests = ServiceAdministration(url).test_receivers(receiver)
    else:
        with report_errors():
            file = read_file(expectations) if expectations is not None else NOTHING
            targets = [t for t in all_targets(file, notify or ()) if receiver is None or t.name == receiver]
        tests = (tell_of_test(target, file.link) for target in targets)
    outcomes = []
    for test in tests:
        outcomes.append(test.is_taken)
        mark = "[green]✔[/]" if test.is_taken else "[red]✖[/]"
        reason = f": {shown(test.reason)}" if test.reason is not None else ""
        out.print(f"{mark} {shown(test.receiver)} ({shown(test.address)}){reason}", soft_wrap=True)
    if not outcomes:
        fail(
            "the service has no such receiver; start it with --notify URL or --expectations FILE"
            if url is not None
            else "there is no receiver; name one with --notify URL or in a file with --expectations FILE, or ask a "
            "service with --url"
        )
    raise typer.Exit(0 if all(outcomes) else 1)


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
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
) -> None:
    """Tell nobody of something for a while. It is recorded all the same, and told if it still holds afterwards."""
    if until is None and duration is None:
        duration = DEFAULT_SILENCE
    asked = NewSilence(workflow=workflow, kind=kind, severity=severity, until=until, duration=duration, reason=reason,
                       created_by=created_by or user_name())  # fmt: skip
    with open_administration(database, url, must_exist=False) as administration:
        entry = administration.add_silence(asked, workspace)
    out.print(f"[green]✔[/] silent until {entry.until}; end it with `tachograph notices unsilence {shown(entry.id)}`",
              soft_wrap=True)  # fmt: skip


def user_name() -> str:
    """Who is at the terminal; "" if the machine does not know."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


@notices_app.command("silences")
def list_silences(
    with_ended: Annotated[bool, typer.Option("--ended", help="Also those that have ended.")] = False,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List silences, the first to end first. A dash is anything; a severity is the greatest that is silenced."""
    with open_administration(database, url) as administration:
        infos = list(administration.silences(with_ended=with_ended))
    if as_json:
        print_json(infos)
        return
    show_items(infos, ("workflow", "kind", "severity", "workspace", "until", "created_by", "reason", "id"), as_json)


@notices_app.command("unsilence")
def unsilence(
    silence_id: Annotated[str, typer.Argument(help="Id, as shown by `notices silences`.")],
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
) -> None:
    """End a silence now. What still holds is told."""
    with open_administration(database, url) as administration:
        is_ended = administration.end_silence(silence_id)
    if not is_ended:
        fail(f'there is no silence with id "{silence_id}"')
    out.print(f"[green]✔[/] ended {shown(silence_id)}")
