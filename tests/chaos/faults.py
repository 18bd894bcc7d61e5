"""The faults: each begins, lasts a while, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.chaos.world import World

Fault = Callable[["World"], Awaitable[None]]


async def killed(world: World) -> None:
    """The service is killed (-9)."""
    world.service.send(signal.SIGKILL)


async def terminated(world: World) -> None:
    """The service is asked to stop."""
    world.service.send(signal.SIGTERM)


async def frozen(world: World) -> None:
    """The service stands still."""
    world.service.send(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, 4))
    world.service.send(signal.SIGCONT)


async def script_killed(world: World) -> None:
    """A recording script is killed (-9)."""
    world.load.kill_a_script()


@contextlib.asynccontextmanager
async def limited(world: World, kind: int, limit: int) -> AsyncIterator[None]:
    """A limit on a resource of the service."""
    pid = world.service.pid
    try:
        before = resource.prlimit(pid, kind)
        resource.prlimit(pid, kind, (limit, before[1]))
    except (ProcessLookupError, PermissionError, ValueError):
        yield
        return
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, kind, before)


async def no_descriptors(world: World) -> None:
    """The service may open no more files and sockets."""
    with contextlib.suppress(FileNotFoundError):
        used = max(map(int, os.listdir(f"/proc/{world.service.pid}/fd")), default=20)
        async with limited(world, resource.RLIMIT_NOFILE, used + 2):
            await asyncio.sleep(3)


async def no_memory(world: World) -> None:
    """The service gets no more memory."""
    with contextlib.suppress(FileNotFoundError):
        used = await asyncio.to_thread(_address_space, world.service.pid)
        async with limited(world, resource.RLIMIT_AS, used + (1 << 20)):
            await asyncio.sleep(3)


def _address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def disk_full(world: World) -> None:
    """No file of the service may grow."""
    async with limited(world, resource.RLIMIT_FSIZE, 4096):
        await asyncio.sleep(3)


async def locked(world: World) -> None:
    """Somebody else holds the database's lock, longer than anybody waits."""
    path = world.database.removeprefix("sqlite:///")

    def hold() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    with contextlib.suppress(sqlite3.OperationalError):
        connection = await asyncio.to_thread(hold)
        await asyncio.sleep(random.choice([2, 12]))
        connection.execute("ROLLBACK")
        connection.close()


class Postgres:
    """A PostgreSQL server of our own, and a proxy before it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.proxy = Proxy(self.port)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), *arguments]
        if os.getuid() == 0:  # The server refuses to run as root.
            shutil.chown(self.directory, "postgres")
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")

    def control(self, *arguments: str) -> None:
        """``pg_ctl``."""
        options = f"-p {self.port} -k {self.directory} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"
        log = str(self.directory / "log")
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-l", log, "-o", options, "-w", *arguments)

    def start(self) -> None:
        """Make the server and the database."""
        data = str(self.directory / "data")
        self._run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--locale=C.UTF-8")
        self.control("start")
        self.sql("CREATE DATABASE chaos", database="postgres")

    def sql(self, statement: str, database: str = "chaos") -> None:
        """Run a statement past the proxy."""
        subprocess.run(
            ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-q", "-d", database, "-c", statement],
            check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30,
        )  # fmt: skip


class Proxy:
    """Passes TCP on to a port; or nothing, or slowly, or cuts connections."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.delay = 0.0
        self.is_silent = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def half_close(self) -> None:
        """End what the clients send."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    def silence(self, is_silent: bool) -> None:
        """Let nothing through, and answer nobody."""
        if is_silent:
            self._flows.clear()
        else:
            self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flows.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        self._writers -= {writer, back}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        except (OSError, RuntimeError):  # Broken, or one direction of it was ended.
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()


def _postgres(world: World) -> Postgres:
    assert world.postgres is not None
    return world.postgres


async def restarted_fast(world: World) -> None:
    """PostgreSQL restarts and breaks off what goes on."""
    await asyncio.to_thread(_postgres(world).control, "-m", "fast", "restart")


async def restarted_immediately(world: World) -> None:
    """PostgreSQL crashes and recovers."""
    await asyncio.to_thread(_postgres(world).control, "-m", "immediate", "restart")


async def stopped(world: World) -> None:
    """PostgreSQL is away for a while."""
    await asyncio.to_thread(_postgres(world).control, "-m", "fast", "stop")
    await asyncio.sleep(random.uniform(1, 6))
    await asyncio.to_thread(_postgres(world).control, "start")


async def _setting(world: World, on: str, off: str, seconds: float) -> None:
    server = _postgres(world)
    await asyncio.to_thread(server.sql, on)
    await asyncio.to_thread(server.sql, _TERMINATE)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.sql, off, "postgres")
    await asyncio.to_thread(server.sql, _TERMINATE)


_TERMINATE: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'chaos'"
)


async def read_only(world: World) -> None:
    """PostgreSQL accepts no writes."""
    await _setting(
        world,
        "ALTER DATABASE chaos SET default_transaction_read_only = on",
        "ALTER DATABASE chaos RESET default_transaction_read_only",
        3,
    )


async def no_connections(world: World) -> None:
    """PostgreSQL lets only a few connections in."""
    await _setting(world, "ALTER ROLE postgres SET statement_timeout = 0; ALTER DATABASE chaos CONNECTION LIMIT 3",
                   "ALTER DATABASE chaos CONNECTION LIMIT -1", 3)  # fmt: skip


async def impatient(world: World) -> None:
    """PostgreSQL cancels what takes more than a moment."""
    await _setting(
        world, "ALTER DATABASE chaos SET statement_timeout = 2", "ALTER DATABASE chaos RESET statement_timeout", 3
    )


async def terminated_backends(world: World) -> None:
    """Every connection is ended by an administrator."""
    await asyncio.to_thread(_postgres(world).sql, _TERMINATE)


async def table_locked(world: World) -> None:
    """Somebody else holds a lock on a table."""
    statement = "BEGIN; LOCK TABLE workflow_executions IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); ROLLBACK"
    await asyncio.to_thread(_postgres(world).sql, statement)


async def cut(world: World) -> None:
    """Connections to PostgreSQL break."""
    _postgres(world).proxy.cut()


async def half_closed(world: World) -> None:
    """One direction of the connections to PostgreSQL ends."""
    _postgres(world).proxy.half_close()


async def silent(world: World) -> None:
    """PostgreSQL does not answer, and nothing says so."""
    proxy = _postgres(world).proxy
    proxy.silence(True)
    await asyncio.sleep(random.uniform(1, 8))
    proxy.silence(False)


async def slow(world: World) -> None:
    """Every answer of PostgreSQL takes its time."""
    proxy = _postgres(world).proxy
    proxy.delay = 0.05
    await asyncio.sleep(3)
    proxy.delay = 0.0


COMMON: Final[tuple[Fault, ...]] = (
    killed, terminated, frozen, script_killed, no_descriptors, no_memory,
)  # fmt: skip
ON_SQLITE: Final[tuple[Fault, ...]] = (*COMMON, locked, disk_full)
ON_POSTGRES: Final[tuple[Fault, ...]] = (
    *COMMON, restarted_fast, restarted_immediately, stopped, read_only, no_connections, impatient, terminated_backends,
    table_locked, cut, half_closed, silent, slow,
)  # fmt: skip
