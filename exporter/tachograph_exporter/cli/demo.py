"""``tachograph demo``: the example workflows, running in a service."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import suppress
from typing import Annotated, Any

import typer

from tachograph.identity import new_execution_ref, workspace_id
from tachograph.workflow.definition import Workflow
from tachograph.workflow.document import parse
from tachograph_exporter import bundled_workflows
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    app,
    command_directory,
    log_to_stderr,
    open_database,
    out,
    report_errors,
)
from tachograph_exporter.cli.definitions import seed_workflows
from tachograph_exporter.cli.handlers import load_handlers
from tachograph_exporter.cli.serving import GrpcOption, ListenOption, print_addresses, run_service
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.config import Config, parse_listen
from tachograph_exporter.defaults import DEFAULT_LISTEN
from tachograph_exporter.service import Service
from tachograph_exporter.store import definitions as definition_rows


@app.command()
def demo(
    listen: ListenOption = DEFAULT_LISTEN,
    database: DatabaseOption = DATABASE,
    otlp_grpc: GrpcOption = None,
    interval: Annotated[float, typer.Option(min=0, help="Seconds between further runs; 0 for none.")] = 10.0,
) -> None:
    """Register the example workflows, run them several times, and serve everything."""
    with report_errors():
        host, port = parse_listen(listen)
        log_to_stderr()
        config = Config(
            host=host,
            port=port,
            database=database,
            grace_seconds=3,
            measures=("rows", "database"),
            otlp_grpc=parse_listen(otlp_grpc) if otlp_grpc is not None else None,
        )
        workflows = [parse(path.read_bytes()) for path in bundled_workflows.workflow_files()]
        with open_database(database) as store:
            seed_workflows(store, "default", "default", workflows)
        service = Service(config, load_handlers(["examples"]))
        # Keeps a reference, so that the task is not garbage-collected.
        tasks: list[asyncio.Task[None]] = []

        def ready(address: str) -> None:
            tasks.append(asyncio.get_running_loop().create_task(_demonstrate(service, address, interval)))

        run_service(service, ready)


RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("basic_sequence", {}),
    ("parallel_processing", {}),
    ("conditional_workflow", {"mode": "fast"}),
    ("conditional_workflow", {"mode": "standard"}),
    ("conditional_workflow", {"mode": "thorough"}),
    ("data_pipeline", {}),
    ("with_retries", {}),
    ("agent_chain", {}),
    ("data_pipeline", {"minimum_rows": 1_000_000}),
    ("basic_sequence", {}),
    ("parallel_processing", {}),
    ("with_retries", {}),
)
"""The demo's executions: some retry, one fails, some skip branches."""


async def _demonstrate(service: Service, address: str, interval: float) -> None:
    executions: dict[str, str] = {}
    for name, inputs in RUNS:
        execution, status = await _run(service, name, inputs)
        colour = "green" if status == "completed" else "red"
        label = f"{name} {' '.join(f'{k}={v}' for k, v in inputs.items())}".strip()
        out.print(f"  [{colour}]{status:<10}[/] {shown(label)}", soft_wrap=True)
        executions[name if status == "completed" else f"{name} (failed)"] = execution
    await asyncio.to_thread(service.recorder.flush)
    out.print()
    print_addresses(address, service)
    for name, execution in executions.items():
        out.print(f"  {name:<24}{address}/#/executions/{execution}", soft_wrap=True)
    out.print()
    if (directory := command_directory()) is not None:
        out.print(f"For `tachograph` in another terminal:  export PATH={directory}:$PATH", soft_wrap=True, markup=False)
    option = "" if service.config.database == DATABASE else f" --database {service.database.name}"
    out.print(f"Draw one in the terminal:  tachograph timeline last{option}", soft_wrap=True, markup=False)
    out.print("Stop with Ctrl-C." + (f" Until then, a workflow runs about every {interval:g} s." if interval else ""))
    further_runs: itertools.cycle[tuple[str, dict[str, Any]]] = itertools.cycle(RUNS)
    while interval and not service.life.is_stopping:
        await asyncio.sleep(interval * random.uniform(0.5, 1.5))  # noqa: S311
        name, inputs = next(further_runs)
        with suppress(Exception):
            await _run(service, name, inputs)


_definitions: dict[str, tuple[str, Workflow]] = {}


async def _run(service: Service, name: str, inputs: dict[str, Any]) -> tuple[str, str]:
    if name not in _definitions:
        owner = workspace_id("default")
        row = await service.database.read(lambda c: definition_rows.definition(c, owner, name=name))
        assert row is not None  # noqa: S101 - `demo` has registered it
        _definitions[name] = (row.id, parse(row.document))
    identifier, workflow = _definitions[name]
    execution = new_execution_ref(workspace="default", workflow=name, workflow_id=identifier, version=workflow.version)
    _, task = service.executor.submit(workflow, inputs, execution=execution)
    result = await task
    return execution.execution_id, str(result.status)
