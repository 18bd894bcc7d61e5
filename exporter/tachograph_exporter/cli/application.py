"""The application, and what its help says of each command: enough for ``--help`` and ``--version``, in a fifth of the
time that loading all commands takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, NamedTuple

import typer


class Command(NamedTuple):
    """A command as ``tachograph --help`` lists it: its module, its summary, and the panel it is in."""

    module: str
    panel: str
    summary: str


RUNS, LOOKING, SERVING, KEEPING = "Run", "Look", "Serve", "Keep"

COMMANDS: Final = {
    "run": Command("running", RUNS,
                   "Run a workflow in this process and draw its timeline. Exit code: 0 if it completed, "
                                     "else 1, or that of the shell step which failed."),
    "replay": Command("running", RUNS,
                      "Replay a recorded run: same tasks and dependencies, run times divided by --speed."),
    "validate": Command("definitions", RUNS, "Validate a workflow definition and list every fault with its place. "
                                             "Exit code: 0 if valid, else 1."),
    "seed": Command("definitions", RUNS, "Register the workflow definitions in a directory or file, updating those "
                                         "that are already registered."),
    "exec": Command("executing", RUNS, "Run a command and record it, with its output and what it used. Exit code: the "
                                       "command's."),
    "step": Command("executing", RUNS, "Run a command as a step of the recorded command around it. Exit code: the "
                                       "command's."),
    "spool": Command("executing", RUNS, "Show what waits on this machine for a service or database, or deliver it."),
    "import": Command("importing", RUNS, "Record a run that another engine left on disk: an invocation of dbt, a run "
                                         "of Nextflow."),
    "bridge": Command("bridging", RUNS, "Follow the server of another engine, and record what it runs: Prefect, "
                                        "Temporal."),
    "cancel": Command("runs", RUNS, "Cancel a run of a service: its running steps are stopped, the others do not "
                                    "start."),
    "runs": Command("runs", LOOKING, "List runs, newest first: when, which workflow, how it ended, how long it took, "
                                     "and its error."),
    "timeline": Command("reports", LOOKING, "Draw the timeline of a recorded run."),
    "logs": Command("runs", LOOKING, "Show the log lines of a run or of one of its steps, with what its commands "
                                     "wrote, oldest first."),
    "failures": Command("failures", LOOKING, "List failures by cause, and mute or resolve them."),
    "open": Command("runs", LOOKING, "Open the page at a run, in the browser, and print its address."),
    "why": Command("reasons", LOOKING, "Say why a run was slow or failed, or what it is doing now, with the evidence."),
    "stack": Command("stacks", LOOKING, "Show what the steps of a run do now, and what those did that took longer than "
                                        "usual."),
    "report": Command("report_file", LOOKING, "Write a run as one HTML file, for a ticket, a mail or the artefacts of "
                                              "a job: it opens without a service."),
    "compare": Command("reports", LOOKING, "Find the step that made a run slow, compared with another one or with "
                                           "recent ones."),
    "trends": Command("reports", LOOKING, "Show how a workflow's durations and success rate change over time, and "
                                          "since when it is slower."),
    "metrics": Command("reports", LOOKING, "Show a workflow's metrics: runs, success rate, duration percentiles, "
                                           "and its steps."),
    "mcp": Command("mcp", LOOKING, "Answer an agent's questions about runs on standard input and output (Model Context "
                                   "Protocol)."),
    "watch": Command("watching", LOOKING, "Follow a service live: all runs, those of a workflow, or one run until it "
                                          "ends."),
    "serve": Command("serving", SERVING, "Serve the API, the metrics and the page. Beyond loopback a token is "
                                         "required."),
    "worker": Command("working", SERVING, "Do the steps of workflows whose service has `--runner URL`. The handlers "
                                          "have to be the same there and here."),
    "demo": Command("demo", SERVING, "Register the example workflows, run them several times, and serve everything."),
    "dashboards": Command("dashboards", SERVING, "Dashboards, rules and provisioning for Grafana, Prometheus and "
                                                 "Alertmanager."),
    "workflows": Command("workflows", KEEPING, "List, show and delete workflows."),
    "archive": Command("upkeep", KEEPING, "Move old runs to Parquet files. They stay listed and readable, and "
                                          "rollups keep counting them."),
    "rollups": Command("upkeep", KEEPING, "Check or rebuild the rollups and the series of metrics."),
    "refused": Command("refused", KEEPING, "Look at records that the store refused, and retry them."),
    "notices": Command("notices", KEEPING, "Look at notices, test who is told, and silence them."),
    "workspaces": Command("workspaces", KEEPING, "Create and list workspaces."),
    "projects": Command("workspaces", KEEPING, "Create and list projects in a workspace."),
    "tokens": Command("tokens", KEEPING, "Create, list and revoke access tokens."),
}  # fmt: skip
"""In the order of the help."""


def new_application() -> typer.Typer:
    """The application without commands."""
    application = typer.Typer(
        name="tachograph",
        help="The flight recorder for workflows.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(main)
    return application


def outline() -> typer.Typer:
    """An application that lists all commands and has none of them loaded."""
    application = new_application()
    for name, command in COMMANDS.items():
        application.command(name, help=command.summary, rich_help_panel=command.panel)(_nothing())
    return application


def arrange(application: typer.Typer) -> None:
    """Put the commands that are loaded into the panels of the help."""
    for command in application.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback is not None else "")
        command.rich_help_panel = COMMANDS[name].panel
    for group in application.registered_groups:
        group.rich_help_panel = COMMANDS[group.name or ""].panel


def _nothing() -> Callable[[], None]:
    def command() -> None: ...

    return command


def _show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"tachograph {_version()}")
        raise typer.Exit


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("tachograph")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The flight recorder for workflows: every run as spans, histograms, a timeline and a live stream."""
