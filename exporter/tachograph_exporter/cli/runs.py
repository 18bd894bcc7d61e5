"""``tachograph runs``, ``logs``, ``open`` and ``cancel``: find a run, and what to do with it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from tachograph.clock import NS
from tachograph.events import ExecutionStatus
from tachograph_exporter.cli.columns import Column, show_table
from tachograph_exporter.cli.common import (
    JsonOption,
    OutputOption,
    ReadWorkspaceOption,
    YesOption,
    app,
    confirm,
    err,
    fail,
    out,
    print_json,
    time_ns,
)
from tachograph_exporter.cli.moments import clock, column, moment
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.references import RunArgument, of_workflow, run_id, timeline_of
from tachograph_exporter.cli.sources import (
    DEFAULT_URL,
    LogQuery,
    ReadDatabaseOption,
    Source,
    UrlOption,
)
from tachograph_exporter.cli.terminal import COLOURS, MARKS, printable, shown
from tachograph_exporter.reading.queries import RunQuery
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse
from tachograph_exporter.views.schemas.logs import LogEntry

TROUBLE: Final = ("failed", "timeout", "lost")
"""What ``--failed`` selects."""
LEVELS: Final = ("trace", "debug", "info", "warn", "error", "fatal")


@app.command()
def runs(
    status: Annotated[
        list[str] | None, typer.Option(help=f"Status: {', '.join(ExecutionStatus)}. Repeatable.", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help=f"The same as --status {','.join(TROUBLE)}.")] = False,
    since: Annotated[
        str | None, typer.Option(help="Created at or after this time, or this long ago (24h, 7d).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Created before this time, or this long ago.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Runs of this workflow (name or id).")] = None,
    error: Annotated[str | None, typer.Option(help="Runs with this text in their error.")] = None,
    last: Annotated[bool, typer.Option("--last", help="Only the last run of each workflow that matches.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="Runs to show.")] = 20,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """List runs, newest first: when, which workflow, how it ended, how long it took, and its error."""
    now = time.time_ns()
    query = RunQuery(workflow, _statuses(status or [], failed=failed), time_ns(since, now), time_ns(until, now), error)
    with open_source(database, url, workspace) as source:
        if last:
            items = last_runs(source, query)[:limit]
            total = len(items)
        else:
            items, total = source.runs(query, limit)
        if not items and workflow is not None:
            of_workflow(source, workflow, source.workflow(workflow))
        name = source.name
    if as_json:
        print_json(items)
        return
    if not items:
        is_filtered = any(query) or last
        out.print(f"no runs {'match' if is_filtered else 'yet'} in {shown(name)}", soft_wrap=True)
        return
    show_runs(items)
    if total > len(items):
        out.print(f"{len(items)} of {total:,} runs; more with --limit", style="bright_black")


def last_runs(source: Source, query: RunQuery = RunQuery()) -> list[WorkflowExecutionResponse]:  # noqa: B008 - a tuple
    """The newest matching run of each workflow, newest first."""
    names = [query.workflow] if query.workflow is not None else [item.id for item in source.workflows()]
    newest = [run for name in names for run in source.runs(query._replace(workflow=name), 1)[0]]
    return sorted(newest, key=lambda run: (run.created_at, run.execution_id), reverse=True)


def _statuses(given: list[str], *, failed: bool) -> tuple[str, ...]:
    chosen = [word for item in given for word in item.split(",") if word]
    for word in chosen:
        if word not in tuple(ExecutionStatus):
            fail(f"--status {word!r} is not valid; expected one of {', '.join(ExecutionStatus)}")
    return tuple(dict.fromkeys([*chosen, *(TROUBLE if failed else ())]))


def show_runs(items: list[WorkflowExecutionResponse]) -> None:
    """Print a table of runs."""
    title, times = column("started", [run.started_at or run.created_at for run in items])
    columns = (
        Column("run", 3), Column(title, 2), Column("status"), Column("workflow"), Column("took", 1, is_number=True),
        Column("error", 4, is_prose=True),
    )  # fmt: skip
    show_table(columns, [_row(run, when) for run, when in zip(items, times, strict=True)])


def _row(run: WorkflowExecutionResponse, when: str) -> list[str | Text]:
    seconds = run.duration_seconds if run.duration_seconds is not None else run.elapsed_seconds
    took = format_duration(round(seconds * NS)) if seconds is not None else "–"
    status = Text(f"{MARKS.get(run.status, ' ')} {run.status}", style=COLOURS.get(run.status, "none"))
    kind = (run.error_type or "").rpartition(".")[2]
    error = f"{kind}: {run.error_message}" if run.error_message else kind
    # As on the page: ids begin with a time, so those of runs close in time begin alike.
    return [f"…{run.execution_id[-6:]}", when, status, run.workflow_name, took, " ".join(error.split())]


_FOLLOW_SECONDS: Final = 1.0


@app.command()
def logs(
    run: RunArgument,
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="Only lines of this step (name or id).")] = None,
    level: Annotated[str | None, typer.Option(help=f"Only this level or above: {', '.join(LEVELS)}.")] = None,
    step_option: Annotated[str | None, typer.Option("--step", help="The same as STEP.", metavar="STEP")] = None,
    grep: Annotated[
        str | None, typer.Option(help="Only lines with this text, whatever its case.", metavar="TEXT")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only lines of this attempt.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="Lines to show, the newest.")] = 1000,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Show the log lines of a run or of one of its steps, with what its commands wrote, oldest first."""
    if level is not None and level not in LEVELS:
        fail(f"--level {level!r} is not valid; expected one of {', '.join(LEVELS)}")
    if follow and as_json:
        fail("--follow prints lines as they come, and --json one document: choose one of the two")
    step = step if step is not None else step_option
    query = LogQuery(step, level, grep, attempt)
    with open_source(database, url, workspace) as source:
        identifier = run_id(source, run)
        timeline = timeline_of(source, identifier)
        names = {entry.step_name for entry in timeline.step_timeline}
        if step is not None and not follow and step not in names | {entry.step_id for entry in timeline.step_timeline}:
            fail(f'run {identifier} has no step "{step}"; it has {", ".join(sorted(names)[:20]) or "none"}')
        if follow:
            _follow(source, identifier, query, limit)
            return
        lines, are_older = source.logs(identifier, query, limit)
    if as_json:
        print_json(lines)
        return
    if are_older:
        err.print(f"older lines are left out; show more than {limit:,} with --limit", style="bright_black")
    if not lines:
        what = f"step {step}" if step is not None else "run"
        like_that = " like that" if level or grep or attempt else ""
        err.print(f"this {shown(what)} logged nothing{like_that}", style="bright_black")
        return
    _print_lines(lines, f"{shown(timeline.workflow_name)}  {identifier}", "", has_step=step is None)


