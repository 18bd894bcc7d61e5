"""Real processes (the service, Prometheus) on free ports, stopped after the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.e2e import preloaded
from tools.local_service import free_port

TACHOGRAPH = [sys.executable, "-m", "tachograph_exporter"]
NEW_PROCESS = ("LD_", "FAKETIME", "OTEL_", "PYTHON", "PROMETHEUS_")
"""Variables that are read while a process starts and imports."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def get(url: str, *, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """(status, decoded body), requested with the standard library as a script would."""
    import urllib.error
    import urllib.request

    data = msgspec.json.encode(body) if body is not None else None
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    if data is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, content = error.code, error.read()
    try:
        return status, msgspec.json.decode(content)
    except msgspec.DecodeError:
        return status, content.decode()


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first truthy value of ``condition``; fails if it stays falsy until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except (OSError, KeyError, IndexError):
            value = None
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not become true in time")
        time.sleep(0.05)


def environment(**more: str) -> dict[str, str]:
    # Without bytecode every process of a test would compile everything it imports: a second on a busy machine.
    left_out = ("OTEL_", "TACHOGRAPH_", "TRACEPARENT", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return {**kept, "PYTHONUNBUFFERED": "1", "COLUMNS": "120", **more}


class Server:
    """A ``tachograph serve`` process."""

    def __init__(self, directory: Path, *options: str, **variables: str) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = directory / f"serve-{self.port}.log"
        self.command = [*TACHOGRAPH, "serve", "--listen", f"127.0.0.1:{self.port}", "--handlers", "examples", *options]
        self.variables = variables
        self.process: preloaded.Process | None = None

    def start(self) -> Server:
        self.launch()
        eventually(self._answers)
        return self

    def launch(self) -> None:
        """Start it, and do not wait until it is ready."""
        self.process = preloaded.start(
            self.command[len(TACHOGRAPH) :], environment(**self.variables), self.log,
            is_forked=not any(name.startswith(NEW_PROCESS) for name in self.variables),
        )  # fmt: skip

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return get(f"{self.address}/-/ready")[0] == 200

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def get(self, path: str) -> Any:
        status, body = get(self.address + path)
        assert status == 200, body
        return body

    def post(self, path: str, body: Any = None) -> Any:
        """The answer; on a machine that is too busy to store it in time, the same request is sent again."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if path.endswith("/execute") else {}
        deadline = time.monotonic() + 60
        while True:
            status, answer = get(
                self.address + path, method="POST", body=body if body is not None else {}, headers=headers
            )
            if status != 503 or not headers or time.monotonic() > deadline:
                assert status in (201, 202), answer
                return answer
            time.sleep(0.5)


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Callable[..., Server]]:
    """Starts ``tachograph serve`` with more options and environment variables; all servers share one database."""
    servers: list[Server] = []

    def start(*options: str, **variables: str) -> Server:
        if not servers and not (tmp_path / "serve.db").exists():
            shutil.copy(empty_database, tmp_path / "serve.db")
        server = Server(tmp_path, "--database", f"sqlite:///{tmp_path}/serve.db", *options, **variables)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a real Prometheus with a configuration and returns its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs the prometheus package (apt-get install prometheus)")
    processes: list[subprocess.Popen[bytes]] = []

    def start(configuration: str, *options: str) -> str:
        # The first one serves what the test put into tsdb beforehand.
        number = str(len(processes) or "")
        file = tmp_path / f"prometheus{number}.yml"
        file.write_text(configuration)
        subprocess.run(["promtool", "check", "config", str(file)], check=True, capture_output=True)
        port = free_port()
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/tsdb{number}",
                   f"--web.listen-address=127.0.0.1:{port}", *options]  # fmt: skip
        with (tmp_path / f"prometheus{number}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: get(f"{address}/-/ready")[0] == 200)
        return address

    yield start
    for process in processes:
        process.terminate()
        process.wait(60)
