"""Databases for benchmarks: SQLite in a temporary file, and a private PostgreSQL with its default durability."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console


def _binary(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        path = str(versions[-1]) if versions else None
    return path


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    """The URL of a new SQLite database."""
    with tempfile.TemporaryDirectory() as directory:
        yield f"sqlite:///{directory}/bench.db"


@contextlib.contextmanager
def postgresql() -> Iterator[str | None]:
    """The URL of a new PostgreSQL database, or None if PostgreSQL is not installed."""
    initdb, pg_ctl = _binary("initdb"), _binary("pg_ctl")
    if initdb is None or pg_ctl is None:
        yield None
        return
    directory = Path(tempfile.mkdtemp(prefix="tachograph-bench-", dir="/tmp"))
    prefix: list[str] = []
    if os.getuid() == 0:
        shutil.chown(directory, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(
            [*prefix, *command], check=True, cwd="/tmp", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    run(initdb, "-D", f"{directory}/data", "-A", "trust", "-U", "postgres", "--locale=C.UTF-8")
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c shared_buffers=512MB -c max_wal_size=4GB"
    run(pg_ctl, "-D", f"{directory}/data", "-l", f"{directory}/log", "-o", options, "-w", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        run(pg_ctl, "-D", f"{directory}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(directory, ignore_errors=True)


ALL = {"SQLite": sqlite, "PostgreSQL": postgresql}


def installed(console: Console) -> Iterator[tuple[str, str]]:
    """Name and URL of a new database of each kind; says which kind is not installed."""
    for name, opened in ALL.items():
        with opened() as url:
            if url is None:
                console.print(f"{name} is not installed")
            else:
                yield name, url
