"""``tachograph failures``: failures by cause, and who looks after them."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer
from rich.text import Text

from tachograph.clock import NS
from tachograph_exporter.cli.columns import Column, show_table
from tachograph_exporter.cli.common import (
    JsonOption,
    OutputOption,
    ReadWorkspaceOption,
    app,
    fail,
    out,
    print_json,
    time_ns,
)
from tachograph_exporter.cli.moments import column, moment
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.sources import ReadDatabaseOption, Source, UrlOption
from tachograph_exporter.cli.terminal import printable, shown
from tachograph_exporter.reading.queries import FailureQuery
from tachograph_exporter.reading.references import LAST
from tachograph_exporter.views.schemas.failures import SORTS, STATES, FailureGroupDetail, FailureGroupSummary

failures_app: Final = typer.Typer(help="List failures by cause, and mute or resolve them.")
app.add_typer(failures_app, name="failures")

_ID_LENGTH: Final = 16
OTHER: Final = "other"
"""The group of all causes beyond the limit."""
_SHOWN_PLACES: Final = 8
_COLOURS: Final = {"regressed": "bold red", "open": "red", "muted": "bright_black", "resolved": "green"}

GroupArgument = Annotated[
    str, typer.Argument(help=f"Id of a group, its beginning, or {LAST}: the one that failed last.")
]
NoteOption = Annotated[str, typer.Option("--note", "-m", help="Why, for whoever looks next.")]


@failures_app.callback(invoke_without_command=True)
def failures(
    context: typer.Context,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """List failures by cause, and mute or resolve them.

    Without a command: list them.
    """
    if context.invoked_subcommand is None:
        list_failures(database=database, url=url, workspace=workspace)
    elif database is not None or url is not None:
        fail(f"write --database and --url after `{context.invoked_subcommand}`")


@failures_app.command("list")
def list_failures(
    since: Annotated[str, typer.Option(help="Failures at or after this time, or this long ago; at most 90d.")] = "14d",
    until: Annotated[str | None, typer.Option(help="Failures before this time, or this long ago.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Failures of this workflow (name or id).")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help=f"State: {', '.join(STATES)}, or all. Repeatable. Default: open and regressed."),
    ] = None,
    sort: Annotated[str, typer.Option(help=f"Order: {', '.join(SORTS)}; a minus sorts downwards.")] = "-last_seen",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="Groups to show.")] = 20,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """List failures by cause: how often, since when, where, and what is new."""
    if sort not in SORTS:
        fail(f"--sort {sort!r} is not valid; expected one of {', '.join(SORTS)}")
    now = time.time_ns()
    query = FailureQuery(workflow, time_ns(since, now), time_ns(until, now), _states(state or []), sort)
    with open_source(database, url, workspace) as source:
        page = source.failures(query, limit)
        name = source.name
    if page is None:
        fail(f'there is no workflow "{workflow}" in {name}')
    if as_json:
        print_json(page)
        return
    if not page.items:
        out.print(f"no failures in {shown(name)} since {moment(page.window_from)}", soft_wrap=True)
    else:
        _show(page.items)
    if page.total > len(page.items):
        out.print(f"{len(page.items)} of {page.total:,} groups; more with --limit", style="bright_black")
    if not page.is_complete:
        out.print("failures of before the upgrade are still being grouped", style="yellow")


def _states(chosen: list[str]) -> tuple[str, ...]:
    words = [word for item in chosen for word in item.split(",") if word]
    if "all" in words:
        return STATES
    for word in words:
        if word not in STATES:
            fail(f"--state {word!r} is not valid; expected one of {', '.join(STATES)}, all")
    return tuple(words)


def _show(items: list[FailureGroupSummary]) -> None:
    title, times = column("last", [item.last_seen_at or item.first_seen_at for item in items])
    columns = (
        Column("group"), Column(title, 3), Column("state", 2), Column("times", 0, is_number=True),
        Column("runs", 4, is_number=True), Column("where", 1), Column("cause", 5, is_prose=True),
    )  # fmt: skip
    show_table(columns, [_row(item, when) for item, when in zip(items, times, strict=True)])


def _row(item: FailureGroupSummary, when: str) -> list[str | Text]:
    where = item.places[0] if item.places else None
    places = "–" if where is None else " / ".join(filter(None, (where.workflow_name, where.step_name)))
    more = f" +{len(item.places) - 1}" if len(item.places) > 1 else ""
    state = Text(_state(item), style=_COLOURS.get(item.state, "none"))
    counts = item.counts
    return [
        item.id[:8], when, state, f"{counts.failures:,}", f"{counts.executions:,}", f"{places}{more}", _cause(item)
    ]  # fmt: skip


def _state(item: FailureGroupSummary) -> str:
    if item.new_since_version is not None:
        return f"{item.state}, new since {item.new_since_version}"
    return f"{item.state}, new" if item.is_new and item.state == "open" else item.state


def _cause(item: FailureGroupSummary) -> str:
    kind = item.error_type.rpartition(".")[2]
    text = f"{kind}: {item.message}" if item.message and kind else item.message or kind or "no reason is given"
    return " ".join(text.split())


@failures_app.command("show")
def show_failure(
    group: GroupArgument,
    since: Annotated[str, typer.Option(help="Failures at or after this time, or this long ago; at most 90d.")] = "14d",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Failures to show.")] = 10,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Show one cause: its newest failure with the stack, by version, host and step, and its runs."""
    with open_source(database, url, workspace) as source:
        group_id = _group_id(source, group)
        detail = source.failure(group_id, time_ns(since, time.time_ns()), limit)
        name = source.name
    if detail is None:
        fail(f'there is no failure group "{group}" in {name}')
    if as_json:
        print_json(detail)
        return
    _show_detail(detail)


