"""``tachograph worker``: do steps for a service or a run whose steps are done elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from tachograph.events import Event
from tachograph.recording.setup import get_recorder
from tachograph.runners import scheme_of
from tachograph.variables import DATABASE_VARIABLE, URL_VARIABLE
from tachograph.workflow.builtin.addresses import ALLOW_VARIABLE, AddressPolicy
from tachograph.workflow.builtin.http import restricted
from tachograph.workflow.handlers import HandlerRegistry
from tachograph_exporter.cli.common import app, err, fail, log_to_stderr, report_errors
from tachograph_exporter.cli.handlers import RUNNER_VARIABLE, AllowOption, HandlersOption, load_handlers

RESTART_SECONDS: Final = 2.0


@app.command()
def worker(
    url: Annotated[str, typer.Argument(envvar=RUNNER_VARIABLE, help="As `serve --runner` has it.")],
    handlers: HandlersOption = None,
    allow_handler: AllowOption = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Steps at the same time.")] = os.cpu_count() or 1,
    name: Annotated[str | None, typer.Option(help="Name of the worker, if it is to have one of its own.")] = None,
    http_allow: Annotated[
        list[str] | None,
        typer.Option(
            envvar=ALLOW_VARIABLE, help="What the http handler may reach besides public addresses; as `serve`."
        ),
    ] = None,
) -> None:
    """Do the steps of workflows whose service has `--runner URL`. The handlers have to be the same there and here."""
    with report_errors():
        engine = scheme_of(url)
        try:
            policy = AddressPolicy(http_allow or ())
        except ValueError as error:
            fail(f"--http-allow: {error}")
        registry = restricted(load_handlers(handlers, allow_handler), policy)
        log_to_stderr()
        err.print(f"[bold]Tachograph[/] does steps that come by {engine}, {concurrency} at a time", soft_wrap=True)
        code = _work(engine, url, registry, concurrency, name)
    if code:
        # Celery's worker ends when Redis goes away while it has work; whoever started this one wants a worker.
        err.print(
            f"the {engine} worker ended with code {code}; it starts again in {RESTART_SECONDS:g} s", soft_wrap=True
        )
        time.sleep(RESTART_SECONDS)
        os.execv(sys.executable, [sys.executable, "-m", "tachograph_exporter", *sys.argv[1:]])  # noqa: S606


def _work(engine: str, url: str, handlers: HandlerRegistry, concurrency: int, name: str | None) -> int:
    if engine == "celery":
        from tachograph.runners.celery import work

        return work(url, handlers, concurrency, name)
    if engine == "dask":
        from tachograph.runners.dask import work

        return work(url, handlers, concurrency, name)
    from tachograph.runners.temporal import work as work_whole_runs

    if not (os.environ.get(URL_VARIABLE) or os.environ.get(DATABASE_VARIABLE)):
        fail(f"a worker of Temporal records whole runs: say where, with {URL_VARIABLE} or {DATABASE_VARIABLE}")
    recorder = get_recorder()

    def tell(events: Sequence[Event]) -> None:
        # Each part of a run may come to another worker, so none has the whole of it for spans.
        recorder.publish(events, delivered_to=("spans", "metrics"), are_foreign=True)

    def record(events: Sequence[Event]) -> bool:
        tell(events)
        return recorder.flush()

    return work_whole_runs(url, handlers, concurrency, name, record, tell)
