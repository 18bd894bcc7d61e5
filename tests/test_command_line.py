"""The ``tachograph`` command imports what the command at hand needs, and knows every command."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from tachograph_exporter.cli import load
from tachograph_exporter.cli.application import COMMANDS, outline

NAMES = """
import sys
from tachograph_exporter.cli import load
import typer
print(*typer.main.get_command(load(sys.argv[1:])).commands)
print("sqlalchemy" in sys.modules, "tachograph_exporter.service" in sys.modules)
"""


def loaded(*arguments: str) -> tuple[list[str], str]:
    """The commands that a new process loads for a command line, and whether it loads SQLAlchemy and the service."""
    ran = subprocess.run([sys.executable, "-c", NAMES, *arguments], capture_output=True, text=True, check=True)
    names, modules = ran.stdout.splitlines()
    return names.split(), modules


@pytest.mark.parametrize(
    ("command", "commands", "modules"),
    [
        ("watch", ["watch"], "False False"),
        ("timeline", ["timeline", "metrics", "trends", "compare"], "False False"),
        ("serve", ["serve"], "True True"),
    ],
)
def test_a_command_imports_what_it_needs(command: str, commands: list[str], modules: str) -> None:
    assert loaded(command, "--help") == (commands, modules)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_command(option: str) -> None:
    program = (
        "import sys\nfrom tachograph_exporter import main\n"
        "try:\n    main()\nfinally:\n    print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program, option], capture_output=True, text=True, check=True)
    assert ("Usage" if option == "--help" else "tachograph ") in ran.stdout
    assert {"tachograph", "sqlalchemy", "aiohttp", "opentelemetry"}.isdisjoint(ran.stderr.split())


def test_the_help_says_of_each_command_what_the_command_says() -> None:
    quick = typer.main.get_command(outline()).commands  # type: ignore[attr-defined]
    whole = typer.main.get_command(load()).commands  # type: ignore[attr-defined]
    assert list(quick) == list(COMMANDS)
    assert sorted(whole) == sorted(COMMANDS)
    for name, command in whole.items():
        summary = " ".join((command.help or "").partition("\n\n")[0].split())
        assert (name, summary, command.rich_help_panel) == (name, COMMANDS[name].summary, COMMANDS[name].panel)
