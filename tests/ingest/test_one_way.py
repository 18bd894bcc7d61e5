"""Ingested and lost executions reach every listener through the recorder, each event once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.api.test_otlp import PLAIN, sent, span
from tests.conftest import Api, serve
from tests.test_four_views import samples

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, StepFinished, StepStarted
from tachograph.identity import Origin
from tachograph.workflow import HandlerRegistry
from tachograph_exporter import service
from tachograph_exporter.config import Config
from tachograph_exporter.store import open_spans

WORKFLOW = {"workspace": "default", "workflow": "nightly"}
STARTED = 1 + len(PLAIN[1:3])
"""Of `PLAIN`: one execution, and two of its spans are steps."""
OPEN = [span("nightly", 1, 0, 0, None), span("extract", 2, 1, 0, 4), span("load", 3, 1, 4, None)]


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def api(
    database_url: str, handlers: HandlerRegistry, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    monkeypatch.setattr(service, "find_provider", lambda: provider)
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        yield api
    provider.shutdown()


async def metrics(api: Api) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    await asyncio.to_thread(api.service.recorder.flush)
    return samples(await api.metrics())


async def metric(api: Api, name: str, **labels: str) -> float | None:
    return (await metrics(api)).get((name, frozenset(labels.items())))


async def lose(api: Api) -> None:
    """Give up what is running in spans."""
    database = api.service.database
    await database.write(lambda c: open_spans.lose(c, open_spans.leased(c), time.time_ns()))
    async with asyncio.timeout(60):
        while (await api.get("/api/workflows/executions/stats"))["by_status"].get("running"):
            await api.service.upkeep.reassemble_due_traces()


async def test_a_lost_ingested_execution_leaves_the_gauges_at_once_and_ends_as_lost(
    api: Api, exported: InMemorySpanExporter
) -> None:
    oldest = "workflow_execution_oldest_running_start_timestamp_seconds"
    await sent(api, *OPEN)
    assert await metric(api, "workflow_executions_running", **WORKFLOW) == 1
    assert await metric(api, "workflow_steps_running", **WORKFLOW) == 1
    assert await metric(api, oldest, **WORKFLOW) == OPEN[0].start_time_unix_nano / 1e9
    await lose(api)
    assert await metric(api, "workflow_executions_running", **WORKFLOW) == 0
    assert await metric(api, "workflow_steps_running", **WORKFLOW) == 0
    assert await metric(api, oldest, **WORKFLOW) is None
    assert await metric(api, "workflow_execution_duration_seconds_count", **WORKFLOW, status="lost") == 1
    assert await metric(api, "workflow_step_duration_seconds_count", **WORKFLOW, step="load", status="lost") == 1
    # The rest arrives after all: nothing is running, and nothing is less than nothing.
    await sent(api, *PLAIN)
    assert await metric(api, "workflow_executions_running", **WORKFLOW) == 0
    assert await metric(api, "workflow_steps_running", **WORKFLOW) == 0
    (listed,) = (await api.get("/api/workflows/executions"))["items"]
    assert listed["status"] == "completed"
    assert exported.get_finished_spans() == ()


async def test_ingested_and_lost_events_are_counted_and_delivered_to_each_listener(api: Api) -> None:
    subscription = api.service.recorder.subscribe()
    delivered = "tachograph_events_delivered_total"
    await sent(api, *PLAIN)
    events = subscription.drain()
    assert {event.execution.origin for event in events} == {Origin.INGESTED}
    kinds = (ExecutionStarted, StepStarted, StepFinished, ExecutionFinished)
    assert [sum(type(event) is kind for event in events) for kind in kinds] == [1, 2, 2, 1]
    assert await metric(api, "tachograph_events_total") == len(events) == 6
    # The store has them with the spans.
    assert await metric(api, delivered, listener="store") == 6
    assert await metric(api, delivered, listener="spans") == 0
    await sent(api, span("other", 9, trace=2, end=None))
    before = await metric(api, "tachograph_events_total")
    assert before == 7
    await lose(api)
    (*_, end) = subscription.drain()
    assert (type(end), end.execution.origin) == (ExecutionFinished, Origin.INGESTED)
    assert await metric(api, "tachograph_events_total") == 8
    assert await metric(api, delivered, listener="store") == 8
    assert await metric(api, delivered, listener="spans") == 0


COUNTERS = ("_total", "_count", "_sum", "_bucket", "_running")


async def counters(api: Api) -> dict[Any, float]:
    return {
        key: value
        for key, value in (await metrics(api)).items()
        if key[0].startswith(("workflow_", "tachograph_events_")) and key[0].endswith(COUNTERS)
    }


@pytest.mark.parametrize("spans", [PLAIN, OPEN], ids=["ended", "running"])
async def test_a_retried_request_changes_no_counter(api: Api, spans: list[Span]) -> None:
    subscription = api.service.recorder.subscribe()
    await sent(api, *spans)
    before = await counters(api)
    assert subscription.drain()
    await sent(api, *spans)
    assert await counters(api) == before
    assert subscription.drain() == []


async def test_the_stream_and_subscribers_hear_ingested_events_once(api: Api) -> None:
    subscription = api.service.recorder.subscribe()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{api.address}/ws/workflows/stream") as socket:
        first = msgspec.json.decode(await socket.receive_str(timeout=60))
        assert first["event_type"] == "connected"
        await sent(api, *PLAIN)
        await sent(api, *PLAIN)
        await sent(api, span("last", 9, trace=2))
        messages: list[Any] = []
        while not (messages and messages[-1]["event_type"] == "workflow_completed" and len(messages) > STARTED * 2):
            messages.append(msgspec.json.decode(await socket.receive_str(timeout=60)))
    kinds = [message["event_type"] for message in messages]
    assert sorted(kinds) == [
        "step_completed", "step_failed", "step_started", "step_started",
        "workflow_completed", "workflow_completed", "workflow_started", "workflow_started",
    ]  # fmt: skip
    assert len({message["sequence"] for message in messages}) == len(messages)
    events: list[Event] = subscription.drain()
    assert len(events) == len(messages)


async def test_exported_spans_hold_no_ingested_execution(api: Api, exported: InMemorySpanExporter) -> None:
    await sent(api, *PLAIN)
    await sent(api, *[span(plain.name, i + 20, 20 if i else 0, i, i + 1, trace=2) for i, plain in enumerate(PLAIN)])
    await api.call("POST", "/api/workflows", {"name": "own", "steps": [{"name": "a"}]})
    await api.run("own")
    await asyncio.to_thread(api.service.recorder.flush)
    assert {span.name for span in exported.get_finished_spans()} == {"run own", "a"}