def _show_detail(detail: FailureGroupDetail) -> None:
    item, counts = detail.group, detail.group.counts
    text = Text()
    text.append(printable(_cause(item)), style="bold")
    text.append(f"\n  {item.id}  ", style="bright_black")
    text.append(_state(item), style=_COLOURS.get(item.state, "none"))
    if item.state_changed_at is not None:
        by = f" by {printable(item.state_changed_by)}" if item.state_changed_by else ""
        text.append(f"{by}, {moment(item.state_changed_at)}")
    if item.note:
        text.append(f"\n  note     {printable(item.note)}")
    text.append(f"\n  seen     {moment(item.first_seen_at)}")
    text.append(f" to {moment(item.last_seen_at)}" if item.last_seen_at else "")
    text.append(f"\n  failed   {counts.attempts:,} attempts, {counts.steps:,} steps, {counts.executions:,} runs")
    for place in item.places[:_SHOWN_PLACES]:
        where = " / ".join(filter(None, (place.workflow_name, place.step_name)))
        text.append(f"\n  where    {printable(where)} ({place.failures:,})")
    for version in detail.by_version[:_SHOWN_PLACES]:
        name = f"{version.workflow_name} {version.workflow_version}"
        text.append(f"\n  version  {printable(name)} ({version.failures:,})")
    for host in detail.by_host[:_SHOWN_PLACES]:
        text.append(f"\n  host     {printable(host.host)} ({host.failures:,})")
    if detail.frames:
        text.append(f"\n  stack    {printable(' > '.join(detail.frames))}")
    out.print(text, soft_wrap=True)
    if item.example is not None and (told := item.example.error_stack or item.example.error_message):
        out.print(Text(printable(told, keep="\n").rstrip()), style="bright_black", soft_wrap=True)
    if detail.occurrences:
        title, times = column("at", [entry.at for entry in detail.occurrences])
        rows = [
            (entry.execution_id, when, entry.step_name or "–", str(entry.attempt or "–"), entry.workflow_version)
            for entry, when in zip(detail.occurrences, times, strict=True)
        ]
        columns = (Column("run"), Column(title, 1), Column("step"), Column("attempt", 2), Column("version", 3))
        show_table(columns, rows)
    if detail.total > len(detail.occurrences):
        out.print(f"{len(detail.occurrences)} of {detail.total:,} failures; more with --limit", style="bright_black")


def _group_id(source: Source, text: str) -> str:
    """The id of the group whose id begins so, or of the one that failed last."""
    if len(text) >= _ID_LENGTH or text == OTHER:
        return text
    since_ns = time.time_ns() - 90 * 86_400 * NS
    page = source.failures(FailureQuery(from_ns=since_ns, states=STATES), 200)
    items = page.items if page is not None else []
    if text == LAST:
        if not items:
            fail(f"nothing has failed in {source.name} in the last 90 days")
        return items[0].id
    matching = [item.id for item in items if item.id.startswith(text)]
    if len(matching) > 1:
        fail(f"{text!r} begins the ids of {len(matching)} groups: {', '.join(matching[:5])}")
    if not matching:
        fail(f"no failure group's id in {source.name} begins with {text!r}")
    return matching[0]


@failures_app.command("mute")
def mute(
    group: GroupArgument,
    note: NoteOption = "",
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Leave a cause out of lists, whether or not it fails again."""
    _act(group, "mute", note, database, url, workspace)


@failures_app.command("unmute")
def unmute(
    group: GroupArgument,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """List a muted cause again."""
    _act(group, "unmute", "", database, url, workspace)


@failures_app.command("resolve")
def resolve(
    group: GroupArgument,
    note: NoteOption = "",
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Say that a cause is mended. If it fails again, it is listed as regressed."""
    _act(group, "resolve", note, database, url, workspace)


@failures_app.command("reopen")
def reopen(
    group: GroupArgument,
    note: NoteOption = "",
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Take back that a cause is mended."""
    _act(group, "reopen", note, database, url, workspace)


def _act(group: str, action: str, note: str, database: str | None, url: str | None, workspace: str | None) -> None:
    with open_source(database, url, workspace) as source:
        group_id = _group_id(source, group)
        detail = source.change_failure(group_id, action, note)
        name = source.name
    if detail is None:
        fail(f'there is no failure group "{group}" in {name}')
    out.print(f"[green]✔[/] {detail.group.state}: {shown(_cause(detail.group))}", soft_wrap=True)
