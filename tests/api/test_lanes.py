"""Heavy requests delay no light ones: what takes long runs off the event loop and in threads of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepStatus
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import comparison, executions, timeline
from tachograph_exporter.config import Config

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


@pytest.mark.parametrize(
    ("view", "module", "builder"),
    [
        ("{id}", executions, "execution_detail"),
        ("{id}/status", executions, "execution_state"),
        ("{id}/timeline", timeline, "build_timeline"),
        ("compare?a={id}&b={id}", comparison, "compare_runs"),
    ],
    ids=["detail", "status", "timeline", "compare"],
)
async def test_a_large_run_is_read_and_encoded_off_the_event_loop(
    api: Api, monkeypatch: pytest.MonkeyPatch, view: str, module: ModuleType, builder: str
) -> None:
    events = large_run()
    await asyncio.to_thread(api.service.writer.apply, events)
    build, threads = getattr(module, builder), []

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return build(*arguments, **options)

    monkeypatch.setattr(module, builder, noting)
    path = "/api/workflows/executions/" + view.format(id=events[0].execution.execution_id)
    status, body = await api.call("GET", path)
    assert status == 200, body
    assert len(threads) == 1
    # Encoding follows in the same thread: what comes back is bytes.
    assert threads[0] is not threading.current_thread()
