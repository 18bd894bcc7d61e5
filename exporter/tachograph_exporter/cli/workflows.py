"""``tachograph workflows``: list, show and delete workflows."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import typer
from rich.text import Text

from tachograph_exporter.cli.columns import Column, show_table
from tachograph_exporter.cli.common import (
    DryRunOption,
    JsonOption,
    OutputOption,
    ReadWorkspaceOption,
    YesOption,
    app,
    confirm,
    out,
    print_json,
)
from tachograph_exporter.cli.moments import column, moment
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.references import WorkflowArgument, of_workflow
from tachograph_exporter.cli.runs import last_runs
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.cli.terminal import COLOURS, MARKS, shown
from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse, WorkflowStats
from tachograph_exporter.views.schemas.workflows import WorkflowSummary

workflows_app: Final = typer.Typer(no_args_is_help=True, help="List, show and delete workflows.")
app.add_typer(workflows_app, name="workflows")


class _Listed(msgspec.Struct, kw_only=True):
    """A workflow as it is listed, with its last run."""

    name: str
    id: str
    version: str
    is_runnable: bool
    is_active: bool
    runs: int
    success_rate: float | None
    last_run: str | None
    last_status: str | None
    last_started_at: str | None
    last_error: str | None


@workflows_app.command("list")
def list_workflows(
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """List workflows by name, with the result of the last run of each."""
    with open_source(database, url, workspace) as source:
        counts = {item.workflow_id: item for item in source.statistics().workflows}
        newest = {run.workflow_id: run for run in last_runs(source)}
        items = []
        for workflow in source.workflows():
            run, count = newest.get(workflow.id), counts.get(workflow.id)
            items.append(_listed(workflow, run, count))
        name = source.name
    if as_json:
        print_json(items)
        return
    if not items:
        out.print(f"no workflows yet in {shown(name)}", soft_wrap=True)
        return
    title, times = column("last run", [item.last_started_at for item in items])
    columns = (
        Column("workflow"), Column("last"), Column(title, 2), Column("runs", 1, is_number=True),
        Column("success", 3, is_number=True), Column("error", 4, is_prose=True),
    )  # fmt: skip
    show_table(columns, [_row(item, when) for item, when in zip(items, times, strict=True)])


def _listed(workflow: WorkflowSummary, run: WorkflowExecutionResponse | None, count: WorkflowStats | None) -> _Listed:
    return _Listed(
        name=workflow.name,
        id=workflow.id,
        version=workflow.version,
        is_runnable=workflow.is_runnable,
        is_active=workflow.is_active,
        runs=count.total_executions if count is not None else 0,
        success_rate=count.success_rate if count is not None else None,
        last_run=run.execution_id if run is not None else None,
        last_status=run.status if run is not None else None,
        last_started_at=(run.started_at or run.created_at) if run is not None else None,
        last_error=run.error_message if run is not None else None,
    )


def _row(item: _Listed, when: str) -> list[str | Text]:
    status = item.last_status or "never ran"
    mark = Text(f"{MARKS.get(status, '–')} {status}", style=COLOURS.get(status, "bright_black"))
    rate = f"{item.success_rate:.1f} %" if item.success_rate is not None else "–"
    return [item.name, mark, when, f"{item.runs:,}", rate, " ".join((item.last_error or "").split())]


@workflows_app.command("show")
def show_workflow(
    workflow: WorkflowArgument,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
    as_json: JsonOption = False,
    _output: OutputOption = None,
) -> None:
    """Show a workflow's definition: its steps, what they wait for, and what does their work."""
    with open_source(database, url, workspace) as source:
        detail = of_workflow(source, workflow, source.workflow(workflow))
        expectation = source.expectation(detail.name) if not as_json else None
    if expectation is None:
        print_json(detail)
        return
    kind = "" if detail.is_runnable else ", known from its runs only: it has no definition"
    out.print(f"[bold]{shown(detail.name)}[/] version {shown(detail.version)}{kind}   {detail.id}", soft_wrap=True)
    if detail.description:
        out.print(f"  {shown(detail.description)}", soft_wrap=True)
    out.print(f"  changed {moment(detail.updated_at)}", style="bright_black")
    if expectation.schedule_source is not None:
        zone = expectation.expected.timezone or "UTC"
        schedule, place = expectation.expected.schedule or "", expectation.schedule_source
        out.print(f"  expected {shown(schedule)} ({shown(zone)}), says {shown(place)}", soft_wrap=True)
    for variable in detail.variables:
        default = variable.get("default_value")
        needed = "required" if variable.get("is_required") else f"default {default!r}"
        out.print(f"  input {shown(variable['name'])}: {variable.get('data_type', 'string')}, {shown(needed)}")
    if detail.steps:
        columns = (Column("step"), Column("waits for", 2), Column("handler", 1), Column("runs if", 3))
        show_table(columns, [_step(step) for step in detail.steps])


def _step(step: dict[str, Any]) -> list[str | Text]:
    config = step.get("config") or {}
    return [
        str(step["name"]), ", ".join(step.get("depends_on_steps") or ()) or "–", str(config.get("handler", "noop")),
        str(step.get("condition_expression") or ""),
    ]  # fmt: skip


@workflows_app.command("delete")
def delete_workflow(
    workflow: WorkflowArgument,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Delete a workflow with all its runs. Refused while one of them is open."""
    with open_source(database, url, workspace) as source:
        detail = of_workflow(source, workflow, source.workflow(workflow))
        counts = {item.workflow_id: item.total_executions for item in source.statistics().workflows}
        what = f"workflow {detail.name} with {counts.get(detail.id, 0):,} run(s) in {source.name}"
        if dry_run:
            out.print(f"would delete {shown(what)}", soft_wrap=True)
            return
        confirm(f"Delete {what}?", yes=yes)
        source.delete_workflow(detail.id)
    out.print(f"[green]✔[/] deleted {shown(what)}", soft_wrap=True)
