"""``tachograph exec``, ``step`` and ``spool``, as the help lists them.

A process that is started with one of them goes to `tachograph_exporter.command` at once, because it is on the way of
other commands; so these here only serve the help, the documentation, and whoever calls the application in a program.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tachograph_exporter.cli.common import app
from tachograph_exporter.command.run import main
from tachograph_exporter.command.spool import main as spool_main

TimeoutOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Stop an attempt that takes longer, for instance 90s, 5m, 1h.")
]
RetriesOption = Annotated[int, typer.Option(min=0, max=1000, help="Further attempts after a failure.")]
DelayOption = Annotated[
    str, typer.Option(metavar="TIME", help="How long to wait before the first retry; doubles with each.")
]
CommandArgument = Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARGUMENT]...", help="What to run.")]


class SpoolAction(StrEnum):
    """What to do with what waits."""

    SHOW = "show"
    SEND = "send"


@app.command(name="exec")
def execute(
    command: CommandArgument,
    name: Annotated[str | None, typer.Option(help="Name of the workflow; by default that of the command.")] = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = 0,
    retry_delay: DelayOption = "1s",
) -> None:
    """Run a command and record it, with its output and what it used. Exit code: the command's."""
    named = [] if name is None else ["--name", name]
    raise typer.Exit(main("exec", [*named, *_limits(timeout, retries, retry_delay), "--", *command]))


@app.command()
def step(
    name: Annotated[str, typer.Argument(help="Name of the step.")],
    command: CommandArgument,
    timeout: TimeoutOption = None,
    retries: RetriesOption = 0,
    retry_delay: DelayOption = "1s",
) -> None:
    """Run a command as a step of the recorded command around it. Exit code: the command's."""
    raise typer.Exit(main("step", [*_limits(timeout, retries, retry_delay), name, "--", *command]))


@app.command()
def spool(
    action: Annotated[SpoolAction, typer.Argument(help="Only look, or deliver it.")] = SpoolAction.SHOW,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The service; by default TACHOGRAPH_URL.")] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="Or the database; by default TACHOGRAPH_DATABASE_URL.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Show what waits on this machine for a service or database, or deliver it."""
    options = [*([] if url is None else ["--url", url]), *([] if database is None else ["--database", database])]
    raise typer.Exit(spool_main([action.value, *options, *(["--quiet"] if quiet else [])]))


def _limits(timeout: str | None, retries: int, retry_delay: str) -> list[str]:
    limit = [] if timeout is None else ["--timeout", timeout]
    return [*limit, "--retries", str(retries), "--retry-delay", retry_delay]
