"""Handlers and definition files that commands load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from tachograph.workflow import builtin as _builtin
from tachograph.workflow.definition import Workflow
from tachograph.workflow.handlers import HandlerRegistry, registry
from tachograph.workflow.validation import validate_document
from tachograph_exporter import handler_sources
from tachograph_exporter.cli.common import fail, print_faults

del _builtin

HandlersOption = Annotated[
    list[str] | None,
    typer.Option("--handlers", help="Load step handlers from a module, a .py file, or 'examples'. Repeatable."),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow-handler", help="Enable a handler that is off by default (shell). Repeatable."),
]
RUNNER_VARIABLE: Final = "TACHOGRAPH_RUNNER"
RunnerOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar=RUNNER_VARIABLE,
        help="Have steps done by the workers of an engine: celery+redis://HOST:PORT/DB or dask://HOST:PORT; or whole "
        "runs: temporal://HOST:PORT.",
    ),
]


def load_handlers(sources: list[str] | None, allow: list[str] | None = None) -> HandlerRegistry:
    """Load handlers from entry points and ``sources`` (modules, files, ``examples``), and enable those in ``allow``."""
    registry.load_entry_points()
    for name in sources or []:
        try:
            handler_sources.load(name)
        except Exception as error:
            fail(f"cannot load handlers from {name}: {error}")
    return registry.copy(allow or [])


def read_workflow(path: Path, handlers: HandlerRegistry) -> Workflow:
    """Read and validate a definition. Prints its warnings; prints its errors and exits if it is invalid."""
    try:
        document = path.read_bytes()
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    workflow, report = validate_document(document, handlers)
    print_faults(report.warnings, "warning")
    if workflow is None:
        print_faults(report.errors, "error")
        count = len(report.errors)
        fail(f"{path} has {count} error{'s' if count != 1 else ''}")
    return workflow
