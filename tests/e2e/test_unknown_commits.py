"""When nobody knows whether an execution was committed, no step of it begins, whoever finds out later."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
from tests.chaos.proxy import Proxy
from tests.conftest import Api, running
from tests.e2e.conftest import Server
from tests.postgres_server import PostgresServer

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

QUICK = {"name": "quick", "variables": [{"name": "n"}], "steps": [{"name": "a"}]}


@contextlib.asynccontextmanager
async def hanging_commits(server: PostgresServer) -> AsyncIterator[None]:
    """Commits wait for a standby that does not exist; what they commit is there when the block ends."""
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    server.sql("SELECT pg_reload_conf()")
    yield
    server.sql("ALTER SYSTEM RESET synchronous_standby_names")
    server.sql("SELECT pg_reload_conf()")


async def refused(server: PostgresServer, proxy: Proxy, address: str, number: str) -> str:
    """Execute; the connection breaks while a commit hangs. What the answer says."""
    async with aiohttp.ClientSession() as session:
        body = {"input_variables": {"n": number}}
        request = asyncio.create_task(session.post(f"{address}/api/workflows/quick/execute", json=body))
        while not request.done():
            hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            if await asyncio.to_thread(server.sql, hanging) != "0":
                proxy.cut()
            await asyncio.sleep(0.1)
        async with await request as response:
            assert response.status == 503
            return str((await response.json())["detail"])


async def unknown(server: PostgresServer, proxy: Proxy, address: str, name: str) -> str:
    """The number of an execution of which the service does not know whether it was committed."""
    for attempt in range(20):
        detail = await refused(server, proxy, address, f"{name}-{attempt}")
        if "it is not known whether the execution was accepted; no step of it will run" in detail:
            return f"{name}-{attempt}"
        assert "was not accepted" in detail  # What hung was another commit, before it.
    raise AssertionError("no commit of an execution hung")


async def ended(api: Api) -> dict[str, Any]:
    """Status and steps that began, by input; once there are none that have not ended."""
    while (await api.call("GET", "/api/workflows/executions?status=pending,running"))[1].get("total") != 0:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    states = {}
    for item in (await api.get("/api/workflows/executions?limit=100"))["items"]:
        run = await api.get(f"/api/workflows/executions/{item['execution_id']}")
        begun = sum(step["started_at"] is not None for step in run["timeline"]["step_timeline"])
        states[run["input_summary"]["n"]] = (run["status"], begun)
    return states


async def test_a_commit_that_hangs_when_its_connection_breaks(
    own_postgres: Callable[..., PostgresServer], handlers: HandlerRegistry, tmp_path: Path
) -> None:
    server = own_postgres()
    proxy = Proxy(server.port)
    await proxy.start()
    url = server.runs_url.replace(str(server.port), str(proxy.port))
    first = Server(tmp_path, "--database", url)
    async with running(Config(database=server.runs_url, grace_seconds=0.2), handlers) as api:
        try:
            await asyncio.to_thread(first.start)
            assert (await api.call("POST", "/api/workflows", QUICK))[0] == 201
            async with hanging_commits(server):
                settled = await unknown(server, proxy, first.address, "settled")
                # The service looks every second; the commit that hangs is not visible, and will be.
                await asyncio.sleep(2.5)
            async with asyncio.timeout(60):
                while (await ended(api)).get(settled) != ("cancelled", 0):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            async with hanging_commits(server):
                orphaned = await unknown(server, proxy, first.address, "orphaned")
                first.stop(signal.SIGKILL)
            # The other service takes it over.
            async with asyncio.timeout(60):
                while (states := await ended(api)).get(orphaned) != ("lost", 0):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert set(states) == {settled, orphaned}
        finally:
            if first.process is not None and first.process.poll() is None:
                first.stop(signal.SIGKILL)
            await proxy.stop()
