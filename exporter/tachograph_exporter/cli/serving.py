"""``tachograph serve`` and ``tachograph demo``."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from tachograph.identity import new_execution_ref, workspace_id
from tachograph.workflow.builtin.addresses import ALLOW_VARIABLE
from tachograph.workflow.definition import Workflow
from tachograph.workflow.document import parse
from tachograph_exporter import bundled_workflows
from tachograph_exporter.cli.common import (
    DATABASE,
    AllowOption,
    DatabaseOption,
    HandlersOption,
    app,
    fail,
    load_handlers,
    log_to_stderr,
    out,
    report_errors,
)
from tachograph_exporter.cli.records import seed_workflows
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.config import DEFAULT_LISTEN, TOKEN_VARIABLE, Config, parse_listen, read_token
from tachograph_exporter.service import Service
from tachograph_exporter.service import serve as serve_until_stopped
from tachograph_exporter.store import definitions as definition_rows

ListenOption = Annotated[str, typer.Option(help="Address to listen on, HOST:PORT.")]


@app.command()
def serve(
    listen: ListenOption = DEFAULT_LISTEN,
    database: DatabaseOption = DATABASE,
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
    grace: Annotated[float, typer.Option(help="Seconds that running steps get to finish on shutdown.")] = 10.0,
    max_executions: Annotated[
        int, typer.Option(min=1, help="Executions that run at the same time; others wait.")
    ] = 100,
    series_limit: Annotated[
        int, typer.Option(min=1, help="Series per metric; further label sets share one series.")
    ] = 10_000,
    series_expire: Annotated[
        float | None, typer.Option(min=1, help="Drop series that have not changed for this many seconds.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with a token that has every scope (or set {TOKEN_VARIABLE}).")
    ] = None,
    require_token: Annotated[
        bool, typer.Option("--require-token", help="Require a token on loopback too (behind a proxy).")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Never require a token, not even beyond loopback.")
    ] = False,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Serve /metrics without a token.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM); enables HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key (PEM), if not in the certificate's file.")] = None,
    archive_after: Annotated[
        float | None, typer.Option(min=0.01, help="Archive executions this many days after they ended.")
    ] = None,
    archive_to: Annotated[Path | None, typer.Option(help="Directory for archived executions.")] = None,
    delete_after: Annotated[
        float | None, typer.Option(min=0.01, help="Delete executions this many days after they ended.")
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Step measure to export as a metric, by name. Repeatable.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file of rules that map received spans to executions and steps.")
    ] = None,
    http_allow: Annotated[
        list[str] | None,
        typer.Option(
            envvar=ALLOW_VARIABLE,
            help="Host, address or network (with :PORT or without) that the http handler may reach besides public "
            "addresses; * is everything. Repeatable.",
        ),
    ] = None,
    max_stream_clients: Annotated[
        int, typer.Option(min=1, help="Clients that may follow live events at the same time.")
    ] = 2000,
    trace_url: Annotated[
        str | None, typer.Option(help="URL of your trace viewer for links on the page, with {trace_id} in it.")
    ] = None,
) -> None:
    """Serve the API, the metrics and the page. Beyond loopback a token is required."""
    with report_errors():
        host, port = parse_listen(listen)
        token = read_token(token_file) if token_file is not None else os.environ.get(TOKEN_VARIABLE) or None
        config = Config(
            host=host,
            port=port,
            database=database,
            token=token,
            grace_seconds=grace,
            max_executions=max_executions,
            series_limit=series_limit,
            series_expire_seconds=series_expire,
            is_token_required=require_token,
            is_insecure=insecure,
            open_metrics=open_metrics,
            certificate=tls_cert,
            key=tls_key,
            archive_after_days=archive_after,
            archive_directory=archive_to,
            delete_after_days=delete_after,
            measures=tuple(measure or ()),
            mapping=mapping,
            max_stream_clients=max_stream_clients,
            http_allow=tuple(http_allow or ()),
            trace_url=trace_url,
        )
        log_to_stderr()
        service = Service(config, load_handlers(handlers, allow_handler))
        _serve(service, lambda address: _print_addresses(address, service))


def _serve(service: Service, on_ready: Any) -> None:
    try:
        asyncio.run(serve_until_stopped(service, on_ready))
    except OSError as error:
        fail(f"cannot listen on {service.config.host}:{service.config.port}: {error.strerror or error}")


def _print_addresses(address: str, service: Service) -> None:
    out.print(f"[bold]Tachograph[/] serves [bold]{address}[/] from {shown(service.database.name)}", soft_wrap=True)
    for name, path in (
        ("web page", "/"),
        ("workflows", "/api/workflows"),
        ("statistics", "/api/workflows/executions/stats"),
        ("Prometheus metrics", "/metrics"),
        ("health", "/-/healthy"),
        ("API documentation", "/docs"),
    ):
        out.print(f"  {name:<24}{address}{path}", soft_wrap=True)


@app.command()
def demo(
    listen: ListenOption = DEFAULT_LISTEN,
    database: DatabaseOption = "sqlite:///tachograph-demo.db",
    interval: Annotated[float, typer.Option(min=0, help="Seconds between further executions; 0 for none.")] = 10.0,
) -> None:
    """Register the example workflows, run them several times, and serve everything."""
    with report_errors():
        host, port = parse_listen(listen)
        log_to_stderr()
        config = Config(host=host, port=port, database=database, grace_seconds=3, measures=("rows", "database"))
        service = Service(config, load_handlers(["examples"]))
        workflows = [parse(path.read_bytes()) for path in bundled_workflows.workflow_files()]
        seed_workflows(service.database, "default", "default", workflows)
        # Keeps a reference, so that the task is not garbage-collected.
        tasks: list[asyncio.Task[None]] = []

        def ready(address: str) -> None:
            tasks.append(asyncio.get_running_loop().create_task(_demonstrate(service, address, interval)))

        _serve(service, ready)


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
    _print_addresses(address, service)
    for name, execution in executions.items():
        out.print(f"  {name:<24}{address}/#/executions/{execution}", soft_wrap=True)
    out.print(
        f"\nDraw one in the terminal:  tachograph timeline last --database {service.config.database}", soft_wrap=True
    )
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
