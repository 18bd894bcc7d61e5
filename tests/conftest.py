"""Fixtures and builders used by the tests of several packages."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web_app
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, settings

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph.quiet_log import QuietLog
from tachograph.recording.recorder import Recorder
from tachograph.workflow import HandlerRegistry, registry
from tachograph_exporter import admission, handler_sources
from tachograph_exporter.api import reconciliation, room, scrape
from tachograph_exporter.config import Config
from tachograph_exporter.metrics import workflow_metrics
from tachograph_exporter.service import Service
from tachograph_exporter.store import lease
from tachograph_exporter.store.database import READ_SECONDS, Database
from tachograph_exporter.stream import hub
from tests import temporary
from tests.postgres_server import PostgresDatabases, PostgresServer

# How long an example takes says more about the machine than about the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Without bytecode, the tests and every process that they start compile whatever they import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Read when pytest makes its first directory.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(temporary.root()))

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        temporary.open_shared()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        temporary.remove_shared()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # These start the service and talk to it over a socket.
        if {"api", "guarded"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.e2e)
        if "edges" in item.path.parent.parts:
            item.add_marker(pytest.mark.edges)
        if is_of_the_other_database(item):
            item.add_marker(pytest.mark.slow)


def is_of_the_other_database(item: pytest.Item) -> bool:
    """Whether `make check` runs this test on the other kind of database alone.

    Both are tried where statements are written (`tests/store`), where databases differ (``every_database``), and by
    whole processes (`tests/e2e`). Other tests are of what is above the statements: by their names, half of them have
    SQLite and half PostgreSQL, and `make slow` has the rest.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    mine = parameters.get("any_database_url")
    if mine is None or {"store", "e2e"} & set(item.path.parts) or item.get_closest_marker("every_database"):
        return False
    name = item.nodeid.replace("postgresql", "").replace("sqlite", "")
    return bool(mine != ("sqlite", "postgresql")[zlib.crc32(name.encode()) % 2])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # What is imported and collected stays; to look for garbage in it takes a fifth of the time.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    # What is imported and collected by now stays: the collector need not look at it again, several times a test.
    gc.collect()
    gc.freeze()


