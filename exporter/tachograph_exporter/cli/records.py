"""``tachograph validate``, ``seed``, ``timeline`` and ``metrics``: definitions in, records out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection, Row, insert, update

from tachograph.errors import ExecutionNotFound
from tachograph.identity import new_id, workspace_id
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
    told,
)
from tachograph_exporter.cli.terminal import TimelineView, comparison_table, metrics_text, trends_table
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.definitions import definition_values
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.schema import workflow_definitions
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.times import parse_duration, parse_time
from tachograph_exporter.views.comparison import compare_runs, usual_comparison
from tachograph_exporter.views.metrics import read_metrics
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.schemas.workflows import ValidationResult
from tachograph_exporter.views.timeline import build_timeline
from tachograph_exporter.views.trends import BUCKETS, bucket_range, build_trends


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A workflow definition.")],
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a definition: every fault at once, each with its place. Exit code 0 when it is valid, else 1."""
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
            out.print(f'[green]✔[/] {file}: workflow "{workflow.name}", {len(workflow.steps)} steps')
        else:
            out.print(f"[red]✘[/] {file}: {len(report.errors)} fault{'s' if len(report.errors) != 1 else ''}")
    raise typer.Exit(0 if report.is_valid else 1)


@app.command()
def seed(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where the definitions are (default: the examples).")
    ] = None,
    database: DatabaseOption = DATABASE,
    workspace: Annotated[str, typer.Option("--workspace-id", help="Workspace, by id or slug.")] = "default",
    project: Annotated[str, typer.Option("--project-id", help="Project of the workspace, by id or slug.")] = "default",
    skip_existing: Annotated[bool, typer.Option(help="Leave workflows that are there already as they are.")] = False,
    handlers: HandlersOption = None,
) -> None:
    """Register the workflow definitions of a directory; those there already are changed (or skipped)."""
    with told():
        known = load_handlers(["examples", *(handlers or [])])
        paths = sorted((directory or bundled_workflows.workflow_directory()).glob("*.json"))
        if not paths:
            fail(f"there is no definition (*.json) in {directory}")
        valid: list[tuple[Path, Workflow]] = []
        broken = 0
        for path in paths:
            workflow, report = validate_document(path.read_bytes(), known)
            if workflow is None:
                broken += 1
                out.print(f"[red]✘[/] {path.name}: {len(report.errors)} fault(s)")
                print_faults(report.errors, "error")
            else:
                valid.append((path, workflow))
        store = open_database(database)
        outcomes = seed_workflows(store, workspace, project, [w for _, w in valid], skip_existing=skip_existing)
        for (path, workflow), outcome in zip(valid, outcomes, strict=True):
            out.print(f"[green]✔[/] {path.name}: {workflow.name}, {len(workflow.steps)} steps, {outcome}")
        store.close()
    raise typer.Exit(1 if broken else 0)


def seed_workflows(
    store: Database, workspace: str, project: str, workflows: list[Workflow], *, skip_existing: bool = False
) -> list[str]:
    """Register definitions in one transaction; what became of each: created, changed, unchanged or skipped.

    The workspace and project are found by id or slug. Those called ``default`` are made when not there.
    """

    def work(connection: Connection) -> list[str]:
        now = time.time_ns()
        if workspace == "default":
            add_workspace(connection, workspace, now)
        found = workspace_rows.find_workspace(connection, workspace)
        if found is None:
            fail(f'there is no workspace "{workspace}" in {store.name}')
        if project == "default":
            add_project(connection, found.slug, project, now)
        owner = workspace_rows.project(connection, found.id, project)
        if owner is None:
            fail(f'there is no project "{project}" in workspace "{found.slug}"')
        return [_seed_one(connection, found, owner.slug, workflow, now, skip_existing) for workflow in workflows]

    return store.run(work)


def _seed_one(
    connection: Connection, workspace: Row[Any], project: str, workflow: Workflow, now: int, skip_existing: bool
) -> str:
    values = definition_values(workflow, now)
    row = definition_rows.definition(connection, workspace.id, name=workflow.name)
    if row is None:
        connection.execute(
            insert(workflow_definitions).values(
                id=new_id(now), workspace_id=workspace.id, project=project, created_ns=now, **values
            )
        )
        return "created"
    if row.document is not None and skip_existing:
        return "skipped, it is there"
    if row.document == values["document"]:
        return "unchanged"
    connection.execute(update(workflow_definitions).where(workflow_definitions.c.id == row.id).values(values))
    return "changed"


