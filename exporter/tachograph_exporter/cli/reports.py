"""``tachograph timeline``, ``metrics``, ``trends`` and ``compare``: show what was recorded."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from sqlalchemy import Connection

from tachograph.errors import ExecutionNotFound
from tachograph.identity import workspace_id
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    WorkspaceOption,
    app,
    fail,
    open_database,
    out,
    print_json,
    report_errors,
)
from tachograph_exporter.cli.tables import comparison_table, metrics_text, trends_table
from tachograph_exporter.cli.terminal import TimelineView, shown
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.times import parse_duration, parse_time
from tachograph_exporter.views.comparison import compare_runs, read_baseline_comparison
from tachograph_exporter.views.metrics import read_metrics
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.timeline import build_timeline
from tachograph_exporter.views.trends import BUCKETS, bucket_range, read_trends


def _run(connection: Connection, workspace: str, execution: str) -> StoredRun:
    """An execution by id, or the newest one for ``last``."""
    owner = workspace_id(workspace)
    if execution == "last":
        rows = execution_list.executions(connection, ExecutionFilter(workspace=owner), 0, 1)
        if not rows:
            fail(f'no executions in workspace "{workspace}"')
        execution = rows[0].execution_id
    try:
        return find_run(connection, owner, execution)
    except ExecutionNotFound:
        fail(f'no execution "{execution}" in workspace "{workspace}"')


@app.command()
def timeline(
    execution: Annotated[str, typer.Argument(help="Execution id, or 'last'.")],
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Draw the timeline of a recorded execution."""
    with report_errors(), open_database(database, must_exist=True) as store:
        run = store.look(lambda c: _run(c, workspace, execution))
    document = build_timeline(run, now_ns=time.time_ns())
    if as_json:
        print_json(document)
    else:
        out.print(TimelineView(document))


SinceOption = Annotated[
    str | None,
    typer.Option("--from", help="Only executions that ended at or after this time, or this long ago (24h, 7d)."),
]
UntilOption = Annotated[str | None, typer.Option("--to", help="Only executions that ended before this time.")]
WorkflowArgument = Annotated[str, typer.Argument(help="Workflow name or id.")]


def _time_ns(text: str | None, now_ns: int) -> int | None:
    try:
        return parse_time(text, now_ns) if text is not None else None
    except ValueError as error:
        fail(str(error))


@app.command()
def metrics(
    workflow: WorkflowArgument,
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a workflow's metrics: executions, success rate, duration percentiles, and its steps."""
    now = time.time_ns()
    low, high = _time_ns(since, now), _time_ns(until, now)
    with report_errors(), open_database(database, must_exist=True) as store:
        summary = store.look(lambda c: read_metrics(c, workspace_id(workspace), workflow, low, high, now))
    if summary is None:
        fail(f'no workflow "{workflow}" in workspace "{workspace}"')
    if as_json:
        print_json(summary)
    else:
        out.print(metrics_text(summary))


@app.command()
def trends(
    workflow: WorkflowArgument,
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    bucket: Annotated[str, typer.Option(help="Bucket width: 5m, 1h or 1d.")] = "1h",
    since: SinceOption = None,
    step: Annotated[str | None, typer.Option(help="Show the trends of this step instead of the executions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a workflow's durations and success rate change over time, and since when it is slower."""
    if bucket not in BUCKETS:
        fail(f"--bucket {bucket!r} is not valid; expected one of {', '.join(BUCKETS)}")
    now = time.time_ns()
    low_s, high_s = bucket_range(bucket, _time_ns(since, now), now)

    def read(connection: Connection) -> WorkflowTrends:
        row = definition_rows.find_definition(connection, workspace_id(workspace), workflow)
        if row is None:
            fail(f'no workflow "{workflow}" in workspace "{workspace}"')
        return read_trends(connection, (row.workspace_id, row.id), row, bucket, low_s, high_s, step)

    with report_errors(), open_database(database, must_exist=True) as store:
        document = store.look(read)
    if as_json:
        print_json(document)
    else:
        out.print(trends_table(document))
        for change in document.change_points:
            out.print(
                f"[{'red' if change.direction == 'slower' else 'green'}]●[/] {shown(change.sentence)}", soft_wrap=True
            )


@app.command()
def compare(
    execution: Annotated[str, typer.Argument(help="Execution id to explain, or 'last'.")],
    other: Annotated[
        str | None, typer.Argument(help="Execution id to compare it with. Default: the workflow's recent executions.")
    ] = None,
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    baseline: Annotated[str, typer.Option(help="How far back the recent executions go.")] = "7d",
    as_json: JsonOption = False,
) -> None:
    """Find the step that made an execution slow, compared with another one or with recent ones."""
    try:
        back_ns = parse_duration(baseline)
    except ValueError as error:
        fail(str(error))

    def read(connection: Connection) -> ExecutionComparison:
        run = _run(connection, workspace, execution)
        if other is not None:
            return compare_runs(run, _run(connection, workspace, other))
        return read_baseline_comparison(connection, workspace_id(workspace), run, back_ns)

    with report_errors(), open_database(database, must_exist=True) as store:
        comparison = store.look(read)
    if as_json:
        print_json(comparison)
    else:
        out.print(comparison_table(comparison))
        out.print(shown(comparison.sentence), soft_wrap=True)
