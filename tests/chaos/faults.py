"""The faults: each begins, lasts a while, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.e2e.conftest import environment

if TYPE_CHECKING:
    from tests.chaos.cluster import Cluster
    from tests.chaos.world import World

Fault = Callable[["World"], Awaitable[None]]


async def killed(world: World) -> None:
    """Every service is killed (-9)."""
    for service in world.services:
        service.send(signal.SIGKILL)


async def one_of_two_killed(world: World) -> None:
    """One service is killed (-9), the other goes on."""
    world.service.send(signal.SIGKILL)


async def terminated(world: World) -> None:
    """The service is asked to stop."""
    world.service.send(signal.SIGTERM)


async def frozen(world: World) -> None:
    """The service stands still."""
    world.service.send(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, 4))
    world.service.send(signal.SIGCONT)


async def frozen_in_transaction(world: World) -> None:
    """The service stands still while it holds locks of the database."""
    name = f"service{world.services.index(world.service)}"
    for _ in range(40):
        world.service.send(signal.SIGSTOP)
        if await asyncio.to_thread(_cluster(world).answer, _HOLDS.format(name=name)) == "t":
            break
        world.service.send(signal.SIGCONT)
        await asyncio.sleep(random.uniform(0, 0.02))
    await asyncio.sleep(random.uniform(1, 4))
    world.service.send(signal.SIGCONT)


_HOLDS: Final = (
    "SELECT EXISTS (SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
    "AND state = 'idle in transaction' AND application_name = '{name}')"
)


async def archived(world: World) -> None:
    """Runs of days ago are moved to files, while spans of theirs may still arrive."""
    command = [sys.executable, "-m", "tachograph_exporter", "archive", "--older-than", "3d", "--yes"]
    process = await asyncio.create_subprocess_exec(
        *command, "--to", str(world.directory / "archive"), "--database", world.database,
        env=environment(), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await process.wait()


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


def _cluster(world: World) -> Cluster:
    assert world.cluster is not None
    return world.cluster


async def restarted_fast(world: World) -> None:
    """PostgreSQL restarts and breaks off what goes on."""
    await asyncio.to_thread(_cluster(world).primary.restart)


async def restarted_immediately(world: World) -> None:
    """PostgreSQL crashes and recovers."""
    primary = _cluster(world).primary
    await asyncio.to_thread(primary.stop, "immediate")
    await asyncio.to_thread(primary.start)


async def stopped(world: World) -> None:
    """PostgreSQL is away for a while."""
    primary = _cluster(world).primary
    await asyncio.to_thread(primary.stop)
    await asyncio.sleep(random.uniform(1, 6))
    await asyncio.to_thread(primary.start)


async def failed_over(world: World) -> None:
    """The primary crashes for good, and its standby is promoted."""
    await _cluster(world).fail_over()


async def _setting(world: World, on: str, off: str, seconds: float) -> None:
    cluster = _cluster(world)
    await asyncio.to_thread(cluster.sql, on)
    await asyncio.to_thread(cluster.sql, _TERMINATE)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(cluster.sql, off)
    await asyncio.to_thread(cluster.sql, _TERMINATE)


_TERMINATE: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'runs'"
)


async def read_only(world: World) -> None:
    """PostgreSQL accepts no writes."""
    await _setting(
        world,
        "ALTER DATABASE runs SET default_transaction_read_only = on",
        "ALTER DATABASE runs RESET default_transaction_read_only",
        3,
    )


async def no_connections(world: World) -> None:
    """PostgreSQL lets only a few connections in."""
    await _setting(world, "ALTER DATABASE runs CONNECTION LIMIT 3",
                   "ALTER DATABASE runs CONNECTION LIMIT -1", 3)  # fmt: skip


async def impatient(world: World) -> None:
    """PostgreSQL cancels what takes more than a moment."""
    await _setting(
        world, "ALTER DATABASE runs SET statement_timeout = 2", "ALTER DATABASE runs RESET statement_timeout", 3
    )


async def terminated_backends(world: World) -> None:
    """Every connection is ended by an administrator."""
    await asyncio.to_thread(_cluster(world).sql, _TERMINATE)


async def table_locked(world: World) -> None:
    """Somebody else holds a lock on a table."""
    statement = "BEGIN; LOCK TABLE workflow_executions IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); ROLLBACK"
    await asyncio.to_thread(_cluster(world).sql, statement, database="runs")


async def cut(world: World) -> None:
    """Connections to PostgreSQL break."""
    for proxy in _cluster(world).proxies:
        proxy.cut()


async def half_closed(world: World) -> None:
    """One direction of the connections to PostgreSQL ends."""
    for proxy in _cluster(world).proxies:
        proxy.half_close()


async def silent(world: World) -> None:
    """PostgreSQL does not answer, and nothing says so."""
    proxies = _cluster(world).proxies
    for proxy in proxies:
        proxy.silence(True)
    await asyncio.sleep(random.uniform(1, 8))
    for proxy in proxies:
        proxy.silence(False)


async def slow(world: World) -> None:
    """Every answer of PostgreSQL takes its time."""
    for delay, seconds in ((0.05, 3), (0.0, 0)):
        for proxy in _cluster(world).proxies:
            proxy.delay = delay
        await asyncio.sleep(seconds)


COMMON: Final[tuple[Fault, ...]] = (
    killed, terminated, frozen, script_killed, no_descriptors, no_memory, archived,
)  # fmt: skip
ON_SQLITE: Final[tuple[Fault, ...]] = (*COMMON, locked, disk_full)
ON_POSTGRES: Final[tuple[Fault, ...]] = (
    *COMMON, one_of_two_killed, frozen_in_transaction, failed_over, restarted_fast, restarted_immediately, stopped,
    read_only, no_connections, impatient, terminated_backends,
    table_locked, cut, half_closed, silent, slow,
)  # fmt: skip
