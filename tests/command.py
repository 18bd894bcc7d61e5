"""The ``tachograph`` command in the test's own process: a new interpreter for each command would take most of the time.

Signals, exit codes of the interpreter and what happens at its end need a process; see tests/e2e/test_cli.py.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner

from tachograph_exporter.cli import common, load
from tests.e2e.conftest import environment


def tachograph(directory: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory, with more environment variables. ``stderr`` has a traceback, as a process' has."""
    runner = CliRunner()
    with (
        contextlib.chdir(directory),
        mock.patch.dict("os.environ", environment(**variables), clear=True),
        mock.patch.object(common.out, "_width", 120),
        mock.patch.object(common.err, "_width", 120),
    ):
        result = runner.invoke(load(), list(words), prog_name="tachograph")
    error = result.exception
    trouble = f"Traceback: {error!r}" if error is not None and not isinstance(error, SystemExit) else ""
    return subprocess.CompletedProcess(list(words), result.exit_code, result.stdout, result.stderr + trouble)
