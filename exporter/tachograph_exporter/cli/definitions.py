"""``tachograph validate`` and ``seed``: check workflow definitions and register them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from sqlalchemy import Connection

from tachograph.workflow.definition import Workflow
from tachograph.workflow.document import active_flag
from tachograph.workflow.validation import validate_document
from tachograph_exporter import bundled_workflows
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    app,
    fail,
    open_database,
    out,
    print_faults,
    print_json,
    report_errors,
)
from tachograph_exporter.cli.handlers import AllowOption, HandlersOption, load_handlers
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.views.workflows import validation_result


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
        print_json(validation_result(_decoded(document), report))
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
        typer.Argument(
            metavar="[DIR|FILE]", help="Directory of definitions (*.json), or one. Default: the bundled examples."
        ),
    ] = None,
    database: DatabaseOption = DATABASE,
    workspace: Annotated[str, typer.Option("--workspace-id", help="Workspace id or slug.")] = "default",
    project: Annotated[str, typer.Option("--project-id", help="Project id or slug.")] = "default",
    skip_existing: Annotated[bool, typer.Option(help="Do not update workflows that are already registered.")] = False,
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
) -> None:
    """Register the workflow definitions in a directory or file, updating those that are already registered."""
    with report_errors():
        registry = load_handlers(["examples", *(handlers or [])], allow_handler)
        place = directory or bundled_workflows.workflow_directory()
        paths = [place] if place.is_file() else sorted(place.glob("*.json"))
        if not paths:
            fail(f"no definitions (*.json) in {directory}")
        valid: list[tuple[Path, Workflow]] = []
        flags: dict[str, bool | None] = {}
        invalid_count = 0
        for path in paths:
            document = path.read_bytes()
            workflow, report = validate_document(document, registry)
            if workflow is None:
                invalid_count += 1
                out.print(f"[red]✘[/] {shown(path.name)}: {len(report.errors)} error(s)")
                print_faults(report.errors, "error")
            else:
                valid.append((path, workflow))
                flags[workflow.name] = active_flag(_decoded(document))
        with open_database(database) as store:
            outcomes = seed_workflows(
                store, workspace, project, [w for _, w in valid], skip_existing=skip_existing, active=flags
            )
        for (path, workflow), outcome in zip(valid, outcomes, strict=True):
            out.print(
                f"[green]✔[/] {shown(path.name)}: {shown(workflow.name)}, {len(workflow.steps)} steps, {outcome}",
                soft_wrap=True,
            )
    raise typer.Exit(1 if invalid_count else 0)


def _decoded(document: bytes) -> dict[str, Any]:
    """A document that was validated as a JSON object, or {} if it is none."""
    try:
        return msgspec.json.decode(document, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def seed_workflows(
    store: Database,
    workspace: str,
    project: str,
    workflows: list[Workflow],
    *,
    skip_existing: bool = False,
    active: Mapping[str, bool | None] | None = None,
) -> list[str]:
    """Register definitions in one transaction. Returns an outcome for each: created, changed, unchanged or skipped.

    ``active``: whether the API may execute them, by name, where their documents say so. The workspace and the project
    are looked up by id or slug; those called ``default`` are created if missing.
    """

    def work(connection: Connection) -> list[str]:
        now = time.time_ns()
        if workspace == "default":
            workspace_rows.add_workspace(connection, workspace, now)
        workspace_row = workspace_rows.find_workspace(connection, workspace)
        if workspace_row is None:
            fail(f'no workspace "{workspace}" in {store.name}')
        if project == "default":
            workspace_rows.add_project(connection, workspace_row.slug, project, now)
        project_row = workspace_rows.project(connection, workspace_row.id, project)
        if project_row is None:
            fail(f'no project "{project}" in workspace "{workspace_row.slug}"')
        return [
            definition_rows.register_or_change(
                connection,
                workspace_row.id,
                project_row.slug,
                workflow,
                now,
                skip_existing=skip_existing,
                is_active=(active or {}).get(workflow.name),
            )
            for workflow in workflows
        ]

    return store.run(work)
