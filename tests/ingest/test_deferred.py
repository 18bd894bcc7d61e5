"""When very many spans arrive at once they are stored first; whatever happens then, what they tell is told once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import select
from tests.api.test_otlp import T0, S, export, send
from tests.conftest import Api, serve
from tests.ingest.hurried_intake import WAYS, Hurried, Pieces
from tests.ingest.intake import WORKSPACE, intakes
from tests.ingest.proven import NAMES, RAW
from tests.ingest.recorded import in_order, in_pieces, recorded_requests, recorded_spans
from tests.ingest.test_open_spans import eventually
from tests.ingest.test_recordings import problems_of
from tests.ingest.truth import read_truth
from tests.store.test_rollups import differing

from tachograph.events import Event, ExecutionFinished, Heartbeat
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest import deferred, span_store
from tachograph_exporter.store.schema import traces


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Callable[[], Hurried]]:
    with intakes(Hurried, tmp_path, empty_database) as make:
        yield make


def keys_of(events: Sequence[Event]) -> Counter[tuple[Any, ...]]:
    """How often each thing was told."""
    return Counter(
        (type(event).__name__, event.execution.execution_id, getattr(getattr(event, "step", None), "step_id", ""),
         getattr(event, "attempt", 0), getattr(event, "sequence", 0))
        for event in events if not isinstance(event, Heartbeat)
    )  # fmt: skip


CHOSEN: Final = frozenset({
    "airflow33_nightly", "celery_pipeline", "celery_links_chain_with_retry", "dagster113_nightly",
    "langgraph_subgraphs", "logfire_pydantic_ai_web", "rq_failed", "temporal_continued", "temporal_v2_nightly",
})  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [n if n in CHOSEN else pytest.param(n, marks=pytest.mark.slow) for n in sorted({*NAMES, *RAW})],
)
def test_a_recording_that_is_stored_first_becomes_what_happened_and_is_told_as_often(
    name: str, intake: Callable[[], Hurried]
) -> None:
    if name in RAW:
        pieces: Pieces = recorded_requests(name)
    else:
        pieces = list(in_pieces(in_order(recorded_spans(name), "by end"), 3))
    tolerance = read_truth(name)["tolerance_seconds"] if name in RAW else None
    for way in WAYS:
        service, plain = intake(), intake()
        plain.is_patient = True
        for each in (service, plain):
            way(each, pieces)
            each.settle()
        assert not problems_of(name, service, tolerance=tolerance), way.__name__
        # Of what changes later it may say less in between.
        assert not keys_of(service.events) - keys_of(plain.events), way.__name__
        ends, whole = ([e for e in each.events if isinstance(e, ExecutionFinished)] for each in (service, plain))
        assert keys_of(ends) == keys_of(whole), way.__name__
        service.close()
        plain.close()


def many(traces: int, *, first: int = 1) -> bytes:
    """Traces of five spans."""
    spans = []
    for trace in range(first, first + traces):
        for number in range(5):
            span = Span(
                trace_id=trace.to_bytes(16), span_id=(number + 1).to_bytes(8),
                parent_span_id=(1).to_bytes(8) if number else b"",
                name=f"part {number}" if number else "job",
                start_time_unix_nano=T0 + number * S, end_time_unix_nano=T0 + (number + 1 if number else 9) * S,
            )  # fmt: skip
            spans.append(span)
    return export(spans).SerializeToString()


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


async def test_many_requests_are_answered_first_and_assembled_right_after(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    assemble = span_store.SpanStore.assemble_deferred

    def counted(store: Any, connection: Any, workspace_id: str, workspace: str, trace_ids: Any, kept: Any) -> Any:
        calls.append(len(trace_ids))
        return assemble(store, connection, workspace_id, workspace, trace_ids, kept)

    monkeypatch.setattr(span_store.SpanStore, "assemble_deferred", counted)

    async def post(body: bytes) -> None:
        status, answer = await send(api, body, "application/x-protobuf")
        assert status == 200, answer

    # Alone: its executions are there when it is answered.
    await post(many(210))
    assert (await api.get("/api/workflows/executions"))["total"] == 210
    assert not calls
    # Several at once. What each finds at its answer are its spans.
    await asyncio.gather(*[post(many(60, first=1_000 + 60 * i)) for i in range(20)])
    query = select(traces.c.trace_id)
    stored = await api.service.database.read(lambda c: len(c.execute(query).all()))
    assert stored == 210 + 1_200

    async def has_all() -> bool:
        return int((await api.get("/api/workflows/executions"))["total"]) == stored

    await eventually(has_all)
    assert 0 < sum(calls) <= 1_200, "nothing is assembled twice"
    assert (await api.get("/api/workflows/job/metrics"))["total_executions"] == stored
    assert differing(api.service.database) == 0
    due = select(traces.c.trace_id).where(traces.c.untold.is_not(None) | traces.c.due_ns.is_not(None))
    assert await api.service.database.read(lambda c: c.execute(due).all()) == []


def test_what_waits_too_long_is_assembled_between_requests(
    intake: Callable[[], Hurried], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = intake()
    waiting = deferred.DeferredTraces(service.store)
    service.hurry(recorded_spans("celery_pipeline"))
    for trace_id, kept in service.waiting.items():
        waiting.add(service.workspace_id, WORKSPACE, trace_id, kept)
    waiting.catch_up(10)
    assert len(waiting) == len(service.waiting)
    monkeypatch.setattr(deferred, "MAX_DELAY_SECONDS", 0.0)
    waiting.catch_up(10)
    assert len(waiting) < len(service.waiting)
    assert service.timelines()