class Api:
    """A running service and a JSON client of it."""

    def __init__(self, service: Service, session: aiohttp.ClientSession, address: str) -> None:
        self.service = service
        self.session = session
        self.address = address

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """(status, decoded body)."""
        async with self.session.request(method, self.address + path, json=body, **options) as response:
            if response.content_type.endswith("json"):
                return response.status, await response.json()
            return response.status, await response.text()

    async def get(self, path: str, **options: Any) -> Any:
        """The decoded body of a GET that must respond with 200."""
        status, body = await self.call("GET", path, **options)
        assert status == 200, body
        return body

    async def metrics(self, **options: Any) -> str:
        """What ``/metrics`` shows once new series have been shown as zero."""
        await self.get("/metrics", **options)
        return str(await self.get("/metrics", **options))

    async def run(self, workflow: str, inputs: dict[str, Any] | None = None) -> str:
        """Execute a registered workflow, wait for its end, and return the execution's id."""
        status, body = await self.call("POST", f"/api/workflows/{workflow}/execute", {"input_variables": inputs or {}})
        assert status == 202, body
        await self.finished(body["execution_id"])
        return str(body["execution_id"])

    async def finished(self, execution_id: str, timeout: float = 60) -> Any:
        """The status once the execution has ended."""
        async with asyncio.timeout(timeout):
            while True:
                state = await self.get(f"/api/workflows/executions/{execution_id}/status")
                if state["status"] not in ("pending", "running"):
                    return state
                await asyncio.sleep(0.02)

    def sweep_by_hand(self) -> Callable[[], Awaitable[int]]:
        """From now on the service looks for lost executions only when what this returns is called."""

        async def nobody() -> int:
            return 0

        sweep = self.service.upkeep.sweep
        self.service.upkeep.sweep = nobody  # type: ignore[method-assign]
        return sweep


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that a test starts spool into a directory of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """On a busy machine, the services of the tests wait rather than refuse or answer with what they know by then.

    Tests of what happens once a wait is over make it short.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "WAIT_SECONDS", 120.0)
        patch.setattr(admission, "ADMIT_SECONDS", 60.0)
        patch.setattr(hub, "CONNECT_SECONDS", 60.0)
        patch.setattr(scrape, "WAIT_SECONDS", 60.0)
        patch.setattr(scrape, "BEHIND_SECONDS", 60.0)
        patch.setattr(workflow_metrics, "BLIND_SECONDS", 600.0)
        patch.setattr(lease, "SILENCE_SECONDS", 120.0)
        patch.setattr(lease, "LOOK_SECONDS", 40.0)
        patch.setattr(reconciliation, "FLUSH_SECONDS", 60.0)
        patch.setattr(reconciliation, "_REFRESH_SECONDS", 60.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def each_test_is_told() -> Iterator[None]:
    """What one test has had logged is logged for the next one, too, though a minute has not passed."""
    emit = QuietLog._emit

    def told(log: QuietLog, kind: object, *arguments: Any, **options: Any) -> None:
        emit(log, (os.environ.get("PYTEST_CURRENT_TEST"), kind), *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuietLog, "_emit", told)
        yield


@pytest.fixture(scope="session")
def empty_database() -> Path:
    """A migrated database, created once: the migrations take longer than most tests."""
    return temporary.shared("empty.db", lambda path: Database(f"sqlite:///{path}").close())


@pytest.fixture(scope="session")
def postgres_data() -> Path:
    """The data directory of a stopped PostgreSQL server with a migrated database, ``runs``.

    The database belongs to a role without privileges, ``app``, as an application's does.
    """

    def make(path: Path) -> None:
        server = PostgresServer()
        server.sql("CREATE ROLE app LOGIN")
        server.sql("CREATE DATABASE runs OWNER app")
        Database(server.runs_url).close()
        server.stop()
        shutil.move(server.data, path)
        server.close()

    return temporary.shared("postgres", make)


@pytest.fixture(scope="session")
def postgres_databases(postgres_data: Path) -> Iterator[PostgresDatabases]:
    """A real PostgreSQL server for the tests that need no more than a database."""
    # Of hundreds of databases, autovacuum would look at several a second; nothing here survives a crash.
    server = PostgresServer(
        postgres_data, autovacuum="off", full_page_writes="off", wal_level="minimal", max_wal_senders=0
    )
    with server.session() as execute:
        yield PostgresDatabases(server, execute, template="runs")
    server.close()


@pytest.fixture
def postgres(postgres_databases: PostgresDatabases) -> Iterator[Callable[..., str]]:
    """Calling it creates a migrated (or empty) database on a PostgreSQL server and returns its URL.

    No other test sees this database. It is dropped after the test, whoever is still connected to it.
    """
    yield postgres_databases.create
    postgres_databases.drop()


@pytest.fixture
def own_postgres(postgres_data: Path) -> Iterator[Callable[..., PostgresServer]]:
    """Starts servers that the test may stop, restart and reconfigure; each has a migrated database, ``runs_url``."""
    servers: list[PostgresServer] = []

    def start(**settings: str | int) -> PostgresServer:
        servers.append(PostgresServer(postgres_data, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.e2e)])
def any_database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database, on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres")())
    return str(request.getfixturevalue("database_url"))


@pytest.fixture
def database_url(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "test.db")
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
def runs_database(tmp_path: Path, empty_database: Path) -> Path:
    """A migrated database, ``runs.db``, for the programs that a test starts: to migrate it, each would import more."""
    return Path(shutil.copy(empty_database, tmp_path / "runs.db"))


@pytest.fixture
def handlers() -> HandlerRegistry:
    handler_sources.load(handler_sources.EXAMPLES)
    return registry.copy()


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.2), handlers):
        yield api


async def serve(config: Config, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    service = Service(config, handlers)
    if config.read_timeout_seconds == READ_SECONDS:
        # A busy machine takes longer; see `patience`.
        service.database.read_seconds = 120.0
    server = TestServer(service.application())
    await server.start_server()
    try:
        async with aiohttp.ClientSession() as session:
            yield Api(service, session, str(server.make_url("")).rstrip("/"))
    finally:
        await server.close()
        # It keeps a thousand handlers of a process, and with each a service: all that this test made.
        web_app._cached_build_middleware.cache_clear()


running = contextlib.asynccontextmanager(serve)
"""A running service for the duration of a block."""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close(5)


@pytest.fixture
def events(recorder: Recorder) -> list[Event]:
    """Every event that was recorded, in order, once `recorder.flush()` returns."""
    events: list[Event] = []
    recorder.add("test", events.append)
    return events


def make_execution(workflow: str = "etl", **fields: Any) -> ExecutionRef:
    return new_execution_ref(
        workspace="default", workflow=workflow, workflow_id=workflow_id("default", workflow), **fields
    )


def make_step(execution: ExecutionRef, name: str, **fields: Any) -> StepRef:
    return StepRef(
        execution=execution,
        step_id=step_id(execution.workflow_id, name),
        name=name,
        span_id=new_span_id(),
        parent_span_id=execution.span_id,
        **fields,
    )


def make_run(execution: ExecutionRef) -> list[Event]:
    """The events of an execution with one step, both completed."""
    step = make_step(execution, "a")
    return [
        ExecutionStarted(execution=execution, time_ns=1),
        StepStarted(step=step, time_ns=2),
        StepFinished(
            step=step, time_ns=3, status=StepStatus.COMPLETED, attempt=1, started_ns=2, attempt_started_ns=2
        ),
        ExecutionFinished(
            execution=execution, time_ns=4, status=ExecutionStatus.COMPLETED, started_ns=1, step_count=1
        ),
    ]  # fmt: skip


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool], timeout: float = 60.0) -> None:
        done = threading.Event()
        for _ in range(int(timeout / 0.01)):
            if condition():
                return
            done.wait(0.01)
        raise AssertionError("the condition did not become true in time")

    return wait