def _run(connection: Connection, owner: str, wanted: str) -> execution_rows.StoredRun:
    """An execution by id, or the newest for ``last``. Raises `StoreError`."""
    if wanted == "last":
        rows = execution_list.executions(connection, ExecutionFilter(workspace=owner), 0, 1)
        wanted = rows[0].execution_id if rows else wanted
    return find_run(connection, owner, wanted)


@app.command()
def timeline(
    execution: Annotated[str, typer.Argument(help="An execution's id, or 'last'.")],
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Draw a recorded run's timeline."""
    with told():
        store = open_database(database, must_exist=True)
        owner = workspace_id(workspace)

        try:
            run = store.look(lambda c: _run(c, owner, execution))
        except ExecutionNotFound as error:
            fail(f'{error} "{workspace}"')
        finally:
            store.close()
    built = build_timeline(run, now_ns=time.time_ns())
    if as_json:
        print_json(built)
    else:
        out.print(TimelineView(built))


SinceOption = Annotated[str | None, typer.Option("--from", help="Only what ended since: a time, or ago (24h, 7d).")]
UntilOption = Annotated[str | None, typer.Option("--to", help="Only what ended before.")]
WorkflowArgument = Annotated[str, typer.Argument(help="A workflow, by name or id.")]


def _moment(text: str | None, now_ns: int) -> int | None:
    try:
        return parse_time(text, now_ns) if text is not None else None
    except ValueError as error:
        fail(str(error))


def _workflow(connection: Connection, workspace: str, wanted: str) -> Row[Any]:
    row = definition_rows.find_definition(connection, workspace_id(workspace), wanted)
    if row is None:
        fail(f'there is no workflow "{wanted}" in workspace "{workspace}"')
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
    """Show a workflow's figures: executions, success rate, percentiles, and its steps."""
    now = time.time_ns()
    low, high = _moment(since, now), _moment(until, now)
    with told():
        store = open_database(database, must_exist=True)

        def read(connection: Connection) -> WorkflowMetricsSummary:
            found = read_metrics(connection, workspace_id(workspace), workflow, low, high, now)
            if found is None:
                fail(f'there is no workflow "{workflow}" in workspace "{workspace}"')
            return found

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
    bucket: Annotated[str, typer.Option(help="5m, 1h or 1d.")] = "1h",
    since: SinceOption = None,
    step: Annotated[str | None, typer.Option(help="This step instead of the executions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a workflow changes over time, and since when it takes longer."""
    if bucket not in BUCKETS:
        fail(f"{bucket!r} is none of {', '.join(BUCKETS)}")
    now = time.time_ns()
    low_s, high_s = bucket_range(bucket, _moment(since, now), now)
    with told():
        store = open_database(database, must_exist=True)

        def read(connection: Connection) -> WorkflowTrends:
            row = _workflow(connection, workspace, workflow)
            return build_trends(connection, (row.workspace_id, row.id), row, bucket, low_s, high_s, step)

        found = store.look(read)
        store.close()
    if as_json:
        print_json(found)
    else:
        out.print(trends_table(found))
        for change in found.change_points:
            out.print(f"[{'red' if change.direction == 'slower' else 'green'}]●[/] {change.sentence}", soft_wrap=True)


@app.command()
def compare(
    execution: Annotated[str, typer.Argument(help="The execution to look at, by id, or 'last'.")],
    other: Annotated[str | None, typer.Argument(help="Another one to compare it with; else with its usual.")] = None,
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    baseline: Annotated[str, typer.Option(help="How far back its usual goes.")] = "7d",
    as_json: JsonOption = False,
) -> None:
    """Which step made a run slow? Compare it with another one, or with what is usual."""
    try:
        back_ns = parse_duration(baseline)
    except ValueError as error:
        fail(str(error))
    with told():
        store = open_database(database, must_exist=True)
        owner = workspace_id(workspace)

        def read(connection: Connection) -> ExecutionComparison:
            run = _run(connection, owner, execution)
            if other is not None:
                return compare_runs(run, find_run(connection, owner, other))
            return usual_comparison(connection, owner, run, back_ns)

        try:
            found = store.look(read)
        finally:
            store.close()
    if as_json:
        print_json(found)
    else:
        out.print(comparison_table(found))
        out.print(found.sentence, soft_wrap=True)
