"""Programs and commands, started as users start them, with what they import imported already.

A new interpreter that records imports for most of a second of processor time, a service for more than one, and the
tests start hundreds. So each worker of pytest has a process that has imported all this and does nothing but fork. A
child becomes what ``python [-W ...] (FILE | -c SOURCE | -m MODULE) ...`` would be: arguments, environment, directory,
files, filters of warnings, ``__main__``. To be killed, stopped and waited for it is a process like any other.

A program that is told ``OTEL_*`` imports OpenTelemetry and our own modules itself, which read them. What depends on how
the interpreter itself starts is started as a new process; where that, or what is imported when, is what is tested, use
`subprocess`. Shells have `stand_ins`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import multiprocessing.process
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

_ROOT: Final = Path(__file__).parents[1]
_READ_AT_START: Final = ("LD_", "LC_", "LANG", "TZ", "FAKETIME", "PYTHON", "PROMETHEUS_", "COVERAGE_")
"""Variables that are read while the interpreter starts, or while a library is imported."""
_EMULATED: Final = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
_STDLIB: Final = (
    "asyncio", "concurrent.futures.process", "concurrent.futures.thread", "contextvars", "dataclasses", "difflib",
    "email.message", "email.parser", "email.utils", "hashlib", "hmac", "http.client", "importlib.metadata", "inspect",
    "json", "linecache", "logging.handlers", "multiprocessing", "multiprocessing.connection", "multiprocessing.pool",
    "platform", "queue", "random", "shutil", "socket", "sqlite3.dbapi2", "ssl", "statistics", "subprocess", "tempfile",
    "traceback", "typing", "urllib.request", "uuid", "zipfile", "zoneinfo",
)  # fmt: skip
_LIBRARIES: Final = (
    "aiohttp", "asyncpg", "attr", "google.protobuf.message", "greenlet", "msgspec", "prometheus_client.core",
    "pydantic.type_adapter", "rich.logging",
    "prometheus_client.openmetrics.exposition", "re2", "requests", "rich.console",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite", "sqlalchemy.ext.asyncio", "typer", "typing_extensions", "urllib3",
)  # fmt: skip
_TELEMETRY: Final = (
    "opentelemetry.context.contextvars_context", "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.propagate", "opentelemetry.sdk.resources", "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export", "opentelemetry.trace",
)  # fmt: skip
_OURS: Final = (
    "tachograph", "tachograph_exporter.service", "tachograph_exporter.store.migrations",
    "tachograph_exporter.store.writer",
)  # fmt: skip
_READERS: Final = (*_TELEMETRY, *_OURS)
"""They read ``OTEL_*`` while they are imported, or later what was read then."""


class _Starter:
    """The process that forks."""

    def __init__(self, kind: str) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        self.variables = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TACHOGRAPH_"))}
        with theirs:
            serve = "import sys; from tests.programs import _serve; _serve(*sys.argv[1:])"
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", serve, kind, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=self.variables, cwd=_ROOT,
            )  # fmt: skip
        self._answers = self._socket.makefile("r")
        atexit.register(self._close)

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        """What it answers: the process id of a child, or the status of one that has ended."""
        body = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(body).to_bytes(4, "big")], files)
            self._socket.sendall(body)
            answer = self._answers.readline()
        if not answer:
            raise RuntimeError("the process that starts programs has ended")
        return int(answer)

    def _close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait(60)


_starters: Final[dict[str, _Starter]] = {}
_starting: Final = threading.Lock()


def _starter(kind: str) -> _Starter:
    with _starting:
        if kind not in _starters:
            _starters[kind] = _Starter(kind)
        return _starters[kind]


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` of ``[sys.executable, ...]``, forked where that makes no difference."""

    _starter: _Starter | None = None
    _descriptor = -1

    @property
    def is_forked(self) -> bool:
        """Whether it was forked."""
        return self._starter is not None

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        (executable, preexec, _close_fds, pass_fds, cwd, env, _info, _flags, shell,
         p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _restore, *others) = rest  # fmt: skip
        variables = dict(os.environ if env is None else env)
        is_special = shell or executable or pass_fds or preexec or sys.platform != "linux"
        # Groups, users, sessions: none was asked for.
        is_special = is_special or any(other not in (None, False, -1) for other in others)
        request = None if is_special else _parse([os.fspath(word) for word in args])
        starter = _starter("others" if any(name.startswith("OTEL_") for name in variables) else "readers")
        if request is None or _starts_differently(variables, starter.variables):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        request |= {"variables": variables, "directory": os.fspath(cwd) if cwd is not None else os.getcwd()}
        files = [0 if p2cread == -1 else p2cread, 1 if c2pwrite == -1 else c2pwrite, 2 if errwrite == -1 else errwrite]
        try:
            self.pid = starter.ask(request, files)
            self._descriptor = os.pidfd_open(self.pid)
            self._starter = starter
            self._looking = threading.Lock()  # Two threads may wait; it can be asked for its status once.
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if poll.poll(None if timeout is None else max(0, timeout) * 1000):
                assert self._starter is not None
                with self._looking:
                    if self.returncode is None:
                        self.returncode = self._starter.ask({"wait": self.pid})
                        os.close(self._descriptor)
        return self.returncode

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._starter is None:
            return super()._internal_poll(*arguments, **options)  # type: ignore[misc, no-any-return]
        return self._look(0)

    def _wait(self, timeout: float | None) -> int:
        if self._starter is None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """As that of `subprocess.Popen`: nothing once it has ended."""
        if self._starter is None:
            super().send_signal(number)
        elif self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)


