"""What all commands share: the application, common options, error output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import msgspec
import typer

from tachograph.errors import Fault, InvalidInputs, InvalidWorkflow, TachographError
from tachograph.variables import DATABASE_VARIABLE, WORKSPACE_VARIABLE
from tachograph_exporter.cli.application import new_application
from tachograph_exporter.cli.terminal import PlainConsole, shown
from tachograph_exporter.defaults import DEFAULT_DATABASE
from tachograph_exporter.times import parse_duration, parse_time

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tachograph_exporter.store.database import Database

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
ReadWorkspaceOption = Annotated[
    str | None,
    typer.Option("--workspace", envvar=WORKSPACE_VARIABLE, help="Workspace slug. Default: default, or the service's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


def _write_to(context: typer.Context, path: Path | None) -> Path | None:
    """Send what the command prints to a file, which gets its name when the command ends and has printed something."""
    if path is None or context.resilient_parsing:
        return path
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        fail(f"cannot write to {path}: {error.strerror}")
    out.file = file

    def finish() -> None:
        out.file = None  # type: ignore[assignment]
        is_empty = file.tell() == 0
        file.close()
        if is_empty:
            part.unlink()
        else:
            part.replace(path)

    context.call_on_close(finish)
    return path


OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", callback=_write_to, help="Write to this file instead."),
]

DATABASE: Final = DEFAULT_DATABASE


class Failed(typer.Exit):
    """A command ends with an error, which was printed. ``message`` is for callers that go on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """Print an error and exit."""
    err.print(f"[bold red]tachograph:[/] {shown(message)}", soft_wrap=True)
    raise Failed(message, code)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Print errors that explain themselves as one line or a list, without a traceback, and exit."""
    try:
        yield
    except (InvalidWorkflow, InvalidInputs) as error:
        print_faults(error.faults, "error")
        fail(str(error).partition(":")[0])
    except TachographError as error:
        fail(str(error))


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone, and exit unless the answer is yes.

    ``yes``: it was given already. Where nobody can be asked, it must be.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        fail(f"{question} Nobody can be asked here: confirm with --yes")
    err.print(f"{shown(question)} \\[y/N] ", end="", soft_wrap=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        fail("nothing was done", code=1)


def time_ns(text: str | None, now_ns: int) -> int | None:
    """Unix nanoseconds of a time or an age that an option gives; None for None."""
    try:
        return parse_time(text, now_ns) if text is not None else None
    except ValueError as error:
        fail(str(error))


def duration_ns(text: str) -> int:
    """Nanoseconds of a duration that an option gives."""
    try:
        return parse_duration(text)
    except ValueError as error:
        fail(str(error))


def print_faults(faults: tuple[Fault, ...] | list[Fault], kind: str) -> None:
    """Print each fault with its place and code on standard error."""
    colour = "red" if kind == "error" else "yellow"
    for fault in faults:
        err.print(f"  [{colour}]{kind}[/] {shown(fault.message)}", soft_wrap=True)
        err.print(f"        [bright_black]at {shown(fault.at or 'top level')}, code {fault.code}[/]", soft_wrap=True)


def print_json(value: Any) -> None:
    """Print indented JSON on standard output."""
    out.file.write(json_text(value) + "\n")


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


def command_directory() -> Path | None:
    """The directory of this process's ``tachograph``, if the shell would not find it; else None."""
    path = Path(sys.argv[0])
    on_path = shutil.which("tachograph")
    is_on_path = on_path is not None and path.exists() and path.samefile(on_path)
    return None if path.name != "tachograph" or is_on_path else path.absolute().parent


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log to standard error, formatted for people."""
    from rich.logging import RichHandler  # Only what serves logs.

    handler = RichHandler(console=err, show_path=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
