"""``tachograph run`` and ``tachograph replay``: run a workflow in this process and draw its timeline."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from tachograph.events import FAILED, Event, ExecutionStatus, StepFinished, StepRetrying, StepSkipped, StepStarted
from tachograph.identity import new_execution_ref, workspace_id
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.recording.provider import find_provider
from tachograph.recording.setup import adopt, build_recorder, release
from tachograph.runners import runner_of
from tachograph.spans.propagation import caller, propagation
from tachograph.workflow.definition import Workflow
from tachograph.workflow.document import parse
from tachograph.workflow.executor import DEFAULT_CONCURRENCY, Executor
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.inputs import from_text
from tachograph.workflow.wfformat import from_wfformat
from tachograph_exporter import bundled_workflows
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    JsonOption,
    WorkspaceOption,
    app,
    err,
    fail,
    open_database,
    out,
    print_json,
    report_errors,
)
from tachograph_exporter.cli.handlers import AllowOption, HandlersOption, RunnerOption, load_handlers, read_workflow
from tachograph_exporter.cli.terminal import TimelineView
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline
from tachograph_exporter.views.timeline import build_timeline


class Progress:
    """A listener that counts steps, shown as a line of progress."""

    def __init__(self, workflow: Workflow) -> None:
        self.name = workflow.name
        self.total = len(workflow.steps)
        self.done = 0
        self.failed = 0
        self.retries = 0
        self.running: dict[str, float] = {}
        self.started = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, StepStarted):
            self.running[event.step.name] = time.monotonic()
        elif isinstance(event, StepFinished | StepSkipped):
            self.running.pop(event.step.name, None)
            self.done += event.step.parent_step_id is None
            self.failed += isinstance(event, StepFinished) and event.status in FAILED
        elif isinstance(event, StepRetrying):
            self.running.pop(event.step.name, None)
            self.retries += 1

    def __rich__(self) -> Text:
        now = time.monotonic()
        text = Text(f"▶ {self.name} ", style="bold cyan")
        text.append(
            f"{self.done}/{self.total} steps, {format_duration(round((now - self.started) * 1e9))}", style="none"
        )
        if self.failed:
            text.append(f", {self.failed} failed", style="red")
        if self.retries:
            text.append(f", {self.retries} retries", style="yellow")
        for name, since in list(self.running.items())[:5]:
            text.append(f"\n    {name} {format_duration(round((now - since) * 1e9))}", style="cyan")
        if len(self.running) > 5:
            text.append(f"\n    … and {len(self.running) - 5} more running", style="cyan")
        return text


@app.command()
def run(
    workflow: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="Definition file, or name of a registered workflow.")
    ],
    given: Annotated[
        list[str] | None, typer.Option("--input", "-i", metavar="KEY=VALUE", help="Input variable. Repeatable.")
    ] = None,
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
    runner: RunnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a workflow in this process and draw its timeline. Exit code: 0 if it completed, else 1, or that of the
    shell step which failed.
    """
    path = Path(workflow)
    if path.suffix == ".json" and _is_example(path):
        handlers = [*(handlers or []), "examples"]
    with report_errors(), open_database(database) as store:
        registry = load_handlers(handlers, allow_handler)
        if path.suffix == ".json" or path.is_file():
            definition, identifier = read_workflow(path, registry), None
        else:
            definition, identifier, registry = _registered(store, workspace, workflow, registry)
        inputs = from_text(definition, _pairs(given or []))
        timeline = _run(
            definition,
            inputs,
            store,
            workspace,
            registry,
            identifier,
            DEFAULT_CONCURRENCY,
            quiet=as_json,
            runner=runner,
        )
    _finish(timeline, as_json)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="Recorded run in WfFormat (1.3 to 1.6).")],
    speed: Annotated[float, typer.Option(help="Divide run times by this factor.")] = 1.0,
    database: DatabaseOption = DATABASE,
    workspace: WorkspaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Replay a recorded run: same tasks and dependencies, run times divided by --speed."""
    if speed <= 0:
        fail(f"--speed must be more than 0, not {speed:g}")
    with report_errors():
        try:
            document = file.read_bytes()
        except OSError as error:
            fail(f"cannot read {file}: {error.strerror}")
        definition = from_wfformat(document, speed=speed)
        with open_database(database) as store:
            timeline = _run(definition, {}, store, workspace, load_handlers(None), None, None, quiet=as_json)
    _finish(timeline, as_json)


def _is_example(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return path.resolve().parent == bundled_workflows.workflow_directory().resolve()
    return False


def _pairs(given: list[str]) -> Mapping[str, str]:
    pairs = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key:
            fail(f"--input {item!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def _registered(
    store: Database, workspace: str, name: str, registry: HandlerRegistry
) -> tuple[Workflow, str, HandlerRegistry]:
    identifier = workspace_id(workspace)
    row = store.look(lambda c: definition_rows.find_definition(c, identifier, name))
    if row is None or row.document is None:
        fail(f'no workflow "{name}" is registered in workspace "{workspace}", and no such file exists')
    definition = parse(row.document)
    if any(registry.find(step.handler) is None for step in definition.steps):
        # A registered example needs the examples' handlers.
        registry = load_handlers(["examples"], sorted(registry.allowed))
    return definition, str(row.id), registry


def _run(
    definition: Workflow,
    inputs: Mapping[str, Any],
    store: Database,
    workspace: str,
    handlers: HandlerRegistry,
    identifier: str | None,
    concurrency: int | None,
    *,
    quiet: bool,
    runner: str | None = None,
) -> WorkflowExecutionTimeline:
    logging.basicConfig(level=logging.WARNING)
    recorder = build_recorder(provider=find_provider(), store=StoreWriter(store))
    adopt(recorder, workspace)
    progress = Progress(definition)
    recorder.add("progress", progress)
    execution = new_execution_ref(
        workspace=workspace,
        workflow=definition.name,
        workflow_id=identifier or make_workflow_id(workspace, definition.name),
        parent=caller(),
        version=definition.version,
    )

    async def go() -> None:
        executor = Executor(
            recorder,
            handlers=handlers,
            runner=runner_of(runner) if runner is not None else None,
            max_concurrency=concurrency,
            carrier=propagation,
        )

        def stop() -> None:
            if not executor.cancel(execution.execution_id, "interrupted"):
                raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            await executor.run(definition, inputs, execution=execution)
        finally:
            await executor.drain(0)

    try:
        if quiet or not err.is_terminal:
            asyncio.run(go())
        else:
            with Live(progress, console=err, refresh_per_second=10, transient=True):
                asyncio.run(go())
    finally:
        release(recorder)
        recorder.close()
    stored = store.look(lambda c: execution_rows.run(c, workspace_id(workspace), execution.execution_id))
    if stored is None:
        fail("the run ended, but it could not be written to the database; see the log above")
    return build_timeline(stored, now_ns=time.time_ns())


def _finish(timeline: WorkflowExecutionTimeline, as_json: bool) -> None:
    if as_json:
        print_json(timeline)
    else:
        out.print(TimelineView(timeline))
    raise typer.Exit(_exit_code(timeline))


def _exit_code(timeline: WorkflowExecutionTimeline) -> int:
    """0 for a completed run; else the exit code of the command whose step failed first, if one did; else 1."""
    if timeline.status == ExecutionStatus.COMPLETED:
        return 0
    codes: list[tuple[str, int]] = []
    for step in timeline.step_timeline:
        of_attempts = [round(measure.value) for measure in step.measures if measure.name == "exit_code"]
        if step.status == "failed" and of_attempts:
            codes.append((step.completed_at or "", of_attempts[-1]))
    return min(codes)[1] % 256 or 1 if codes else 1
