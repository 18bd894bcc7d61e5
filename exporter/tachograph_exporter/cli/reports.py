"""``tachograph timeline``, ``metrics``, ``trends`` and ``compare``: show what was recorded."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from tachograph_exporter.cli.common import (
    JsonOption,
    OutputOption,
    ReadWorkspaceOption,
    app,
    duration_ns,
    fail,
    out,
    print_json,
    time_ns,
)
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.references import RunArgument, WorkflowArgument, of_workflow, run_id, timeline_of
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.tables import show_below, show_comparison, show_metrics, show_trends
from tachograph_exporter.cli.terminal import TimelineView, shown

BUCKETS = ("5m", "1h", "1d")
"""As in `views.trends`, which a command that asks a service does not load."""


@app.command()
def timeline(
    run: RunArgument = "last",
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    below: Annotated[
        bool, typer.Option("--below", help="Say what lies below the steps: spans of SQL, HTTP, …, summed by name.")
    ] = False,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Draw the timeline of a recorded run."""
    with open_source(database, url, workspace) as source:
        document = timeline_of(source, run_id(source, run))
        by_step = source.below(document.execution_id) if below else {}
    for entry in document.step_timeline:
        entry.below = by_step.get(entry.step_id)
    if as_json:
        print_json(document)
        return
    out.print(TimelineView(document))
    if below:
        show_below(document)


SinceOption = Annotated[
    str | None,
    typer.Option("--from", help="Only runs that ended at or after this time, or this long ago (24h, 7d)."),
]
UntilOption = Annotated[str | None, typer.Option("--to", help="Only runs that ended before this time.")]


@app.command()
def metrics(
    workflow: WorkflowArgument,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Show a workflow's metrics: runs, success rate, duration percentiles, and its steps."""
    now = time.time_ns()
    low, high = time_ns(since, now), time_ns(until, now)
    with open_source(database, url, workspace) as source:
        summary = of_workflow(source, workflow, source.metrics(workflow, low, high))
    if as_json:
        print_json(summary)
    else:
        show_metrics(summary)


@app.command()
def trends(
    workflow: WorkflowArgument,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    bucket: Annotated[str, typer.Option(help=f"Bucket width: {', '.join(BUCKETS)}.")] = "1h",
    since: SinceOption = None,
    step: Annotated[str | None, typer.Option(help="Show the trends of this step instead of the runs.")] = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Show how a workflow's durations and success rate change over time, and since when it is slower."""
    if bucket not in BUCKETS:
        fail(f"--bucket {bucket!r} is not valid; expected one of {', '.join(BUCKETS)}")
    low = time_ns(since, time.time_ns())
    with open_source(database, url, workspace) as source:
        document = of_workflow(source, workflow, source.trends(workflow, bucket, low, step))
    if as_json:
        print_json(document)
        return
    show_trends(document)
    for change in document.change_points:
        colour = "red" if change.direction == "slower" else "green"
        out.print(f"[{colour}]●[/] {shown(change.sentence)}", soft_wrap=True)


@app.command()
def compare(
    run: RunArgument = "last",
    other: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER]", help="Run to compare it with. Default: the workflow's recent runs."),
    ] = None,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    baseline: Annotated[str, typer.Option(help="How far back the recent runs go.")] = "7d",
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Find the step that made a run slow, compared with another one or with recent ones."""
    back_ns = duration_ns(baseline)
    with open_source(database, url, workspace) as source:
        reference = run_id(source, other) if other is not None else None
        comparison = source.compare(run_id(source, run), reference, back_ns)
    if as_json:
        print_json(comparison)
    else:
        show_comparison(comparison)
        out.print(shown(comparison.sentence), soft_wrap=True)