def _print_lines(lines: Sequence[LogEntry], run: str, day: str, *, has_step: bool) -> str:
    """Print lines, with a heading for each day after ``day``. Returns the last one."""
    for line in lines:
        if (today := moment(line.at)[:10]) != day:
            day = today
            out.print(f"{moment(line.at)}  {run}", style="bright_black", soft_wrap=True)
        out.print(_log_line(line, has_step=has_step), soft_wrap=True)
    return day


def _follow(source: Source, identifier: str, query: LogQuery, limit: int) -> None:
    """Print lines as they come, until the run has ended and its last lines are there."""
    printed: Counter[tuple[object, ...]] = Counter()
    day = ""
    while True:
        # Before the lines: those of its end are there once it has ended.
        timeline = timeline_of(source, identifier)
        lines, _ = source.logs(identifier, query, limit)
        keys = [(line.at, line.source, line.step_id, line.attempt, line.span_id, line.message) for line in lines]
        # Lines of several processes do not come in order: what was not there before is new.
        seen: Counter[tuple[object, ...]] = Counter()
        new = []
        for line, key in zip(lines, keys, strict=True):
            seen[key] += 1
            if seen[key] > printed[key]:
                new.append(line)
        printed = seen
        run = f"{shown(timeline.workflow_name)}  {identifier}"
        day = _print_lines(new, run, day, has_step=query.step is None)
        if timeline.completed_at is not None:
            return
        time.sleep(_FOLLOW_SECONDS)


_LEVEL_STYLES: Final = ((17, "red"), (13, "yellow"), (0, "none"))


def _log_line(line: Any, *, has_step: bool) -> Text:
    text = Text(f"{clock(line.at)} ", style="none")
    text.stylize("bright_black")
    style = next(style for low, style in _LEVEL_STYLES if line.severity >= low)
    text.append(f"{line.level or '–':<8}", style=style)
    if has_step:
        text.append(f"{printable(line.step_name or '(run)')}", style="bold")
        text.append("  ")
    if (line.attempt or 1) > 1:
        text.append(f"attempt {line.attempt}  ", style="yellow")
    text.append(printable(line.message, keep="\n"))
    if line.error_type and line.error_type not in line.message:
        text.append(printable(f"  {line.error_type}: {line.error_message or ''}"), style="red")
    return text


@app.command("open")
def open_page(
    run: RunArgument = "last",
    only_print: Annotated[bool, typer.Option("--print", help="Only print the address.")] = False,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Open the page at a run, in the browser, and print its address."""
    with open_source(database, url, workspace) as source:
        identifier = run_id(source, run)
        base = source.url or DEFAULT_URL
    address = f"{base}/#/executions/{identifier}"
    out.print(address, soft_wrap=True, markup=False)
    if only_print:
        return
    import webbrowser

    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        err.print("there is no browser here; open the address yourself", style="bright_black")


@app.command()
def cancel(
    run: RunArgument,
    yes: YesOption = False,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a run of a service: its running steps are stopped, the others do not start."""
    with open_source(None, url, workspace) as source:
        if source.url is None:
            fail("which service runs it? Give --url, or set TACHOGRAPH_URL")
        identifier = run_id(source, run)
        timeline = timeline_of(source, identifier)
        if timeline.completed_at is not None:
            fail(f"run {identifier} of {timeline.workflow_name} has ended: {timeline.status}")
        confirm(f"Cancel run {identifier} of {timeline.workflow_name}?", yes=yes)
        answer = source.cancel(identifier)
    if as_json:
        print_json(answer)
    else:
        out.print(f"[green]✔[/] run {identifier} is being cancelled")
