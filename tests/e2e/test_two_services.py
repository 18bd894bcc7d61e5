"""Two services on one database: nothing counts twice, both see everything, live events reach both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Api, running
from tests.store.test_rollups import differing

from tachograph.events import ExecutionFinished
from tachograph.recording.recorder import Recorder
from tachograph.workflow import Executor, HandlerRegistry
from tachograph.workflow.document import parse
from tachograph_exporter.config import Config
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.event_log import Logged
from tachograph_exporter.store.writer import open_writer
from tachograph_exporter.stream.feed import EventsMissed

QUICK = {"name": "quick", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]}


async def follow(api: Api, into: list[Logged], after: int) -> None:
    async for group in api.service.feed.follow(after):
        into += group


def ended(events: list[Logged]) -> set[str]:
    return {logged.event.execution.execution_id for logged in events if isinstance(logged.event, ExecutionFinished)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_two_services_on_one_postgresql(postgres: Callable[..., str], handlers: HandlerRegistry) -> None:
    config = Config(database=postgres(), grace_seconds=0.2)
    async with running(config, handlers) as first, running(config, handlers) as second:
        events: dict[str, list[Logged]] = {"first": [], "second": []}
        position = await first.service.feed.position()
        followers = [
            asyncio.create_task(follow(first, events["first"], position)),
            asyncio.create_task(follow(second, events["second"], position)),
        ]
        status, _ = await first.call("POST", "/api/workflows", QUICK)
        assert status == 201
        await asyncio.gather(*[api.run("quick") for api in (first, second) * 20])
        pages = [await api.get("/api/workflows/quick/executions?limit=100") for api in (first, second)]
        ids = [{item["execution_id"] for item in page["items"]} for page in pages]
        assert len(ids[0]) == 40
        assert ids[0] == ids[1]
        for api in (first, second):
            assert (await api.get("/api/workflows/quick/metrics"))["total_executions"] == 40
        assert differing(first.service.database) == 0
        await until(lambda: all(ended(logged_events) == ids[0] for logged_events in events.values()))
        # Both received the same events in the same order with the same sequence numbers, each once.
        numbers = [[logged.sequence for logged in logged_events] for logged_events in events.values()]
        assert numbers[0] == numbers[1] == sorted(set(numbers[0]))
        # A follower that was away resumes at its position.
        middle = numbers[0][len(numbers[0]) // 2]
        rest: list[Logged] = []
        followers.append(asyncio.create_task(follow(second, rest, middle)))
        await until(lambda: [logged.sequence for logged in rest] == [n for n in numbers[0] if n > middle])
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


async def test_a_scripts_events_reach_the_service_on_sqlite(database_url: str, handlers: HandlerRegistry) -> None:
    async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
        events: list[Logged] = []
        # Writers log events only while there is a follower.
        follower = asyncio.create_task(follow(api, events, await api.service.feed.position()))
        script = Recorder()
        script.add("store", open_writer(database_url))
        await Executor(script, handlers=handlers).run(parse(QUICK))
        await asyncio.to_thread(script.close)
        await until(lambda: len(ended(events)) == 1)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


async def test_a_follower_that_was_away_too_long_gets_an_error(
    database_url: str, handlers: HandlerRegistry, tmp_path: Path
) -> None:
    async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
        events: list[Logged] = []
        # Writers log events only while there is a follower.
        follower = asyncio.create_task(follow(api, events, await api.service.feed.position()))
        await api.call("POST", "/api/workflows", QUICK)
        for _ in range(3):
            await api.run("quick")
        await until(lambda: len(ended(events)) == 3)
        truncate = "DELETE FROM event_log WHERE sequence < (SELECT max(sequence) FROM event_log)"
        Database(database_url).run(lambda c: c.exec_driver_sql(truncate))
        with pytest.raises(EventsMissed, match="no longer kept"):
            await follow(api, [], events[0].sequence)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


async def test_a_lost_postgresql_connection_loses_no_event(
    postgres: Callable[..., str], handlers: HandlerRegistry
) -> None:
    url = postgres()
    other = Database(url)
    other_backends = "datname = current_database() AND pid <> pg_backend_pid()"
    disconnect = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {other_backends}"
    async with running(Config(database=url, grace_seconds=0.2), handlers) as api:
        status, _ = await api.call("POST", "/api/workflows", QUICK)
        assert status == 201
        ids = set()
        for _ in range(4):
            ids.add(await api.run("quick"))
            await asyncio.to_thread(other.run, lambda c: c.exec_driver_sql(disconnect).all())
            # The next request gets a response, and the next execution is recorded.
            assert (await api.get("/api/workflows/quick/metrics"))["total_executions"] == len(ids)
        ids.add(await api.run("quick"))
        assert {e["execution_id"] for e in (await api.get("/api/workflows/executions"))["items"]} == ids
        assert not any(queue.dropped for queue in api.service.recorder.queues.values())
    assert differing(other) == 0
    other.close()
