"""An execution starts once it is stored; one that was refused never runs, and nothing is left open."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import Connection
from tests.conftest import Api, serve

from tachograph.workflow import HandlerRegistry, StepContext
from tachograph_exporter import admission
from tachograph_exporter.config import Config
from tachograph_exporter.store import locking
from tachograph_exporter.store.database import Database

pytestmark = pytest.mark.every_database

QUICK = {"name": "quick", "steps": [{"name": "a", "config": {"handler": "counted"}}]}


@pytest.fixture
def ran() -> list[str]:
    """Ids of the executions whose step ran."""
    return []


@pytest.fixture
async def api(any_database_url: str, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setattr(admission, "ADMIT_SECONDS", 0.5)
    handlers = HandlerRegistry()

    @handlers.register("counted")
    async def counted(context: StepContext) -> None:
        ran.append(context.execution_id)

    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        status, _ = await api.call("POST", "/api/workflows", QUICK)
        assert status == 201
        yield api


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Another process writes."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        return
    database, is_held, release = Database(url), threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        locking.lock(connection)
        is_held.set()
        release.wait(60)

    thread = threading.Thread(target=database.run, args=(hold,))
    thread.start()
    assert is_held.wait(60)
    yield
    release.set()
    thread.join()
    database.close()


async def test_what_is_refused_during_a_lock_never_runs(
    api: Api, any_database_url: str, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/api/workflows/quick/execute"
    with locked(any_database_url):
        started = time.monotonic()
        answers = await asyncio.gather(*[api.call("POST", path, {}) for _ in range(60)])
        assert time.monotonic() - started < 50
        assert {(status, body["code"]) for status, body in answers} == {(503, "store_unavailable")}
        # They waited for the lock, so none of them was being stored.
        assert all("was not accepted" in body["detail"] for _, body in answers)
        keyed = await asyncio.gather(
            *[api.call("POST", path, {}, headers={"Idempotency-Key": f"key {number}"}) for number in range(5)]
        )
        assert {status for status, _ in keyed} == {503}
        # Reads go on meanwhile, scrapes and health checks too.
        waiting = asyncio.gather(*[api.call("POST", path, {}) for _ in range(60)])
        started = time.monotonic()
        assert (await api.call("GET", "/metrics"))[0] == 200
        assert (await api.call("GET", "/-/ready"))[0] == 200
        assert time.monotonic() - started < 50
        assert {status for status, _ in await waiting} == {503}
        assert (await api.get("/api/workflows/executions"))["total"] == 0
    # After the lock, those that come again are the only ones; however busy the machine is.
    monkeypatch.setattr(admission, "ADMIT_SECONDS", 60.0)
    ids = set()
    for number in range(5):
        status, body = await api.call("POST", path, {}, headers={"Idempotency-Key": f"key {number}"})
        assert status == 202, body
        ids.add(body["execution_id"])
    for execution_id in ids:
        assert (await api.finished(execution_id))["status"] == "completed"
    page = await api.get("/api/workflows/executions?limit=1000")
    assert {item["execution_id"] for item in page["items"]} == ids == set(ran)
    assert len(ran) == 5
    assert api.service.executor.open_executions == 0


async def test_many_at_once_are_committed_in_few_transactions(
    api: Api, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ADMIT_SECONDS", 60.0)  # However busy the machine is.
    commits = 0
    write = api.service.database.write

    async def counting(work: object, lane: object) -> object:
        nonlocal commits
        commits += isinstance(work, admission._Work)
        return await write(work, lane)  # type: ignore[arg-type]

    api.service.database.write = counting  # type: ignore[method-assign,assignment]
    answers = await asyncio.gather(*[api.call("POST", "/api/workflows/quick/execute", {}) for _ in range(100)])
    ids = {body["execution_id"] for status, body in answers if status == 202}
    assert len(ids) == 100
    assert commits < 60
    for execution_id in ids:
        await api.finished(execution_id)
    assert sorted(ran) == sorted(ids)


async def test_a_commit_of_which_nobody_knows_whether_it_went_through_is_settled(api: Api, ran: list[str]) -> None:
    path = "/api/workflows/quick/execute"
    write = api.service.database.write

    async def lost_answer(work: object, lane: object) -> object:
        await write(work, lane)  # type: ignore[arg-type]
        raise ConnectionResetError("the connection was lost")

    from tachograph.errors import DatabaseUnavailable

    async def losing(work: object, lane: object) -> object:
        try:
            return await lost_answer(work, lane)
        except ConnectionResetError as error:
            raise DatabaseUnavailable(str(error)) from error

    api.service.database.write = losing  # type: ignore[method-assign,assignment]
    status, body = await api.call("POST", path, {})
    assert status == 503
    assert "it is not known whether the execution was accepted; no step of it will run" in body["detail"]
    status, body = await api.call("POST", path, {}, headers={"Idempotency-Key": "k"})
    assert status == 503
    assert "not known whether the execution was accepted; send the request again with the same" in body["detail"]
    api.service.database.write = write  # type: ignore[method-assign]
    status, body = await api.call("POST", path, {}, headers={"Idempotency-Key": "k"})
    assert status == 202
    # The one without a key was refused, so it ends without having run; the one with a key is the one that runs.
    assert (await api.finished(body["execution_id"]))["status"] == "completed"
    async with asyncio.timeout(60):
        while True:
            items = (await api.get("/api/workflows/executions"))["items"]
            if sorted(item["status"] for item in items) == ["cancelled", "completed"]:
                break
            await asyncio.sleep(0.05)
    assert ran == [body["execution_id"]]
