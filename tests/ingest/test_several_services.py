"""Several services on one PostgreSQL take pieces of the same traces: the executions are those of all pieces."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import update
from tests.api.test_lineage import ONE, post, timelines
from tests.api.test_otlp import export, send
from tests.api.test_otlp_grpc import Door
from tests.conftest import Api, running
from tests.ingest.hurried_intake import Hurried
from tests.ingest.intake import Intake
from tests.ingest.test_deferred import keys_of, many
from tests.ingest.test_lineage_and_spans import NAME, airflow_spans
from tests.ingest.truth import RECORDINGS, differences, read_truth
from tests.store.test_rollups import differing

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.reassembly import claim_due, reassemble
from tachograph_exporter.ingest.spans import SpanRecord, parse, records
from tachograph_exporter.store.rollups.rebuild import workflows_with_executions
from tachograph_exporter.store.schema import traces
from tachograph_exporter.store.series.recount import recount_one

SECONDS = 120


def without_ids(timelines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Timelines without what is another in each database."""
    return [{key: value for key, value in each.items() if key not in ("workflow_id", "execution_number")}
            for each in timelines]  # fmt: skip


@pytest.mark.e2e
def test_pieces_of_traces_that_go_to_several_services_become_the_same_executions(
    postgres: Callable[..., str], tmp_path: Path, empty_database: Path
) -> None:
    rng = random.Random(5)
    spans, others = (
        [span for span in records(parse(body).resource_spans) if isinstance(span, SpanRecord)]
        for body in (many(30), many(30, first=1_000))
    )
    alone = Intake(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'alone.db')}")
    alone.take([*spans, *others])
    url = postgres()
    services = [Hurried(url) for _ in range(3)]
    # The workflows are known, so that nothing has to be done by one alone.
    first = spans[0].trace_id
    services[0].take([span for span in spans if span.trace_id == first])
    rng.shuffle(shuffled := list(spans))
    pieces = [shuffled[i : i + 7] for i in range(0, len(shuffled), 7)]
    rng.shuffle(shuffled := list(others))
    hurried = [shuffled[i : i + 15] for i in range(0, len(shuffled), 15)]

    def work(number: int) -> int:
        stored = 0
        for i, piece in enumerate(pieces[number::3]):
            # What one has taken arrives at another, too.
            stored += services[number].take(piece)
            stored += services[number].take(pieces[(i * 5) % len(pieces)])
            stored += services[number].hurry(hurried[(i + number * 3) % len(hurried)])
            if i % 4 == 3:
                services[number].assemble_waiting()
        services[number].assemble_waiting()
        return stored

    with ThreadPoolExecutor(3) as pool:
        stored = sum(each.result(SECONDS) for each in [pool.submit(work, number) for number in range(3)])
    assert stored + sum(span.trace_id == first for span in spans) == len(spans) + len(others)
    services[0].settle()
    alone.settle()
    database = services[1].database
    assert without_ids(services[1].timelines()) == without_ids(alone.timelines())
    assert differing(database) == 0
    for key in database.look(workflows_with_executions):
        assert database.look(partial(recount_one, key=key, write=False)) == 0
    # Listeners of the three together hear everything; once, if it is assembled as soon as it arrives.
    told, due = keys_of([event for service in services for event in service.events]), keys_of(alone.events)
    assert told.keys() == due.keys()
    ids = {span.trace_id for span in spans}
    at_once = {event.execution.execution_id for event in alone.events if event.execution.trace_id in ids}
    assert all(told[key] == due[key] for key in due if key[1] in at_once)
    for service in (alone, *services):
        service.close()


@pytest.mark.e2e
async def test_one_run_through_every_door_of_two_services_at_once(
    postgres: Callable[..., str], handlers: HandlerRegistry
) -> None:
    """Its spans by HTTP and gRPC, its OpenLineage events, each in pieces, some of them to both: one execution."""
    rng = random.Random(7)
    spans = [Span.FromString(each.payload) for each in airflow_spans()]
    pieces = [export(spans[i : i + 4]).SerializeToString() for i in range(0, len(spans), 4)]
    lines = (RECORDINGS / f"{NAME}.jsonl").read_bytes().splitlines()
    config = Config(database=postgres(), grace_seconds=0.1, otlp_grpc=("127.0.0.1", 0))
    async with running(config, handlers) as first, running(config, handlers) as second:
        doors = [Door(first), Door(second)]

        async def by_http(door: Door, body: bytes) -> bool:
            return (await send(door.api, body))[0] == 200

        async def by_grpc(door: Door, body: bytes) -> bool:
            return (await door.send(body))[0] is grpc.StatusCode.OK

        async def by_lineage(door: Door, body: bytes) -> bool:
            return (await post(door.api, ONE, body))[0] == 200

        calls = [
            partial(way, door, body) for body in pieces for way, door in ((by_http, doors[0]), (by_grpc, doors[1]))
        ]
        calls += [partial(by_lineage, doors[i % 2], line) for i, line in enumerate(lines)]
        calls += [partial(by_lineage, doors[1], line) for line in lines[::3]]
        rng.shuffle(calls)
        assert all(await asyncio.gather(*[call() for call in calls]))
        for api in (first, second):
            # What one service has deferred is due in the database.
            await asyncio.to_thread(settled, api)
        shown = [await timelines(api) for api in (first, second)]
        assert [timeline["execution_id"] for timeline in shown[0]] == [
            timeline["execution_id"] for timeline in shown[1]
        ]
        assert differences(read_truth(NAME), shown[0], tolerance_seconds=0.001) == []
        assert differing(first.service.database) == 0
        report = await first.get(f"/api/workflows/executions/{shown[0][0]['execution_id']}/reconcile")
        assert report["differences"] == []


def settled(api: Api) -> None:
    """Assemble what is due, now or later."""
    database = api.service.database
    database.run(lambda c: c.execute(update(traces).where(traces.c.due_ns.is_not(None)).values(due_ns=1)))
    for trace in database.run(claim_due):
        reassemble(api.service.span_store, trace)