def run(
    command: Sequence[str | Path],
    *,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of ``[sys.executable, ...]``, forked where that makes no difference."""  # fmt: skip
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen(command, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    ran = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        ran.check_returncode()
    return ran


def _starts_differently(variables: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether they differ in a variable that says how the interpreter, or a library, starts."""
    names = {name for name in {*variables, *others} if name.startswith(_READ_AT_START)} - _EMULATED
    return any(variables.get(name) != others.get(name) for name in names)


def _parse(command: Sequence[str]) -> dict[str, Any] | None:
    """What ``python ...`` would run; None: not known here."""
    if command[0] != sys.executable:
        return None
    words, filters = list(command[1:]), []
    while len(words) > 1 and words[0] == "-W":
        filters.append(words[1])
        del words[:2]
    if len(words) > 1 and words[0] in ("-c", "-m"):
        return {"kind": words[0], "what": words[1], "arguments": words[2:], "filters": filters}
    if not words or words[0].startswith("-"):
        return None
    return {"kind": "file", "what": words[0], "arguments": words[1:], "filters": filters}


def _serve(kind: str, descriptor: str) -> None:
    """Fork on request; in a child, become the program."""
    for module in (*_STDLIB, *_LIBRARIES, *(_READERS if kind == "readers" else ())):
        with contextlib.suppress(ModuleNotFoundError):  # Optional ones.
            importlib.import_module(module)
    for module in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[module]
    assert threading.active_count() == 1, threading.enumerate()
    # As without -W: those of the program are its own.
    sys.warnoptions.clear()
    warnings.resetwarnings()
    _use_default_filters()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(descriptor)) as requests:
        while True:
            length, files = _read(requests, 4)
            if not length:
                return
            request: dict[str, Any] = json.loads(_read(requests, int.from_bytes(length, "big"))[0])
            if "wait" in request:
                _, status = os.waitpid(request["wait"], 0)
                requests.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                continue
            pid = os.fork()
            if pid == 0:
                break
            for number in files:
                os.close(number)
            requests.sendall(b"%d\n" % pid)
    _become(request, files)


def _read(requests: socket.socket, size: int) -> tuple[bytes, list[int]]:
    data, files, _, _ = socket.recv_fds(requests, size, 3)
    while data and len(data) < size:
        data += requests.recv(size - len(data))
    return data, files


def _use_default_filters() -> None:
    # https://docs.python.org/3/library/warnings.html#default-warning-filter
    for category in (ResourceWarning, ImportWarning, PendingDeprecationWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")


def _become(request: Mapping[str, Any], files: Sequence[int]) -> None:
    for standard, number in enumerate(files):
        os.dup2(number, standard)
        os.close(number)
    # Whatever pytest was started with: it is ignored by what a shell starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    is_buffered = not os.environ.get("PYTHONUNBUFFERED")
    sys.stdin = os.fdopen(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)
    sys.stdout, sys.stderr = _like(sys.stdout, is_buffered), _like(sys.stderr, is_buffered)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    for option in request["filters"]:
        sys.warnoptions.append(option)
        warnings._setoption(option)  # type: ignore[attr-defined]
    what, kind = request["what"], request["kind"]
    sys.argv = [{"-c": "-c", "-m": "-m"}.get(kind, what), *request["arguments"]]
    sys.orig_argv = [sys.executable, *(word for option in request["filters"] for word in ("-W", option)),
                     *([kind] if kind != "file" else []), what, *request["arguments"]]  # fmt: skip
    sys.path[0] = {"-c": "", "-m": os.getcwd()}.get(kind) or ("" if kind == "-c" else str(Path(what).resolve().parent))
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]
    importlib.invalidate_caches()
    main = types.ModuleType("__main__")
    try:
        if kind == "-m":
            import runpy

            runpy.run_module(what, run_name="__main__", alter_sys=True)
            _end(main)
            return
        sys.modules["__main__"] = main
        main.__dict__["__builtins__"] = __builtins__
        if kind == "file":
            main.__file__ = what
            code = compile(Path(what).read_bytes(), what, "exec", dont_inherit=True)
        else:
            code = compile(what, "<string>", "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit as ending:
        if not isinstance(ending.code, int | None):
            raise
        _end(main, ending.code or 0)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Without the line of this file.
        below = error.__traceback__.tb_next if error.__traceback__ is not None else None
        sys.excepthook(type(error), error.with_traceback(below), below)
        _end(main, 1)
        sys.exit(1)
    else:
        _end(main)


def _end(main: types.ModuleType, status: int = 0) -> None:
    """End as the interpreter does, but do not take apart hundreds of modules: that takes a tenth of a second.

    Returns if the interpreter might have something to say: then it is the interpreter that ends.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # It warns of what was left open.
    if any(isinstance(value, socket.socket) or hasattr(type(value), "__del__") for value in [*vars(main).values()]):
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (AttributeError, OSError, ValueError):
        return
    os._exit(status)


def _like(stream: TextIO, is_buffered: bool) -> io.TextIOWrapper:
    descriptor = stream.fileno()
    raw = os.fdopen(descriptor, "wb", buffering=-1 if is_buffered else 0, closefd=False)
    is_by_line = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(
        raw, stream.encoding, stream.errors, line_buffering=is_by_line, write_through=not is_buffered
    )
