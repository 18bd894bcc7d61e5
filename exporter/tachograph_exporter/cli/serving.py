"""``tachograph serve``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from tachograph.errors import StoreError
from tachograph.recording.recorder import LEASE_SECONDS
from tachograph.workflow.builtin.addresses import ALLOW_VARIABLE
from tachograph_exporter.cli.common import (
    DATABASE,
    DatabaseOption,
    app,
    fail,
    log_to_stderr,
    out,
    report_errors,
)
from tachograph_exporter.cli.handlers import AllowOption, HandlersOption, RunnerOption, load_handlers
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.config import (
    DEFAULT_OTLP_GRPC,
    MAX_LEASE_SECONDS,
    MIN_LEASE_SECONDS,
    Config,
    parse_listen,
    read_token,
)
from tachograph_exporter.defaults import DEFAULT_LISTEN, LISTEN_VARIABLE, TOKEN_VARIABLE
from tachograph_exporter.expectations.routing import NOTIFY_VARIABLE, SECRET_VARIABLE
from tachograph_exporter.freed_memory import give_back
from tachograph_exporter.garbage import collected_rarely
from tachograph_exporter.queues.broker import QUEUES_VARIABLE
from tachograph_exporter.service import CannotListen, Service
from tachograph_exporter.serving import serve as serve_until_stopped

SWITCH_SECONDS: Final = 0.0005
"""How long a thread of the service may go on while another waits for the interpreter."""

GrpcOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help=f"Take OTLP/gRPC on this address, for instance {DEFAULT_OTLP_GRPC}."),
]
ListenOption = Annotated[str, typer.Option(envvar=LISTEN_VARIABLE, help="Address to listen on, HOST:PORT.")]


@app.command()
def serve(
    listen: ListenOption = DEFAULT_LISTEN,
    database: DatabaseOption = DATABASE,
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
    grace: Annotated[float, typer.Option(help="Seconds that running steps get to finish on shutdown.")] = 10.0,
    runner: RunnerOption = None,
    max_executions: Annotated[int, typer.Option(min=1, help="Runs at the same time; others wait.")] = 100,
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
        float | None, typer.Option(min=0.01, help="Archive runs this many days after they ended.")
    ] = None,
    archive_to: Annotated[Path | None, typer.Option(help="Directory for archived runs.")] = None,
    delete_after: Annotated[
        float | None, typer.Option(min=0.01, help="Delete runs this many days after they ended.")
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Step measure to export as a metric, by name. Repeatable.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file of rules that map received spans to runs and steps.")
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="TOML file of prices of models, for received spans that say tokens and no cost."),
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
    max_connections_per_peer: Annotated[
        int, typer.Option(min=1, help="Connections of one address, streams not counted; raise it behind a proxy.")
    ] = 500,
    max_otlp_body: Annotated[
        float, typer.Option(min=0.001, help="Largest OTLP request in MiB, as it was sent and when it is decoded.")
    ] = 20,
    otlp_grpc: GrpcOption = None,
    read_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that reading for a request may take.")] = 10.0,
    lease: Annotated[
        float,
        typer.Option(
            min=MIN_LEASE_SECONDS,
            max=MAX_LEASE_SECONDS,
            help="Seconds without a sign of life after which a span that has not ended is lost; more than 30 also for "
            "runs that other hosts record.",
        ),
    ] = LEASE_SECONDS,
    expectations: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of what is expected of workflows (schedules, deadlines, limits), and who is told."
        ),
    ] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            envvar=NOTIFY_VARIABLE,
            help=f"Tell this receiver of what does not hold: https://… (a webhook, signed if {SECRET_VARIABLE} is set) "
            "or a URL of apprise (mailto://…). Repeatable.",
        ),
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            envvar=QUEUES_VARIABLE,
            help="Watch the queues of an engine: celery, rq, dramatiq, huey, arq or taskiq+redis://HOST:PORT/DB, "
            "celery+amqp://HOST:PORT, or procrastinate+postgresql://…; ?queue=NAME names some. Repeatable.",
        ),
    ] = None,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Answer agents at /mcp (Model Context Protocol, streamable HTTP).")
    ] = False,
    trace_url: Annotated[
        str | None, typer.Option(help="URL of your trace viewer for links on the page, with {trace_id} in it.")
    ] = None,
    logs_url_template: Annotated[
        str | None,
        typer.Option(
            help="URL of a step's lines in your store of logs (Loki in Grafana, …) for links on the page, with "
            "{trace_id}, {span_id} or {execution_id} in it, and {from_ms} and {to_ms}."
        ),
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
            runner=runner,
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
            prices=prices,
            max_stream_clients=max_stream_clients,
            max_connections_per_peer=max_connections_per_peer,
            max_otlp_body_bytes=round(max_otlp_body * (1 << 20)),
            read_timeout_seconds=read_timeout,
            lease_seconds=lease,
            http_allow=tuple(http_allow or ()),
            expectations=expectations,
            notify=tuple(notify or ()),
            trace_url=trace_url,
            logs_url_template=logs_url_template,
            mcp=mcp,
            queues=tuple(queue or ()),
            otlp_grpc=parse_listen(otlp_grpc) if otlp_grpc is not None else None,
        )
        log_to_stderr()
        service = Service(config, load_handlers(handlers, allow_handler))
        run_service(service, lambda address: print_addresses(address, service))


def run_service(service: Service, on_ready: Callable[[str], None]) -> None:
    """Serve until the process is asked to stop. ``on_ready`` is called with the address."""
    # A thread that computes keeps the interpreter that long from the event loop, and from a scrape after each of its
    # statements. The default of 5 ms makes a scrape of a hundred statements half a second slower.
    sys.setswitchinterval(SWITCH_SECONDS)
    give_back()
    try:
        with collected_rarely():
            asyncio.run(serve_until_stopped(service, on_ready))
    except (CannotListen, StoreError) as error:
        fail(str(error))


def print_addresses(address: str, service: Service) -> None:
    """Print where the page, the API and the metrics are."""
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
    if service.config.mcp:
        out.print(f"  {'MCP, for agents':<24}{address}/mcp", soft_wrap=True)
    if service.grpc_door is not None:
        out.print(f"  {'OTLP/gRPC':<24}{service.grpc_door.address}", soft_wrap=True)
