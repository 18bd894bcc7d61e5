"""What all commands share: the application, common options, error output."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import msgspec
import typer
from rich.logging import RichHandler

from tachograph.errors import Fault, InvalidInputs, InvalidWorkflow, SetupError, StoreError, WorkflowError
from tachograph.recording.setup import DATABASE_VARIABLE, WORKSPACE_VARIABLE
from tachograph.workflow import builtin as _builtin
from tachograph.workflow.definition import Workflow
from tachograph.workflow.handlers import HandlerRegistry, registry
from tachograph.workflow.validation import validate_document
from tachograph_exporter import handler_sources
from tachograph_exporter.cli.application import new_application
from tachograph_exporter.cli.terminal import PlainConsole, shown
from tachograph_exporter.config import DEFAULT_DATABASE, ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tachograph_exporter.store.database import Database

del _builtin

T = TypeVar("T")

EXIT_USAGE: Final = 2
"""Exit code for wrong usage and for what cannot be done; 1 means that a workflow failed."""

out: Final = PlainConsole(highlight=False)
err: Final = PlainConsole(stderr=True, highlight=False)

app: Final = new_application()

DatabaseOption = Annotated[
    str,
    typer.Option("--database", envvar=DATABASE_VARIABLE, help="Database URL: sqlite:///FILE or postgresql://…"),
]
WorkspaceOption = Annotated[str, typer.Option("--workspace", envvar=WORKSPACE_VARIABLE, help="Workspace slug.")]
HandlersOption = Annotated[
    list[str] | None,
    typer.Option("--handlers", help="Load step handlers from a module, a .py file, or 'examples'. Repeatable."),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow-handler", help="Enable a handler that is off by default (shell). Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DATABASE: Final = DEFAULT_DATABASE


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """Print an error and exit."""
    err.print(f"[bold red]tachograph:[/] {shown(message)}", soft_wrap=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Print errors that explain themselves as one line or a list, without a traceback, and exit."""
    try:
        yield
    except (InvalidWorkflow, InvalidInputs) as error:
        print_faults(error.faults, "error")
        fail(str(error).partition(":")[0])
    except (StoreError, SetupError, ConfigError, WorkflowError) as error:
        fail(str(error))


def print_faults(faults: tuple[Fault, ...] | list[Fault], kind: str) -> None:
    """Print each fault with its place and code on standard error."""
    colour = "red" if kind == "error" else "yellow"
    for fault in faults:
        err.print(f"  [{colour}]{kind}[/] {shown(fault.message)}", soft_wrap=True)
        err.print(f"        [bright_black]at {shown(fault.at or 'top level')}, code {fault.code}[/]", soft_wrap=True)


def print_json(value: Any) -> None:
    """Print indented JSON on standard output."""
    sys.stdout.write(json_text(value) + "\n")


def json_text(value: Any, indent: int = 2) -> str:
    """A value as JSON. What a terminal would act on is escaped; it occurs inside strings only."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


@contextlib.contextmanager
def open_database(url: str, *, must_exist: bool = False) -> Iterator[Database]:
    """The database for the duration of a block. With ``must_exist``, a missing SQLite file is an error, not created."""
    name = url.removeprefix("sqlite:///")
    if must_exist and name != url and not Path(name).exists():
        fail(f"no database at {name}; set one with --database or {DATABASE_VARIABLE}")
    # The commands that follow a service need no database.
    from tachograph_exporter.store.database import Database

    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def write(url: str, work: Callable[[Connection], T]) -> T:
    """Call ``work`` in a transaction on the database; its errors end the command."""
    with report_errors(), open_database(url) as store:
        return store.run(work)
    raise AssertionError


def read(url: str, work: Callable[[Connection], T]) -> T:
    """Call ``work`` on a database that must exist; its errors end the command."""
    with report_errors(), open_database(url, must_exist=True) as store:
        return store.look(work)
    raise AssertionError


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


def command_name() -> str:
    """How this process's command is called: ``tachograph``, or its path where the shell would not find that."""
    path = Path(sys.argv[0])
    on_path = shutil.which("tachograph")
    is_on_path = on_path is not None and path.exists() and path.samefile(on_path)
    return str(path) if path.name == "tachograph" and not is_on_path else "tachograph"


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log to standard error, formatted for people."""
    handler = RichHandler(console=err, show_path=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
