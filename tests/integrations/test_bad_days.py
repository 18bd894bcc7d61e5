"""Engines go on whatever becomes of what they report: the service is down, hangs, is full or says nonsense; the hooks
are broken. What they did is taken back in the end.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import itertools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.engines import processes
from tests.integrations.plays import HOOKS, PLAYS, WORK, Stage

import tachograph
from tachograph import meter, running_attempts
from tachograph.integrations import running
from tachograph.quiet_log import QuietLog
from tachograph.recording.recorder import Recorder
from tachograph.report import Run, Step

pytestmark = pytest.mark.filterwarnings("ignore")  # Of the engines' own.

MOODS: Final = (
    (429, "Retry-After: 3600", b""), (503, "Retry-After: 3600", b""), (507, "X-Full: 1", b"no space"),
    (200, "Content-Type: text/html", b"<h1>Welcome</h1>"), (200, "Content-Type: application/json", b'{"received": -1}'),
    (302, "Location: /login", b""), (500, "X-Odd: \xff", b"\x00" * 100), (413, "X-Large: 1", b"too large"),
)  # fmt: skip
"""What a service may answer that takes nothing."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.close()


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """A service that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def moody() -> Iterator[str]:
    """A service that answers each time something else, and takes nothing."""
    moods = itertools.cycle(MOODS)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, header, body = next(moods)
            self.send_response(status)
            self.send_header(*header.split(": "))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def down() -> Iterator[str]:
    """No service."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


def fail(*_: Any, **__: Any) -> Any:
    """What something broken does."""
    raise RuntimeError("broken on purpose")


def _running_modules() -> list[tuple[Any, str]]:
    """Where integrations ask for a run."""
    modules = [module for name, module in sys.modules.items() if name.startswith("tachograph.integrations.")]
    return [(module, "run") for module in modules if getattr(module, "run", None) is tachograph.report.run]


BROKEN: Final[dict[str, list[tuple[Any, str]]]] = {
    "run": [(Run, name) for name in ("step", "queued", "begin", "finished", "failed", "closed", "known", "step_id")],
    "step": [(Step, name) for name in ("queued", "planned", "started", "finished", "failed", "retrying", "depend_on",
                                       "collect_logs", "collect_no_logs", "works_here", "skipped")],
    "task": [(meter, "start"), (running.RunningStep, "__init__"), (running.RunningStep, "leave"),
             (running.RunningStep, "used")],
    "recorder": [(Recorder, name) for name in ("__call__", "publish", "watch", "unwatch", "hold", "hand_over")],
}  # fmt: skip
"""What of the integrations and of what they are built on fails, all of it at once."""


@pytest.fixture
def quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for module in HOOKS:
        # What is logged here would be left out where other tests look for it.
        monkeypatch.setattr(module, "quiet", QuietLog(logging.getLogger("tests")))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    tachograph.configure(database="", url="", registry=None, spans=False)


def engines() -> dict[str, Callable[[Stage], list[int]]]:
    """Those that can run here."""
    needs = {"rq": processes.has_redis(), "kedro": importlib.util.find_spec("kedro") is not None}
    return {name: play for name, play in PLAYS.items() if needs.get(name, True)}


@pytest.mark.parametrize("day", [down, hanging, moody], ids=lambda day: day.__name__)
@pytest.mark.usefixtures("quietly")
def test_engines_on_a_bad_day(day: Callable[[], contextlib.AbstractContextManager[str]], stage: Stage) -> None:
    with day() as address:
        recorder = tachograph.configure(url=address, registry=None, spans=False)
        for name, play in engines().items():
            before = recorder.events
            assert play(stage) == WORK, name
            assert recorder.events > before, name
        # Nothing is lost: what nobody takes waits on the disk.
        recorder.close(2.0)
        assert not recorder.queues["store"].dropped


@pytest.mark.parametrize("what", ["runs", *BROKEN])
@pytest.mark.usefixtures("quietly")
def test_engines_whose_hooks_are_broken(what: str, stage: Stage) -> None:
    with down() as address, pytest.MonkeyPatch.context() as patched:
        recorder = tachograph.configure(url=address, registry=None, spans=False)
        for owner, name in BROKEN[what] if what in BROKEN else _running_modules():
            patched.setattr(owner, name, fail)
        for name, play in engines().items():
            assert play(stage) == WORK, name
            assert not running_attempts.running, f"{name}: what has ended is taken for running"
        patched.undo()
        recorder.close(2.0)


def belongings(package: str) -> dict[str, int]:
    """What the classes and modules of an engine have, by name: what hooks could leave behind there."""
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package and module is not None:
            for attribute, value in list(vars(module).items()):
                if callable(value):
                    found[f"{name}.{attribute}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    found |= {f"{name}.{attribute}.{key}": id(each) for key, each in list(vars(value).items())
                              if callable(each)}  # fmt: skip
                receivers = getattr(value, "__dict__", {}).get("receivers")
                if isinstance(receivers, list):
                    found[f"{name}.{attribute}.receivers"] = len(receivers)
    return found


@pytest.mark.parametrize("engine", engines())
@pytest.mark.usefixtures("quietly")
def test_uninstrumented_nothing_is_left(engine: str, stage: Stage) -> None:
    package = {"dask": "distributed"}.get(engine, engine)
    with down() as address:
        recorder = tachograph.configure(url=address, registry=None, spans=False)
        PLAYS[engine](stage)  # What it imports and makes once is there now.
        recorder.flush(0.0)
        classes, threads, variables = belongings(package), set(threading.enumerate()), dict(os.environ)
        files = sorted(path.name for path in Path.cwd().iterdir())
        assert PLAYS[engine](stage) == WORK
        after = belongings(package)
        assert {name for name in classes if after.get(name) != classes[name]} == set()
        assert not [name for name in after if "tachograph" in name.lower()]
        left = [thread.name for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
        assert not [
            name for name in left if name.startswith("tachograph") and "spool" not in name and "cour" not in name
        ]
        assert dict(os.environ) == variables
        assert sorted(path.name for path in Path.cwd().iterdir()) == files
        assert running.running_task() is None
        assert not meter._active
        recorder.close(2.0)


def test_every_engine_of_this_process_is_played() -> None:
    names = {module.__name__.rpartition(".")[2] for module in HOOKS if hasattr(module, "instrument")}
    # arq is not installed beside the others: it needs another redis.
    assert set(PLAYS) >= names - {"arq"}
