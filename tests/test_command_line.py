"""The ``tachograph`` command imports what the command at hand needs, and knows every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tachograph_exporter.cli import load
from tachograph_exporter.cli.application import COMMANDS, outline

LOADING = """
import json, os, sys
import typer
from tachograph_exporter.cli import load
from tachograph_exporter.cli.application import COMMANDS
loaded = {}
for name in COMMANDS:
    # A child for each command, so that none sees what another one loads.
    reading, writing = os.pipe()
    if not os.fork():
        names = list(typer.main.get_command(load([name])).commands)
        os.write(writing, json.dumps([names, [n for n in sys.modules if n.count(".") < 2]]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        loaded[name] = json.loads(pipe.read())
    os.wait()
print(json.dumps(loaded))
"""
HEAVY = {
    "sqlalchemy", "aiohttp", "opentelemetry", "prometheus_client", "grpc", "google", "alembic", "asyncpg",
    "tachograph_exporter.service", "tachograph_exporter.store", "tachograph_exporter.api", "tachograph.workflow",
    "tachograph.recording", "tachograph.metrics", "tachograph.spans",
}  # fmt: skip
LIGHT = (
    "runs", "timeline", "logs", "open", "cancel", "why", "compare", "trends", "metrics", "workflows", "failures", "mcp",
    "workspaces", "projects", "report",
)  # fmt: skip
"""Commands that ask a service or a database, and load what they need of it when they know which."""
NEVER = {"grpc", "alembic", "asyncpg", "mcp", "mcp_types", "pydantic", "starlette"}


def test_a_command_imports_what_it_needs() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True)
    loaded = json.loads(ran.stdout)
    assert set(loaded) == set(COMMANDS)
    for name, (commands, modules) in loaded.items():
        assert name in commands
        assert len(commands) < 8, name
        if name in LIGHT:
            assert not HEAVY & set(modules), name
        if name not in ("serve", "demo"):
            assert not {"tachograph_exporter.service", *NEVER} & set(modules), name
    assert "tachograph_exporter.store" not in loaded["watch"][1]
    assert "sqlalchemy" not in loaded["dashboards"][1]
    assert "tachograph_exporter.service" in loaded["serve"][1]


def test_a_command_that_asks_a_service_loads_no_database(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tachograph_exporter import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "runs", "--url", "http://127.0.0.1:1"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "does not answer" in ran.stderr
    assert HEAVY.isdisjoint(ran.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["timel"], {"timeline"}),
        (["runs", "--fai"], {"--failed"}),
        (["workflows", ""], {"list", "show", "delete"}),
        (["nonsense", "--x"], set()),
    ],
)
def test_a_shell_completes_commands_and_options(words: list[str], completions: set[str]) -> None:
    variables = {
        "_TACHOGRAPH_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["tachograph", *words]),
        "COMP_CWORD": str(len(words)),
    }  # fmt: skip
    # As a shell calls the command: by its name.
    program = "import sys; sys.argv = ['tachograph']; from tachograph_exporter import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
    assert set(ran.stdout.split()) == completions, ran.stderr


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
