"""What real engines need beside them: Redis, RabbitMQ and a Temporal server, on free ports."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.local_service import environment, eventually, free_port

STOP_SECONDS = 15
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's command on the path wants to be a system's own service."""


@contextlib.contextmanager
def running(command: list[str], log: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the directory of its log, stopped in the end."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment() | {**variables}, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_listening(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def has_redis() -> bool:
    return shutil.which("redis-server") is not None


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[str]:
    """The URL of a real Redis."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with running(command, directory / "redis.log", {}):
        eventually(lambda: is_listening(port))
        yield f"redis://127.0.0.1:{port}/0"


def has_rabbitmq() -> bool:
    return RABBITMQ.exists()


@contextlib.contextmanager
def rabbitmq(directory: Path) -> Iterator[str]:
    """The URL of a real RabbitMQ."""
    port, names = free_port(), free_port()
    home = directory / "rabbitmq"
    home.mkdir()
    variables = {
        "HOME": str(home), "RABBITMQ_NODENAME": f"test{port}@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_DIST_PORT": str(free_port()), "ERL_EPMD_PORT": str(names),
        "RABBITMQ_MNESIA_BASE": str(home / "db"), "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"), "RABBITMQ_CONFIG_FILE": str(home / "none"),
    }  # fmt: skip
    try:
        with running([str(RABBITMQ)], directory / "rabbitmq.log", variables):
            eventually(lambda: is_listening(port), 120)
            yield f"amqp://guest:guest@127.0.0.1:{port}//"
    finally:
        # It starts a server of names, which would stay.
        subprocess.run(["epmd", "-port", str(names), "-kill"], capture_output=True, check=False)


@contextlib.contextmanager
def temporal(directory: Path, python: str) -> Iterator[str]:
    """The address of a real Temporal server, whose program is beside ``python``."""
    port = free_port()
    command = [str(Path(python).with_name("temporal")), "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port),
               "--http-port", str(free_port()), "--headless", "--log-level", "error"]  # fmt: skip
    with running(command, directory / "temporal.log", {}):
        eventually(lambda: is_listening(port), 60)
        yield f"127.0.0.1:{port}"
