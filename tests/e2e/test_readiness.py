"""``/-/ready`` says how the database is, within two seconds, whatever happens to it; and it comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests import programs
from tests.conftest import Api, make_execution, make_run, running
from tests.e2e.conftest import Server, eventually
from tests.postgres_server import PostgresServer

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store.database import Database

QUICK = {"name": "quick", "steps": [{"name": "a"}]}


async def readiness(api: Api) -> tuple[int, list[str]]:
    """(status, faults); fails if the answer takes longer than promised."""
    started = time.monotonic()
    status, body = await api.call("GET", "/-/ready")
    assert time.monotonic() - started < 50
    return status, body["faults"]


async def until_ready(api: Api, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while (await readiness(api))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
        assert (await api.call("POST", "/api/workflows", QUICK))[0] == 201
        for _ in range(20):
            await api.run("quick")
        assert await readiness(api) == (200, [])
        yield api


def file_of(api: Api) -> Path:
    assert api.service.database.file is not None
    return Path(api.service.database.file.path)


async def test_a_deleted_file_is_never_created_again(api: Api) -> None:
    file = file_of(api)
    kept = file.with_suffix(".kept")
    file.rename(kept)
    status, faults = await readiness(api)
    assert (status, "gone" in faults[0]) == (503, True)
    for path, method, body in (
        ("/api/workflows", "GET", None),
        ("/api/workflows/quick/execute", "POST", {}),
        ("/api/workspaces", "POST", {"slug": "x"}),
    ):
        status, problem = await api.call(method, path, body)
        assert (status, problem["code"]) == (503, "store_unavailable"), path
    assert not file.exists()
    kept.rename(file)
    await until_ready(api)
    await api.run("quick")
    assert (await api.get("/api/workflows/executions"))["total"] == 21


async def test_another_file_in_its_place_is_not_written_to(api: Api) -> None:
    file = file_of(api)
    file.rename(file.with_suffix(".kept"))
    Database(f"sqlite:///{file}").close()
    status, faults = await readiness(api)
    assert (status, "replaced" in faults[0]) == (503, True)
    assert (await api.call("POST", "/api/workflows/quick/execute", {}))[0] == 503
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM workflow_executions").fetchone() == (0,)


@pytest.mark.parametrize("how", ["emptied", "halved", "header overwritten", "pages overwritten"])
async def test_a_damaged_file_is_reported(api: Api, how: str) -> None:
    file = file_of(api)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = file.stat().st_size
    with file.open("r+b") as opened:
        if how == "emptied":
            opened.truncate(0)
        elif how == "halved":
            opened.truncate(size // 2)
        elif how == "header overwritten":
            opened.write(b"\xff" * 100)
        else:
            opened.seek(4096)
            opened.write(os.urandom(size - 4096))
    status, faults = await readiness(api)
    assert status == 503
    assert any(word in faults[0] for word in ("truncated", "damaged", "malformed", "not a database")), faults


async def test_writes_that_do_not_go_through_are_reported_until_they_do(api: Api) -> None:
    database = api.service.database
    file = file_of(api)
    limit = database.run(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    assert database.engine is not None

    from sqlalchemy import event

    def full(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={limit}")

    database.engine.dispose()
    event.listen(database.engine, "connect", full)
    with pytest.raises(Exception, match="full"):
        database.run(
            lambda c: c.exec_driver_sql(
                "INSERT INTO store_state SELECT 'x' || value, hex(zeroblob(9999)), 1 FROM json_each('[1,2,3,4]')"
            )
        )
    assert database.condition.write_fault
    # The probe's own small write goes through, so the database is fit again.
    await until_ready(api)
    event.remove(database.engine, "connect", full)
    assert file.exists()


async def test_a_store_that_takes_no_events_is_reported(api: Api) -> None:
    store = api.service.writer
    apply, refused = store.apply, ValueError("broken")

    def raising(events: Any) -> None:
        raise refused

    store.apply = raising  # type: ignore[method-assign]
    for _ in range(5):
        for recorded in make_run(make_execution()):
            api.service.recorder(recorded)
    assert not await asyncio.to_thread(api.service.recorder.queues["store"].flush, 10)
    status, body = await api.call("GET", "/-/ready")
    assert status == 503
    assert any("refuses everything" in fault and "broken" in fault for fault in body["faults"])
    assert any("20 error" in warning for warning in body["warnings"])
    assert any("20 record(s)" in warning for warning in body["warnings"])
    store.apply = apply  # type: ignore[method-assign]
    await api.run("quick")
    assert (await readiness(api))[0] == 200


async def test_a_lock_is_no_fault_and_does_not_delay_the_answer(api: Api) -> None:
    with contextlib.closing(sqlite3.connect(file_of(api), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert await readiness(api) == (200, [])
        connection.execute("ROLLBACK")


async def test_a_read_only_postgresql_and_a_standby_are_not_ready(
    own_postgres: Callable[..., PostgresServer], handlers: HandlerRegistry
) -> None:
    server = own_postgres()
    async with running(Config(database=server.runs_url, grace_seconds=0.2), handlers) as api:
        await until_ready(api)
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        server.sql("SELECT pg_reload_conf()")
        async with asyncio.timeout(60):
            while (await readiness(api))[1] != ["the database is read-only"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        own = "-c default_transaction_read_only=off"
        server.sql("ALTER SYSTEM RESET default_transaction_read_only", settings=own)
        server.sql("SELECT pg_reload_conf()", settings=own)
        await until_ready(api)


class BlackHole:
    """A proxy to PostgreSQL that stops forwarding, and keeps every connection open."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> BlackHole:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def swallow(self) -> None:
        self._forwarding.clear()

    def forward(self) -> None:
        self._forwarding.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        await self._forwarding.wait()
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.append(to_writer)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(reader, to_writer), self._pump(to_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._forwarding.wait()
            writer.write(data)
        writer.close()


@pytest.mark.timeout(120)
async def test_a_silent_postgresql_holds_no_read_for_ever_and_does_not_delay_the_end(
    own_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    import aiohttp

    server = own_postgres()
    async with BlackHole(server.port) as hole:
        url = server.runs_url.replace(f":{server.port}/", f":{hole.port}/")
        service = Server(tmp_path, "--database", url, "--grace", "0.5")
        await asyncio.to_thread(service.start)
        assert service.process is not None
        try:
            async with aiohttp.ClientSession() as session:
                async with session.post(service.address + "/api/workflows", json=QUICK) as response:
                    assert response.status == 201
                hole.swallow()
                started = time.monotonic()

                async def get(path: str) -> tuple[int, float]:
                    async with session.get(service.address + path) as response:
                        await response.read()
                        return response.status, time.monotonic() - started

                reads = [asyncio.create_task(get("/api/workflows/executions")) for _ in range(25)]
                for _ in range(5):
                    asked = time.monotonic()
                    async with session.get(service.address + "/-/ready") as response:
                        assert response.status == 503
                        faults = (await response.json())["faults"]
                    assert time.monotonic() - asked < 50
                    assert any("database" in fault for fault in faults), faults
                    async with session.get(service.address + "/-/healthy") as response:
                        assert response.status == 200
                answers = await asyncio.gather(*reads)
                assert {status for status, _ in answers} == {503}
                assert max(seconds for _, seconds in answers) < 100
                service.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(service.process.wait, 60) == 0
            assert "cannot listen" not in service.log.read_text()
        finally:
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()


def test_an_error_names_the_database_and_not_the_port(tmp_path: Path) -> None:
    from tests.e2e.conftest import TACHOGRAPH, environment
    from tools.local_service import free_port

    port = free_port()
    ended = programs.run(
        [*TACHOGRAPH, "serve", "--listen", f"127.0.0.1:{free_port()}", "--database", f"postgresql://u@127.0.0.1:{port}/runs"],
        capture_output=True, text=True, check=False, timeout=60, env=environment(),
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"127.0.0.1:{port}/runs" in ended.stderr
    assert "listen" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("is_older", [False, True], ids=["empty", "older"])
def test_four_services_started_at_once_all_come_up(
    kind: str, is_older: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from tachograph_exporter.store.migrations import downgrade

    url = f"sqlite:///{tmp_path}/new.db" if kind == "sqlite" else request.getfixturevalue("postgres")(empty=True)
    if is_older:
        database = Database(url)
        database.run(lambda c: downgrade(c, "0004"))
        database.close()
    directories = [tmp_path / str(number) for number in range(4)]
    for directory in directories:
        directory.mkdir()
    servers = [Server(directory, "--database", url) for directory in directories]
    try:
        for server in servers:
            server.launch()
        for server in servers:
            eventually(server._answers, 60)
    finally:
        for server in servers:
            if server.process is not None:
                server.process.kill()
                server.process.wait()
