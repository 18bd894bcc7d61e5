"""Processes of the ``tachograph`` command, and of programs that record, that begin with everything imported.

Importing the service takes a second of processor time, and the tests start more than a hundred services. So each worker
of pytest has one process that has imported it and does nothing but fork. A child sets up what a new process would be
given (arguments, environment, output) and runs the command, or the program, from its beginning to its exit. To be
killed, stopped and waited for it is a process like any other.

What depends on how a process starts (other variables of the interpreter or the SDK) is started as users do.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Preloaded:
    """A child of the process that forks; has what the tests use of `subprocess.Popen`."""

    def __init__(self, starter: _Starter, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._starter = starter
        # Readable once the process has ended. Its number is not used again before the starter has waited for it.
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended. Raises `subprocess.TimeoutExpired`."""
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("tachograph", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """As `subprocess.Popen.send_signal`: nothing once it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                self.returncode = self._starter.ask({"wait": self.pid})
                os.close(self._descriptor)
        return self.returncode


Process = subprocess.Popen[bytes] | Preloaded


class _Starter:
    def __init__(self, variables: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.e2e.preloaded import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(variables), cwd=Path(__file__).parents[2],
        )  # fmt: skip
        atexit.register(self._close)

    def ask(self, request: dict[str, Any]) -> int:
        """The answer of the process that forks."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


_starters: list[_Starter] = []
_starting = threading.Lock()


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
    if not is_forked or sys.platform != "linux":
        command = ["-c", program] if program else ["-m", "tachograph_exporter"]
        with log.open("ab") as output, (errors or log).open("ab") as error_output:
            return subprocess.Popen(
                [sys.executable, *command, *arguments], stdout=output, stderr=error_output, env=dict(variables)
            )
    with _starting:
        if not _starters:
            _starters.append(_Starter(variables))
    starter = _starters[0]
    request = {"arguments": list(arguments), "variables": dict(variables), "log": str(log), "directory": os.getcwd(),
               "errors": str(errors or log), "program": program}  # fmt: skip
    return Preloaded(starter, starter.ask(request))


def run(
    arguments: Sequence[str], variables: Mapping[str, str], directory: Path, *, program: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, as `subprocess.run` does. ``directory``: for its output."""
    output, errors = directory / "stdout", directory / "stderr"
    for file in (output, errors):
        file.write_bytes(b"")
    status = start(arguments, variables, output, program=program, errors=errors).wait(250)
    return subprocess.CompletedProcess(list(arguments), status, output.read_text(), errors.read_text())


def serve() -> None:
    """Fork on request; in a child, run the command."""
    import gc
    import importlib

    from tachograph_exporter.cli import load

    for module in ("tachograph_exporter.cli.serving", "tachograph_exporter.store.migrations", "asyncpg",
                   "tachograph_exporter.store.writer", "sqlalchemy.dialects.postgresql.asyncpg",
                   "sqlalchemy.ext.asyncio"):  # fmt: skip
        importlib.import_module(module)

    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answers.write(b"%d\n" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            answers.close()
            break
        answers.write(b"%d\n" % pid)
    else:
        return
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["directory"])
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1)
    _redirect(request["errors"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 2)
    sys.argv = ["tachograph", *request["arguments"]]
    if request["program"]:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(request["program"], "<program>", "exec"), main.__dict__)
    else:
        load(request["arguments"])()


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    source = os.open(path, flags)
    for descriptor in descriptors:
        os.dup2(source, descriptor)
    os.close(source)
