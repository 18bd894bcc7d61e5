"""Heavy requests delay no light ones: what takes long runs off the event loop and in threads of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures.thread import _WorkItem
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.clock import NS
from tachograph.errors import DatabaseUnavailable
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepStatus
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import comparison, executions, timeline
from tachograph_exporter.config import Config
from tachograph_exporter.store import database as databases
from tachograph_exporter.store.executions import open_executions

STEPS = 1_000


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        yield api


def large_run() -> list[Event]:
    run, now = make_execution("large"), time.time_ns() - 60 * NS
    steps = [make_step(run, f"step {number}", step_order=number) for number in range(STEPS)]
    return [
        ExecutionStarted(execution=run, time_ns=now, step_count=STEPS),
        *[
            StepFinished(step=step, time_ns=now + NS, status=StepStatus.COMPLETED, attempt=1, started_ns=now,
                         attempt_started_ns=now, run_ns=NS)
            for step in steps
        ],
        ExecutionFinished(execution=run, time_ns=now + NS, status=ExecutionStatus.COMPLETED, started_ns=now,
                          step_count=STEPS, completed_step_count=STEPS),
    ]  # fmt: skip


VIEWS: list[tuple[str, ModuleType, str]] = [
    ("{id}", executions, "execution_detail"),
    ("{id}/status", executions, "execution_state"),
    ("{id}/timeline", timeline, "build_timeline"),
    ("compare?a={id}&b={id}", comparison, "read_comparison"),
]


async def test_a_large_run_is_read_and_encoded_off_the_event_loop(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    events = large_run()
    await asyncio.to_thread(api.service.writer.apply, events)
    for view, module, builder in VIEWS:
        build, threads = getattr(module, builder), []

        def noting(*arguments: Any, build: Any = build, threads: Any = threads, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return build(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, builder, noting)
            path = "/api/workflows/executions/" + view.format(id=events[0].execution.execution_id)
            status, body = await api.call("GET", path)
        assert status == 200, (view, body)
        assert len(threads) == 1, view
        # Encoding follows in the same thread: what comes back is bytes.
        assert threads[0] is not threading.current_thread(), view


@pytest.mark.parametrize("deaths", [1, 4])
async def test_a_lane_whose_threads_died_gets_new_ones(
    database_url: str, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """A thread may run out of memory while it notes its result: then nobody is told, and it is gone."""
    monkeypatch.setattr(databases, "ANSWER_SECONDS", 0.5)
    run, left = _WorkItem.run, [deaths]

    def dying(item: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise MemoryError
        run(item)

    database = databases.Database(database_url)
    monkeypatch.setattr(_WorkItem, "run", dying)
    answers = await asyncio.gather(*[database.read(executions_of) for _ in range(deaths)], return_exceptions=True)
    assert all(isinstance(answer, DatabaseUnavailable) for answer in answers), answers
    for _ in range(8):
        assert await database.read(executions_of) == []
    await database.aclose()


def executions_of(connection: Connection) -> list[Any]:
    return list(open_executions(connection))
