"""Processes of the ``tachograph`` command, and of programs that record, whose output is in a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import programs

Process = subprocess.Popen[bytes]


def start(
    arguments: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    *,
    program: str = "",
    errors: Path | None = None,
    is_forked: bool = True,
) -> Process:
    """Run ``tachograph``, or a program's source text, with these arguments and environment.

    The output is appended to ``log``, and that of stderr to ``errors``, if it is given. ``is_forked``: unless it has to
    be a new process.
    """
    command = [sys.executable, *(["-c", program] if program else ["-m", "tachograph_exporter"]), *arguments]
    started_by = programs.Popen if is_forked else subprocess.Popen
    with log.open("ab") as output, (errors or log).open("ab") as error_output:
        return started_by(command, stdin=subprocess.DEVNULL, stdout=output, stderr=error_output, env=dict(variables))


def run(
    arguments: Sequence[str], variables: Mapping[str, str], directory: Path, *, program: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, as `subprocess.run` does. ``directory``: for its output."""
    output, errors = directory / "stdout", directory / "stderr"
    for file in (output, errors):
        file.write_bytes(b"")
    status = start(arguments, variables, output, program=program, errors=errors).wait(250)
    return subprocess.CompletedProcess(list(arguments), status, output.read_text(), errors.read_text())
