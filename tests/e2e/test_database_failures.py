"""While PostgreSQL fails in every way it can, a service under load loses nothing that it acknowledged."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import select
from tests.conftest import Api, running
from tests.postgres_server import PostgresServer
from tests.store.test_rollups import differing

from tachograph.errors import DatabaseUnavailable, StoreUnavailable
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store.schema import spans

QUICK = {"name": "quick", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]}
FAULT_SECONDS = 2.0
RECOVERY_SECONDS = 60.0
"""For the service, on a machine that is busy. `make chaos` measures what it takes."""
RELOAD_SECONDS = 60.0
CLIENTS = 12

T = TypeVar("T")

Fault = Callable[[PostgresServer], Any]


@contextmanager
def restarted(server: PostgresServer) -> Iterator[None]:
    server.restart()
    yield


@contextmanager
def refusing(server: PostgresServer) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def read_only(server: PostgresServer) -> Iterator[None]:
    with setting(server, "default_transaction_read_only", "on"):
        yield


@contextmanager
def impatient(server: PostgresServer) -> Iterator[None]:
    with setting(server, "statement_timeout", "1ms"):
        yield


@contextmanager
def full(server: PostgresServer) -> Iterator[None]:
    """The limit of connections is reached."""
    server.sql("ALTER DATABASE runs CONNECTION LIMIT 0")
    disconnect(server)
    yield
    server.sql("ALTER DATABASE runs CONNECTION LIMIT -1")


@contextmanager
def closed(server: PostgresServer) -> Iterator[None]:
    server.sql("ALTER DATABASE runs ALLOW_CONNECTIONS false")
    disconnect(server)
    yield
    server.sql("ALTER DATABASE runs ALLOW_CONNECTIONS true")


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    stopped = server.process_ids()
    for number in stopped:
        os.kill(number, signal.SIGSTOP)
    yield
    for number in stopped:
        os.kill(number, signal.SIGCONT)


@contextmanager
def setting(server: PostgresServer, name: str, value: str) -> Iterator[None]:
    server.sql(f"ALTER SYSTEM SET {name} = '{value}'")
    server.sql("SELECT pg_reload_conf()")
    yield
    # The administrator's own session has the setting, too.
    own = f"-c {name}=off" if name == "default_transaction_read_only" else f"-c {name}=0"
    server.sql(f"ALTER SYSTEM RESET {name}", settings=own)
    server.sql("SELECT pg_reload_conf()", settings=own)
    # New sessions have the old value until the server has read its files; see also `once_back`.
    deadline = time.monotonic() + RELOAD_SECONDS
    while is_configured(server, name):
        assert time.monotonic() < deadline


def is_configured(server: PostgresServer, name: str) -> bool:
    """Whether a new session has a value of a setting from the server's files."""
    try:
        return server.sql(f"SELECT 1 FROM pg_settings WHERE name = '{name}' AND source = 'configuration file'") == "1"
    except subprocess.CalledProcessError:  # The setting cancelled it.
        return True


def disconnect(server: PostgresServer) -> None:
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'runs'")


class Load:
    """Clients that execute and post spans until they are told to stop, and what was acknowledged to them."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.runs: set[str] = set()
        self.spans: set[str] = set()
        self.statuses: dict[int, int] = {}
        self.without_hint = 0
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        self._tasks = [asyncio.create_task(self._execute()) for _ in range(CLIENTS)]
        self._tasks += [asyncio.create_task(self._export()) for _ in range(CLIENTS // 3)]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.api.session.post(self.api.address + path, json=body) as response:
            self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
            if response.status == 503 and "Retry-After" not in response.headers:
                self.without_hint += 1
            return response.status, await response.json()

    async def _execute(self) -> None:
        while True:
            status, body = await self._post("/api/workflows/quick/execute", {})
            if status == 202:
                self.runs.add(body["execution_id"])
            await asyncio.sleep(0.02)

    async def _export(self) -> None:
        while True:
            trace, span, now = random.randbytes(16).hex(), random.randbytes(8).hex(), time.time_ns()
            exported = {"traceId": trace, "spanId": span, "name": "export", "kind": 2,
                        "startTimeUnixNano": str(now), "endTimeUnixNano": str(now + 10**6)}  # fmt: skip
            body = {"resourceSpans": [{"scopeSpans": [{"spans": [exported]}]}]}
            status, _ = await self._post("/v1/traces", body)
            if status == 200:
                self.spans.add(span)
            await asyncio.sleep(0.02)


async def once_back(read: Callable[[], Awaitable[T]], deadline: float) -> T:
    """What a read returns once the sessions that it uses know that the fault is over.

    Each reads the changed settings when the machine lets it.
    """
    while True:
        try:
            return await read()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def get(api: Api, path: str) -> Any:
    """The body of a GET; raises `DatabaseUnavailable` if the answer says so."""
    status, body = await api.call("GET", path)
    if status == 503 and body["code"] == "store_unavailable":
        raise DatabaseUnavailable(body["detail"])
    assert status == 200, body
    return body


async def finished(api: Api, execution_id: str, deadline: float) -> Any:
    """The status once the execution has ended."""
    while True:
        state = await once_back(lambda: get(api, f"/api/workflows/executions/{execution_id}/status"), deadline)
        if state["status"] not in ("pending", "running"):
            return state
        assert time.monotonic() < deadline + RECOVERY_SECONDS, state
        await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [restarted, refusing, read_only, impatient, full, closed, frozen])
async def test_nothing_acknowledged_is_lost_and_nothing_stays_open(
    own_postgres: Callable[..., PostgresServer], handlers: HandlerRegistry, fault: Fault
) -> None:
    server = own_postgres()
    async with running(Config(database=server.runs_url, grace_seconds=0.2), handlers) as api:
        assert (await api.call("POST", "/api/workflows", QUICK))[0] == 201
        load = Load(api)
        async with load.going():
            while not load.runs or not load.spans:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            with fault(server):
                await asyncio.sleep(FAULT_SECONDS)
            deadline = time.monotonic() + RECOVERY_SECONDS
            during = len(load.runs)
            while len(load.runs) < during + CLIENTS:
                assert time.monotonic() < deadline, load.statuses
                await asyncio.sleep(0.02)
        assert load.without_hint == 0
        assert set(load.statuses) <= {200, 202, 503}, load.statuses
        for execution_id in load.runs:
            assert (await finished(api, execution_id, deadline))["status"] == "completed"
        page = await once_back(lambda: get(api, "/api/workflows/executions?status=pending,running"), deadline)
        assert page["total"] == 0
        database = api.service.database
        stored = await once_back(
            lambda: database.read(lambda c: set(c.execute(select(spans.c.span_id)).scalars())), deadline
        )
        assert load.spans <= stored
        assert not any(sum(queue.dropped.values()) for queue in api.service.recorder.queues.values())
        assert await once_back(lambda: asyncio.to_thread(differing, database), deadline) == 0
