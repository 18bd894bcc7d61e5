"""Two services on one database: nothing twice, both see everything, live events cross."""

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
from tachograph_exporter.stream.feed import Missed

QUICK = {"name": "quick", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]}


async def follow(api: Api, into: list[Logged], after: int | None = None) -> None:
    async for group in api.service.feed.follow(after):
        into += group


def ended(found: list[Logged]) -> set[str]:
    return {one.event.execution.execution_id for one in found if isinstance(one.event, ExecutionFinished)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_two_services_on_one_postgresql(postgres: Callable[..., str], handlers: HandlerRegistry) -> None:
    config = Config(database=postgres(), grace_seconds=0.2)
    async with running(config, handlers) as one, running(config, handlers) as other:
        heard: dict[str, list[Logged]] = {"one": [], "other": []}
        at = await one.service.feed.now()
        followers = [
            asyncio.create_task(follow(one, heard["one"], at)), asyncio.create_task(follow(other, heard["other"], at))
        ]  # fmt: skip
        status, _ = await one.call("POST", "/api/workflows", QUICK)
        assert status == 201
        await asyncio.gather(*[api.run("quick") for api in (one, other) * 20])
        seen = [await api.get("/api/workflows/quick/executions?limit=100") for api in (one, other)]
        ids = [{item["execution_id"] for item in page["items"]} for page in seen]
        assert len(ids[0]) == 40
        assert ids[0] == ids[1]
        for api in (one, other):
            assert (await api.get("/api/workflows/quick/metrics"))["total_executions"] == 40
        assert differing(one.service.database) == 0
        await until(lambda: all(ended(found) == ids[0] for found in heard.values()))
        # The same events, the same order, the same numbers; nothing twice.
        numbers = [[logged.sequence for logged in found] for found in heard.values()]
        assert numbers[0] == numbers[1] == sorted(set(numbers[0]))
        # Somebody who was away goes on where it was.
        middle = numbers[0][len(numbers[0]) // 2]
        rest: list[Logged] = []
        followers.append(asyncio.create_task(follow(other, rest, middle)))
        await until(lambda: [logged.sequence for logged in rest] == [n for n in numbers[0] if n > middle])
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


async def test_a_scripts_events_reach_the_service_on_sqlite(database_url: str, handlers: HandlerRegistry) -> None:
    async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
        heard: list[Logged] = []
        # From here on every writer knows that somebody listens.
        follower = asyncio.create_task(follow(api, heard, await api.service.feed.now()))
        script = Recorder()
        script.add("store", open_writer(database_url))
        await Executor(script, handlers=handlers).run(parse(QUICK))
        await asyncio.to_thread(script.close)
        await until(lambda: len(ended(heard)) == 1)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


async def test_who_was_away_too_long_is_told_so(database_url: str, handlers: HandlerRegistry, tmp_path: Path) -> None:
    async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
        heard: list[Logged] = []
        # From here on every writer knows that somebody listens.
        follower = asyncio.create_task(follow(api, heard, await api.service.feed.now()))
        await api.call("POST", "/api/workflows", QUICK)
        for _ in range(3):
            await api.run("quick")
        await until(lambda: len(ended(heard)) == 3)
        forget = "DELETE FROM event_log WHERE sequence < (SELECT max(sequence) FROM event_log)"
        Database(database_url).run(lambda c: c.exec_driver_sql(forget))
        with pytest.raises(Missed, match="no longer kept"):
            await follow(api, [], heard[0].sequence)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


async def test_postgresql_going_away_for_a_moment_loses_nothing(
    postgres: Callable[..., str], handlers: HandlerRegistry
) -> None:
    url = postgres()
    other = Database(url)
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    async with running(Config(database=url, grace_seconds=0.2), handlers) as api:
        status, _ = await api.call("POST", "/api/workflows", QUICK)
        assert status == 201
        ids = set()
        for _ in range(4):
            ids.add(await api.run("quick"))
            await asyncio.to_thread(other.run, lambda c: c.exec_driver_sql(cut).all())
            # Whoever asks next is answered, and what runs next is recorded.
            assert (await api.get("/api/workflows/quick/metrics"))["total_executions"] == len(ids)
        ids.add(await api.run("quick"))
        assert {e["execution_id"] for e in (await api.get("/api/workflows/executions"))["items"]} == ids
        assert not any(queue.dropped for queue in api.service.recorder.queues.values())
    assert differing(other) == 0
    other.close()
