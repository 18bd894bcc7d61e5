"""``tachograph bridge``: follow the server of another engine, and record what it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import tachograph
from tachograph.clock import NS
from tachograph.recording.recorder import Recorder
from tachograph.recording.setup import default_workspace
from tachograph.variables import DATABASE_VARIABLE
from tachograph_exporter.bridges.journal import Journal, default_path
from tachograph_exporter.cli.common import DATABASE, app, err, fail, log_to_stderr, report_errors
from tachograph_exporter.cli.terminal import shown
from tachograph_exporter.defaults import URL_VARIABLE
from tachograph_exporter.times import parse_duration

FLUSH_SECONDS: Final = 30.0

bridge_app = typer.Typer(
    no_args_is_help=True, help="Follow the server of another engine, and record what it runs: Prefect, Temporal."
)
app.add_typer(bridge_app, name="bridge")

ServiceOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The service; by default TACHOGRAPH_URL.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", help=f"Or the database; by default TACHOGRAPH_DATABASE_URL, else {DATABASE}."
    ),
]
SlugOption = Annotated[str | None, typer.Option("--workspace", help="Slug of the workspace.")]
SinceOption = Annotated[
    str, typer.Option("--since", metavar="TIME", help="The first time: how far back to read, such as 90m, 12h or 7d.")
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="FILE", help="Where it notes how far it has read. By default in your state directory."
    ),
]


@bridge_app.command()
def prefect(
    server: Annotated[str, typer.Argument(metavar="URL", help="The Prefect server, such as http://host:4200/api.")],
    url: ServiceOption = None,
    database: StoreOption = None,
    workspace: SlugOption = None,
    since: SinceOption = "1h",
    state: StateOption = None,
) -> None:
    """Record the flow runs of a Prefect 3 server, while they run.

    PREFECT_API_KEY or PREFECT_API_AUTH_STRING lets it in.
    """
    from tachograph_exporter.bridges.prefect_server import AUTH_VARIABLE, KEY_VARIABLE, api_address

    with report_errors():
        address, began = api_address(server), time.time() - _seconds(since)
        with _recording(url, database, workspace) as recorder, _journal("prefect", address, state) as journal:

            async def follow() -> None:
                import aiohttp

                from tachograph_exporter.bridges.prefect import PrefectBridge
                from tachograph_exporter.bridges.prefect_server import PrefectServer

                async with aiohttp.ClientSession(trust_env=True) as session:
                    prefect_server = PrefectServer(
                        session, address, os.environ.get(KEY_VARIABLE, ""), os.environ.get(AUTH_VARIABLE, "")
                    )
                    bridge = PrefectBridge(prefect_server, journal, recorder.flush, began)
                    try:
                        await bridge.run()
                    finally:
                        bridge.save()

            err.print(f"[bold]Tachograph[/] records the flow runs of {shown(address)}", soft_wrap=True)
            _until_stopped(follow())


@bridge_app.command()
def temporal(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The Temporal server, such as host:7233.")],
    namespace: Annotated[str | None, typer.Option(help="By default that of TEMPORAL_NAMESPACE, else default.")] = None,
    url: ServiceOption = None,
    database: StoreOption = None,
    workspace: SlugOption = None,
    since: SinceOption = "1h",
    state: StateOption = None,
) -> None:
    """Record the workflows of a Temporal server, while they run.

    Keys and certificates are those of Temporal's own tools: TEMPORAL_API_KEY, TEMPORAL_TLS_… or their file.
    """
    with report_errors():
        try:
            from tachograph_exporter.bridges import temporal as bridges
        except ImportError:
            fail("this needs Temporal's SDK: pip install 'tachograph[temporal]'")
        began = time.time() - _seconds(since)
        named = f"{address}/{namespace or os.environ.get('TEMPORAL_NAMESPACE', '')}"
        with _recording(url, database, workspace) as recorder, _journal("temporal", named, state) as journal:

            async def follow() -> None:
                client = await bridges.connect(address, namespace)
                bridge = bridges.TemporalBridge(client, journal, recorder.flush, began)
                try:
                    await bridge.run()
                finally:
                    bridge.save()

            err.print(f"[bold]Tachograph[/] records the workflows of {shown(address)}", soft_wrap=True)
            _until_stopped(follow())


@contextlib.contextmanager
def _recording(url: str | None, database: str | None, workspace: str | None) -> Iterator[Recorder]:
    """The recorder of the process, which delivers what it has when the bridge stops."""
    if database is not None and url is not None:
        fail("give either --database or --url, not both")
    if database is None and url is None and not os.environ.get(DATABASE_VARIABLE) and not os.environ.get(URL_VARIABLE):
        database = DATABASE
    log_to_stderr()
    recorder: Recorder = tachograph.configure(
        database=database, url=url, workspace=workspace, registry=None, spans=False
    )
    try:
        yield recorder
    finally:
        recorder.close(FLUSH_SECONDS)


@contextlib.contextmanager
def _journal(engine: str, address: str, path: Path | None) -> Iterator[Journal]:
    journal = Journal(path if path is not None else default_path(engine, address, default_workspace()))
    try:
        yield journal
    finally:
        journal.close()


def _seconds(text: str) -> float:
    try:
        return parse_duration(text) / NS
    except ValueError as error:
        fail(f"--since: {error}")


def _until_stopped(following: Coroutine[Any, Any, None]) -> None:
    """Run a bridge until the process is told to stop."""

    async def main() -> None:
        task = asyncio.ensure_future(following)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
