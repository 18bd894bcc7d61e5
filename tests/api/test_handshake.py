"""A stream's handshake is answered when following is effective: runs that start right after it are told in full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from sqlalchemy import Connection
from tests.api.test_stream import read_event
from tests.conftest import Api, make_execution, make_run, make_step, serve
from tests.e2e import preloaded
from tests.e2e.conftest import environment

from tachograph.events import StepStarted
from tachograph.identity import workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import event_log, locking
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.store.event_log import EventsMissed
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.stream import hub as hubs
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.hub import Hub, StreamFilter
from tachograph_exporter.stream.messages import Message

pytestmark = pytest.mark.every_database

MAX_HANDSHAKE_SECONDS: Final = 30.0
"""It takes a second at most, on a machine that has nothing else to do."""
WHOLE: Final = ["workflow_started", "step_started", "step_completed", "workflow_completed"]
PROGRAM: Final = """
import pickle, sys
from tachograph_exporter.store.writer import open_writer
_, url, orders, answers = sys.argv
writer = open_writer(url)
with open(orders) as lines, open(answers, "w") as output:
    for line in lines:
        for event in pickle.loads(bytes.fromhex(line)):
            writer.apply([event])
        print("recorded", file=output, flush=True)
writer.close()
"""


class Script:
    """Another process that records a run into the database whenever it is told to."""

    def __init__(self, url: str, directory: Path) -> None:
        pipes = [directory / "orders", directory / "answers"]
        for pipe in pipes:
            os.mkfifo(pipe)
        self.log = directory / "script.log"
        words = [url, *map(str, pipes)]
        self.process = preloaded.start(words, environment(), self.log, program=PROGRAM)
        self.orders = pipes[0].open("w")
        self.answers = pipes[1].open()

    def record(self, workflow: str) -> None:
        self.orders.write(pickle.dumps(make_run(make_execution(workflow))).hex() + "\n")
        self.orders.flush()
        assert self.answers.readline() == "recorded\n", self.log.read_text()

    def close(self) -> None:
        self.orders.close()
        assert self.process.wait(60) == 0, self.log.read_text()
        self.answers.close()


@pytest.fixture
def script(any_database_url: str, tmp_path: Path) -> Iterator[Script]:
    script = Script(any_database_url, tmp_path)
    yield script
    script.close()


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        status, _ = await api.call("POST", "/api/workflows", {"name": "etl", "steps": [{"name": "a"}]})
        assert status == 201
        yield api


@contextlib.asynccontextmanager
async def following(api: Api, kind: str) -> AsyncIterator[Callable[[], Any]]:
    """A client right after its handshake; calling the value returns the next message."""
    if kind == "sse":
        async with api.session.get(f"{api.address}/api/stream") as stream:

            async def next_event() -> Any:
                return msgspec.json.decode((await read_event(stream))["data"])

            yield next_event
    else:
        async with api.session.ws_connect(f"{api.address}/ws/workflows/stream") as socket:

            async def next_message() -> Any:
                return msgspec.json.decode(await socket.receive_str(timeout=60))

            yield next_message


async def until_completed(next_message: Callable[[], Any]) -> list[str]:
    types: list[str] = []
    async with asyncio.timeout(60):
        while not types or types[-1] != "workflow_completed":
            types.append((await next_message())["event_type"])
    return types


@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_a_run_right_after_the_handshake_is_told_in_full(api: Api, script: Script, kind: str) -> None:
    # Both have just looked for followers, and found none.
    await api.run("etl")
    await asyncio.to_thread(script.record, "nightly")
    for first in ("script", "service", "script"):
        started = time.perf_counter()
        async with following(api, kind) as next_message:
            assert time.perf_counter() - started < MAX_HANDSHAKE_SECONDS
            if first == "script":
                await asyncio.to_thread(script.record, "nightly")
            else:
                await api.run("etl")
            assert await until_completed(next_message) == ["connected", *WHOLE]


def test_whatever_is_committed_after_a_listener_registered_is_logged(any_database_url: str) -> None:
    database = Database(any_database_url)
    writers = [StoreWriter(database) for _ in range(3)]
    try:
        for writer in writers:
            writer.apply(make_run(make_execution("before")))
        position = database.run(event_log.listen)
        for writer in writers:
            writer.apply(make_run(make_execution("after")))
        logged = database.look(lambda c: event_log.resume(c, position))
        assert [entry.event.execution.workflow for entry in logged] == ["after"] * 12
        # A second listener finds a complete log: it makes no gap.
        second = database.run(event_log.listen)
        assert second >= logged[-1].sequence
        assert database.look(lambda c: event_log.resume(c, position)) == logged
        with pytest.raises(EventsMissed):
            database.look(lambda c: event_log.resume(c, 0))
    finally:
        database.close()


def test_a_listener_registers_after_the_transactions_that_did_not_see_it(any_database_url: str) -> None:
    database, other = Database(any_database_url), Database(any_database_url)
    writer = StoreWriter(database)
    has_written, may_commit = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        locking.lock(connection)
        writer.append_log(connection, make_run(make_execution("slow")))
        has_written.set()
        assert may_commit.wait(60)

    try:
        writing = threading.Thread(target=database.run, args=(slow,))
        writing.start()
        assert has_written.wait(60)
        positions: list[int] = []
        listening = threading.Thread(target=lambda: positions.append(other.run(event_log.listen)))
        listening.start()
        listening.join(0.3)
        assert positions == []
        may_commit.set()
        for thread in (writing, listening):
            thread.join(60)
        writer.apply(make_run(make_execution("next")))
        logged = other.look(lambda c: event_log.resume(c, positions[0]))
        assert {entry.event.execution.workflow for entry in logged} == {"next"}
    finally:
        may_commit.set()
        database.close()
        other.close()


async def test_a_listener_whose_registration_ran_out_is_told_of_the_gap(any_database_url: str) -> None:
    database = Database(any_database_url)
    feed, writer = Feed(database), StoreWriter(database)
    try:
        position = await feed.position()
        database.run(lambda c: c.exec_driver_sql("UPDATE store_state SET updated_ns = 0 WHERE name LIKE 'listener:%'"))
        writer.apply(make_run(make_execution("unheard")))
        await feed.position()
        with pytest.raises(EventsMissed):
            async for _ in feed.follow(position):
                pass
    finally:
        await feed.close()
        await database.aclose()


async def test_after_a_gap_followers_are_told_all_that_followed(any_database_url: str) -> None:
    database = Database(any_database_url)
    feed = Feed(database)
    hub, writer = Hub(feed, database), StoreWriter(database, committed=feed.committed)
    everything = StreamFilter(workspace_id=workspace_id("default"))

    async def types_until_completed(groups: AsyncGenerator[list[Message], None]) -> list[str]:
        types: list[str] = []
        async with asyncio.timeout(60):
            async for group in groups:
                types += [msgspec.json.decode(message.body)["event_type"] for message in group]
                if types[-1] == "workflow_completed":
                    break
        return types

    try:
        async with contextlib.aclosing(hub.follow(everything)) as first:
            await anext(first)
            # As if the database had been away for longer than a registration lasts.
            expire = "UPDATE store_state SET updated_ns = 0 WHERE name LIKE 'listener:%'"
            await asyncio.to_thread(database.run, lambda c: c.exec_driver_sql(expire))
            feed._registered_until = 0.0
            await asyncio.to_thread(writer.apply, make_run(make_execution("unheard")))
            async with contextlib.aclosing(hub.follow(everything)) as second:
                assert [m.sequence for m in await anext(second)]
                await asyncio.to_thread(writer.apply, make_run(make_execution("heard")))
                for groups in (first, second):
                    assert await types_until_completed(groups) == ["reload", *WHOLE]
    finally:
        await hub.close()
        await feed.close()
        await database.aclose()


def test_registrations_that_earlier_versions_left_are_deleted(any_database_url: str) -> None:
    database = Database(any_database_url)
    try:
        database.run(event_log.listen)
        database.run(lambda c: c.exec_driver_sql("INSERT INTO store_state VALUES ('listener:0198…', '', 5)"))
        database.run(event_log.prune)
        names = database.look(lambda c: c.exec_driver_sql("SELECT name FROM store_state").scalars().all())
        assert [name for name in names if name.startswith("listener:")] == ["listener:any"]
        assert database.look(event_log.has_listeners)
    finally:
        database.close()


@pytest.mark.parametrize("path", ["/ws/workflows/stream", "/api/stream"])
async def test_a_handshake_is_refused_while_the_database_takes_no_registration(
    api: Api, any_database_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "CONNECT_SECONDS", 0.3)
    other = Database(any_database_url)
    is_locked, may_end = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        locking.lock(connection)
        is_locked.set()
        assert may_end.wait(60)

    holding = threading.Thread(target=other.run, args=(hold,))
    holding.start()
    try:
        assert is_locked.wait(60)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} if path.startswith("/ws") else {}  # fmt: skip
        status, problem = await api.call("GET", path, headers=headers)
        assert (status, problem["code"]) == (503, "store_unavailable")
    finally:
        may_end.set()
        holding.join(60)
        other.close()
    assert api.service.hub.follower_count == 0
    async with following(api, "sse") as next_message:
        assert (await next_message())["event_type"] == "connected"
        await api.run("etl")
        assert await until_completed(next_message) == WHOLE


async def test_a_follower_that_resumes_misses_nothing_that_arrives_while_it_reads(
    any_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(any_database_url)
    feed = Feed(database)
    hub, writer = Hub(feed, database), StoreWriter(database, committed=feed.committed)
    step = make_step(make_execution(), "load")
    everything = StreamFilter(workspace_id=workspace_id("default"))
    reads = 0
    original = Database.read

    async def read(self: Database, work: Callable[[Connection], Any], lane: Lane = Lane.READ) -> Any:
        nonlocal reads
        result = await original(self, work, lane)
        if result == [] and asyncio.current_task() is resuming:
            # Committed and delivered to the others after it read, before it goes on.
            reads += 1
            if reads == 1:
                await asyncio.to_thread(writer.apply, [StepStarted(step=step, time_ns=1)])
                async with asyncio.timeout(60):
                    while hub._position == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
        return result

    async def resume() -> list[str]:
        types: list[str] = []
        async with contextlib.aclosing(hub.follow(everything, before)) as groups:
            async for group in groups:
                types += [msgspec.json.decode(message.body)["event_type"] for message in group]
                if "step_started" in types:
                    break
        return types

    async def resume_from_a_deleted_position() -> list[str]:
        types: list[str] = []
        async with contextlib.aclosing(hub.follow(everything, 10**15)) as groups:
            async for group in groups:
                types += [msgspec.json.decode(message.body)["event_type"] for message in group]
                if types[-1] == "reload":
                    # Delivered to the others before it goes on.
                    at = hub._position
                    await asyncio.to_thread(writer.apply, [StepStarted(step=step, time_ns=2)])
                    async with asyncio.timeout(60):
                        while hub._position == at:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                if "step_started" in types:
                    break
        return types

    try:
        async with contextlib.aclosing(hub.follow(everything)) as first:
            (connected,) = await anext(first)
            before = connected.sequence
            monkeypatch.setattr(Database, "read", read)
            resuming = asyncio.create_task(resume())
            assert await asyncio.wait_for(resuming, 60) == ["connected", "step_started"]
            assert reads == 1
            reloading = resume_from_a_deleted_position()
            assert await asyncio.wait_for(reloading, 60) == ["connected", "reload", "step_started"]
    finally:
        await hub.close()
        await feed.close()
        await database.aclose()
