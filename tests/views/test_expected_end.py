"""When a running execution is expected to end."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime

import pytest
from tests.conftest import Api, make_execution, make_step

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.histogram import ExponentialHistogram
from tachograph_exporter.views.expected_end import total_seconds


def etl(start_ns: int, seconds: dict[str, float], *, until_ns: int) -> list[Event]:
    """An execution whose steps follow each other, as far as it has got."""
    execution = make_execution()
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=start_ns, step_count=len(seconds))]
    at, before = start_ns, None
    for order, (name, took) in enumerate(seconds.items()):
        depends = (before.step_id,) if before is not None else ()
        step = make_step(execution, name, step_order=order, depends_on=depends)
        end = at + round(took * NS)
        if at <= until_ns:
            events.append(StepStarted(step=step, time_ns=at))
        if end <= until_ns:
            events.append(
                StepFinished(step=step, time_ns=end, status=StepStatus.COMPLETED, attempt=1, started_ns=at,
                             attempt_started_ns=at, run_ns=end - at)
            )  # fmt: skip
        at, before = end, step
    if at <= until_ns:
        events.append(
            ExecutionFinished(execution=execution, time_ns=at, status=ExecutionStatus.COMPLETED, started_ns=start_ns,
                              step_count=len(seconds), completed_step_count=len(seconds))
        )  # fmt: skip
    return events


async def test_the_end_is_that_of_the_rest_of_the_path_wherever_it_is_shown(api: Api) -> None:
    now = time.time_ns()
    usual = {"extract": 100.0, "load": 1000.0}
    for hours in range(1, 6):
        await asyncio.to_thread(api.service.writer.apply, etl(now - hours * 3600 * NS, usual, until_ns=now))
    # Its first step took thrice as long as usual; its second one has run for 400 s of 1,000.
    events = etl(now - 700 * NS, {"extract": 300.0, "load": 1000.0}, until_ns=now)
    await asyncio.to_thread(api.service.writer.apply, events)
    path = f"/api/workflows/executions/{events[0].execution.execution_id}"
    detail = await api.get(path)
    page = await api.get("/api/workflows/executions?status=running")
    async with api.session.get(api.address + "/api/workflows/executions?status=running&format=ndjson") as response:
        line = json.loads(await response.text())
    shown = [detail, detail["timeline"], await api.get(path + "/status"), await api.get(path + "/timeline"),
             *page["items"], line]  # fmt: skip
    for answer in shown:
        end = datetime.fromisoformat(answer["expected_end_at"]).timestamp()
        assert end == pytest.approx(now / NS + 600, abs=60)
        assert answer["usual_duration_seconds"] == pytest.approx(1100, rel=0.05)
    ended = await api.get("/api/workflows/executions?status=completed")
    assert {item["expected_end_at"] for item in ended["items"]} == {None}


async def test_nothing_is_expected_of_what_is_new_or_never_took_so_long(api: Api) -> None:
    now = time.time_ns()
    events = etl(now - 5 * NS, {"load": 1000.0}, until_ns=now)
    await asyncio.to_thread(api.service.writer.apply, events)
    path = f"/api/workflows/executions/{events[0].execution.execution_id}"
    assert (await api.get(path))["expected_end_at"] is None
    await asyncio.to_thread(api.service.writer.apply, etl(now - 7200 * NS, {"load": 1.0}, until_ns=now))
    detail = await api.get(path)
    assert (detail["expected_end_at"], detail["usual_duration_seconds"]) == (None, pytest.approx(1, rel=0.05))


def test_what_has_run_for_a_while_takes_as_long_as_half_of_those_that_took_longer() -> None:
    durations = ExponentialHistogram.of([10.0] * 50 + [100.0] * 50)
    assert total_seconds(durations, 0) == pytest.approx(10, rel=0.05)
    assert total_seconds(durations, 20) == pytest.approx(100, rel=0.05)
    assert total_seconds(durations, 101) is None
    assert total_seconds(ExponentialHistogram(), 5) is None
