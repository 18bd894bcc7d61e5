"""A ``tachograph serve`` process on a free port, and a minimal JSON client for it. Tools and benchmarks use it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

TACHOGRAPH = [sys.executable, "-m", "tachograph_exporter"]
STOP_TIMEOUT_SECONDS = 20


# Below the ports that the kernel gives to connections and to port 0: one of these could be taken before it is used.
_FIRST_PORT, _PORTS = 10_000, 20_000
_next_port = itertools.count(os.getpid() * 977)


def free_port() -> int:
    """A TCP port on loopback that nothing listens on, and that this process has not been given before."""
    for number in itertools.islice(_next_port, _PORTS):
        port = _FIRST_PORT + number % _PORTS
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


def environment() -> dict[str, str]:
    """This process's environment without settings of OpenTelemetry and Tachograph."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TACHOGRAPH_", "TRACEPARENT"))}
    return {**variables, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def request(url: str, *, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    """Send a JSON request; returns the status and the decoded body. Raises OSError if nothing answers."""
    data = json.dumps(body).encode() if body is not None else None
    message = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310 - ours
    try:
        with urllib.request.urlopen(message, timeout=20) as response:  # noqa: S310 - ours
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode()


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a truthy result and return it. Raises TimeoutError; connection errors count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = condition()
        except OSError:
            result = None
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened within {seconds:g} seconds")
        time.sleep(0.05)


class LocalService:
    """A service on SQLite, below a directory. Use it as a context manager."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory / f"serve-{self.port}.log"
        database = f"sqlite:///{directory}/tachograph.db"
        self._command = [*TACHOGRAPH, "serve", "--listen", f"127.0.0.1:{self.port}", "--handlers", "examples",
                         "--database", database, *options]  # fmt: skip

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment())  # noqa: S603 - ours
        eventually(self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(STOP_TIMEOUT_SECONDS)

    def _is_ready(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the service did not start: {self._log.read_text()}")
        return request(f"{self.address}/-/ready")[0] == 200

    def get(self, path: str) -> Any:
        """The decoded body of a GET. Raises RuntimeError unless the status is 200."""
        status, body = request(self.address + path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status} {body}")
        return body

    def post(self, path: str, body: Any = None) -> Any:
        """The decoded body of a POST. Raises RuntimeError unless the status is 201 or 202."""
        status, answer = request(self.address + path, method="POST", body=body if body is not None else {})
        if status not in (201, 202):
            raise RuntimeError(f"POST {path}: {status} {answer}")
        return answer

    def wait_for_end(self, execution_id: str, seconds: float = 60.0) -> None:
        """Wait until an execution has ended. Raises TimeoutError."""
        path = f"/api/workflows/executions/{execution_id}/status"
        eventually(lambda: self.get(path)["completed_at"], seconds)
