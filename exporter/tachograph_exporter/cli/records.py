"""``tachograph validate``, ``seed``, ``timeline``, ``metrics``, ``trends`` and ``compare``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection, Row

from tachograph.errors import ExecutionNotFound
from tachograph.identity import workspace_id
from tachograph.workflow.definition import Workflow
from tachograph.workflow.validation import validate_document
from tachograph_exporter import bundled_workflows
from tachograph_exporter.cli.common import (
    DATABASE,
    AllowOption,
    DatabaseOption,
    HandlersOption,
    JsonOption,
    WorkspaceOption,
    app,
    fail,
    load_handlers,
    open_database,
    out,
    print_faults,
    print_json,
    report_errors,
)
from tachograph_exporter.cli.terminal import TimelineView, comparison_table, metrics_text, shown, trends_table
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.definitions import definition_values
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.times import parse_duration, parse_time
from tachograph_exporter.views.comparison import compare_runs, read_baseline_comparison
from tachograph_exporter.views.metrics import read_metrics
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.schemas.workflows import ValidationResult
from tachograph_exporter.views.timeline import build_timeline
from tachograph_exporter.views.trends import BUCKETS, bucket_range, read_trends


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="Workflow definition (JSON).")],
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a workflow definition and list every fault with its place. Exit code: 0 if valid, else 1."""
    try:
        document = file.read_bytes()
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}")
    workflow, report = validate_document(document, load_handlers(["examples", *(handlers or [])], allow_handler))
    if as_json:
        print_json(ValidationResult(report.is_valid, report.errors, report.warnings))
    else:
        print_faults(report.warnings, "warning")
        print_faults(report.errors, "error")
        if workflow is not None:
            out.print(f'[green]✔[/] {shown(file)}: workflow "{shown(workflow.name)}", {len(workflow.steps)} steps')
        else:
            out.print(f"[red]✘[/] {shown(file)}: {len(report.errors)} error{'s' if len(report.errors) != 1 else ''}")
    raise typer.Exit(0 if report.is_valid else 1)


@app.command()
def seed(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Directory of definitions (*.json). Default: the bundled examples."),
    ] = None,
    database: DatabaseOption = DATABASE,
    workspace: Annotated[str, typer.Option("--workspace-id", help="Workspace id or slug.")] = "default",
    project: Annotated[str, typer.Option("--project-id", help="Project id or slug.")] = "default",
    skip_existing: Annotated[bool, typer.Option(help="Do not update workflows that are already registered.")] = False,
    handlers: HandlersOption = None,
) -> None:
    """Register the workflow definitions in a directory, updating those that are already registered."""
    with report_errors():
        registry = load_handlers(["examples", *(handlers or [])])
        paths = sorted((directory or bundled_workflows.workflow_directory()).glob("*.json"))
        if not paths:
            fail(f"no definitions (*.json) in {directory}")
        valid: list[tuple[Path, Workflow]] = []
        invalid_count = 0
        for path in paths:
            workflow, report = validate_document(path.read_bytes(), registry)
            if workflow is None:
                invalid_count += 1
                out.print(f"[red]✘[/] {shown(path.name)}: {len(report.errors)} error(s)")
                print_faults(report.errors, "error")
            else:
                valid.append((path, workflow))
        store = open_database(database)
        outcomes = seed_workflows(store, workspace, project, [w for _, w in valid], skip_existing=skip_existing)
        for (path, workflow), outcome in zip(valid, outcomes, strict=True):
            out.print(f"[green]✔[/] {shown(path.name)}: {shown(workflow.name)}, {len(workflow.steps)} steps, {outcome}")
        store.close()
    raise typer.Exit(1 if invalid_count else 0)


def seed_workflows(
    store: Database, workspace: str, project: str, workflows: list[Workflow], *, skip_existing: bool = False
) -> list[str]:
    """Register definitions in one transaction. Returns an outcome for each: created, changed, unchanged or skipped.

    The workspace and the project are looked up by id or slug; those called ``default`` are created if missing.
    """

    def work(connection: Connection) -> list[str]:
        now = time.time_ns()
        if workspace == "default":
            add_workspace(connection, workspace, now)
        workspace_row = workspace_rows.find_workspace(connection, workspace)
        if workspace_row is None:
            fail(f'no workspace "{workspace}" in {store.name}')
        if project == "default":
            add_project(connection, workspace_row.slug, project, now)
        project_row = workspace_rows.project(connection, workspace_row.id, project)
        if project_row is None:
            fail(f'no project "{project}" in workspace "{workspace_row.slug}"')
        return [
            _register(connection, workspace_row, project_row.slug, workflow, now, skip_existing)
            for workflow in workflows
        ]

    return store.run(work)


def _register(
    connection: Connection, workspace: Row[Any], project: str, workflow: Workflow, now: int, skip_existing: bool
) -> str:
    row = definition_rows.definition(connection, workspace.id, name=workflow.name)
    if row is None:
        definition_rows.register(connection, workspace.id, project, workflow, now)
        return "created"
    if row.document is not None and skip_existing:
        return "skipped, already registered"
    if row.document == definition_values(workflow, now)["document"]:
        return "unchanged"
    definition_rows.change(connection, row.id, workflow, now)
    return "changed"


def _run(connection: Connection, owner: str, execution: str) -> execution_rows.StoredRun:
    """An execution by id, or the newest one for ``last``. Raises `ExecutionNotFound`."""
    if execution == "last":
        rows = execution_list.executions(connection, ExecutionFilter(workspace=owner), 0, 1)
        execution = rows[0].execution_id if rows else execution
    return find_run(connection, owner, execution)


@app.command()
def timeline(
    execution: Annotated[str, typer.Argument(help="Execution id, or 'last'.")],
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Draw the timeline of a recorded execution."""
    with report_errors():
        store = open_database(database, must_exist=True)
        owner = workspace_id(workspace)

        try:
            run = store.look(lambda c: _run(c, owner, execution))
        except ExecutionNotFound as error:
            fail(f'{error} "{workspace}"')
        finally:
            store.close()
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


def _workflow(connection: Connection, workspace: str, workflow: str) -> Row[Any]:
    row = definition_rows.find_definition(connection, workspace_id(workspace), workflow)
    if row is None:
        fail(f'no workflow "{workflow}" in workspace "{workspace}"')
    return row


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
    with report_errors():
        store = open_database(database, must_exist=True)

        def read(connection: Connection) -> WorkflowMetricsSummary:
            summary = read_metrics(connection, workspace_id(workspace), workflow, low, high, now)
            if summary is None:
                fail(f'no workflow "{workflow}" in workspace "{workspace}"')
            return summary

        summary = store.look(read)
        store.close()
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
    with report_errors():
        store = open_database(database, must_exist=True)

        def read(connection: Connection) -> WorkflowTrends:
            row = _workflow(connection, workspace, workflow)
            return read_trends(connection, (row.workspace_id, row.id), row, bucket, low_s, high_s, step)

        document = store.look(read)
        store.close()
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
    with report_errors():
        store = open_database(database, must_exist=True)
        owner = workspace_id(workspace)

        def read(connection: Connection) -> ExecutionComparison:
            run = _run(connection, owner, execution)
            if other is not None:
                return compare_runs(run, find_run(connection, owner, other))
            return read_baseline_comparison(connection, owner, run, back_ns)

        try:
            comparison = store.look(read)
        finally:
            store.close()
    if as_json:
        print_json(comparison)
    else:
        out.print(comparison_table(comparison))
        out.print(shown(comparison.sentence), soft_wrap=True)
