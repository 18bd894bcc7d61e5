"""The ``tachograph`` command imports what the command at hand needs, and knows every command."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from tachograph_exporter.cli import COMMANDS, load

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
        ("timeline", ["timeline", "metrics", "trends", "compare"], "True False"),
        ("serve", ["serve"], "True True"),
    ],
)
def test_a_command_imports_what_it_needs(command: str, commands: list[str], modules: str) -> None:
    assert loaded(command, "--help") == (commands, modules)


def test_every_command_is_known_by_its_name() -> None:
    commands = typer.main.get_command(load()).commands  # type: ignore[attr-defined]
    assert sorted(commands) == sorted(name for names in COMMANDS.values() for name in names)
