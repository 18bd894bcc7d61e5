"""What lies below steps, asked of a real service: spans by OTLP, summed by name, and what of them grew."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.api.test_otlp import S, describe, sent
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.identity import StepRef, new_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def record(api: Api, at: int, seconds: int) -> StepRef:
    execution = make_execution("nightly", execution_id=new_id(at))
    step = make_step(execution, "load")
    end = at + seconds * S
    api.service.recorder(ExecutionStarted(execution=execution, time_ns=at))
    api.service.recorder(StepStarted(step=step, time_ns=at))
    api.service.recorder(StepFinished(step=step, time_ns=end, status=StepStatus.COMPLETED, attempt=1, started_ns=at,
                                      attempt_started_ns=at, run_ns=seconds * S))  # fmt: skip
    api.service.recorder(ExecutionFinished(execution=execution, time_ns=end, status=ExecutionStatus.COMPLETED,
                                           started_ns=at, step_count=1, completed_step_count=1))  # fmt: skip
    assert api.service.recorder.flush(60)
    return step


def below(step: StepRef, at: int, queries: int, query_ms: int) -> list[Span]:
    """A request of 2 s to a host in a span of its own, and so many queries one after the other."""

    def child(number: int, name: str, start: int, end: int, parent: str = "", **attributes: Any) -> Span:
        span = Span(
            trace_id=bytes.fromhex(step.execution.trace_id), span_id=number.to_bytes(8, "big"), name=name,
            parent_span_id=bytes.fromhex(parent or step.span_id), start_time_unix_nano=start, end_time_unix_nano=end,
            kind=Span.SPAN_KIND_CLIENT,
        )  # fmt: skip
        describe(span.attributes, {key.replace("__", "."): value for key, value in attributes.items()})
        return span

    outer = (1).to_bytes(8, "big").hex()
    spans = [
        child(1, "fetch rates 17", at, at + 3 * S),
        child(2, "GET", at, at + 2 * S, outer, server__address="rates.example"),
    ]
    for n in range(queries):
        start = at + 3 * S + n * query_ms * 1_000_000
        spans.append(child(10 + n, "SELECT orders", start, start + query_ms * 1_000_000))
    return spans


async def test_spans_below_a_step_are_summed_and_compared(api: Api) -> None:
    base = time.time_ns() - 3_600 * S
    runs = []
    for n, (seconds, queries, each) in enumerate([(5, 10, 100)] * 3 + [(14, 100, 100)]):
        at = base + n * 60 * S
        step = record(api, at, seconds)
        await sent(api, *below(step, at, queries, each))
        runs.append(step)
    slow, usual = (step.execution.execution_id for step in (runs[-1], runs[0]))
    path = f"/api/workflows/executions/{slow}/timeline"
    assert (await api.get(path))["step_timeline"][0]["below"] is None
    (entry,) = (await api.get(path, params={"below": "true"}))["step_timeline"]
    assert [(b["name"], round(b["seconds"], 3), b["count"]) for b in entry["below"]] == [
        ("SELECT orders", 10.0, 100), ("GET rates.example", 2.0, 1), ("fetch rates <*>", 1.0, 1),
    ]  # fmt: skip
    for parameters in ({"execution": slow}, {"a": usual, "b": slow}):
        comparison = await api.get("/api/workflows/executions/compare", params=parameters)
        (compared,) = comparison["steps"]
        assert compared["below"] == [
            {"name": "SELECT orders", "seconds": 10.0, "reference_seconds": 1.0, "count": 100, "reference_count": 10,
             "difference_seconds": 9.0},
        ]  # fmt: skip
    # What got faster, or has nothing to compare with, says nothing.
    faster = await api.get("/api/workflows/executions/compare", params={"a": slow, "b": usual})
    assert faster["steps"][0]["below"] is None
