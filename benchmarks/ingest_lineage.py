"""OpenLineage events per second until they are durable, for the table of `ingest`.

Runs of nine steps that hand datasets on, fifty runs a request, from a few clients at once: 20 events a run, as clients
send them. Events are counted when the request is answered: by then they are committed. Their executions are assembled
right after that, since requests of this size are stored first. Compared with the database's own bulk insert of the
same rows: those of the events and, as for OTLP, those of the spans that stand for them.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import aiohttp
from sqlalchemy import Connection, delete, func, insert, select

from tachograph_exporter.ingest.lineage.events import read_event
from tachograph_exporter.ingest.lineage.lineage_store import encode_event
from tachograph_exporter.ingest.lineage.translation import spans_of
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.schema import lineage_events, spans

STEPS = 9
RUNS = 50
EVENTS = RUNS * (2 * STEPS + 2)
"""Events in a request."""


def build_batch() -> bytes:
    """The events of fifty runs of a pipeline of nine steps."""
    return json.dumps([event for _ in range(RUNS) for event in _run()]).encode()


def _run() -> list[dict[str, Any]]:
    now = datetime.now(UTC) - timedelta(minutes=1)
    root = {"run": {"runId": str(uuid.uuid4())}, "job": {"namespace": "etl", "name": "nightly"}}

    def event(kind: str, seconds: float, run: str, job: str, **more: Any) -> dict[str, Any]:
        facets = {"processing_engine": {"name": "bench", "version": "1"}, **more.pop("facets", {})}
        return {
            "eventType": kind, "eventTime": (now + timedelta(seconds=seconds)).isoformat(),
            "producer": "https://example.com/bench", "run": {"runId": run, "facets": facets},
            "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
            "job": {"namespace": "etl", "name": job,
                    "facets": {"jobType": {"integration": "BENCH", "jobType": "TASK", "processingType": "BATCH"}}},
            "inputs": [], "outputs": [], **more,
        }  # fmt: skip

    events = [event("START", 0, root["run"]["runId"], "nightly")]
    for number in range(STEPS):
        run = str(uuid.uuid4())
        inputs, outputs = [{"namespace": "db", "name": f"t{number}"}], [{"namespace": "db", "name": f"t{number + 1}"}]
        for kind, seconds in (("START", number), ("COMPLETE", number + 0.9)):
            events.append(event(kind, seconds, run, f"nightly.step{number}", facets={"parent": {**root, "root": root}},
                                inputs=inputs, outputs=outputs))  # fmt: skip
    events.append(event("COMPLETE", STEPS, root["run"]["runId"], "nightly"))
    return events


def bulk(database: Database, batches: Sequence[bytes]) -> float:
    """Events per second for the same rows into the same tables, with one commit per request."""
    event_rows, span_rows = [], []
    for batch in batches:
        bodies = [json.dumps(event).encode() for event in json.loads(batch)]
        events = [event for body in bodies if (event := read_event(body)) is not None]
        event_rows.append(
            [("w", "t" * 32, event.event_id, event.time_ns, 1, encode_event(event), body)
             for event, body in zip(events, bodies, strict=True)]
        )  # fmt: skip
        span_rows.append(
            [("w", "t" * 32, span.span_id, span.parent_span_id, span.name, span.service, span.start_ns, span.end_ns,
              span.resource_id, span.payload, 1, span.kind, span.status_code) for span in spans_of(events, "a" * 32)]
        )  # fmt: skip
    put_event = str(insert(lineage_events).compile(dialect=database.dialect))
    put_span = str(insert(spans).compile(dialect=database.dialect))

    def store(connection: Connection, number: int) -> None:
        insert_many(connection, put_event, event_rows[number])
        insert_many(connection, put_span, span_rows[number])

    start = time.perf_counter()
    for number in range(len(batches)):
        database.run(partial(store, number=number))
    rate = len(batches) * EVENTS / (time.perf_counter() - start)
    database.run(_clear)
    return rate


def _clear(connection: Connection) -> None:
    for table in (lineage_events, spans):
        connection.execute(delete(table))


def ours(address: str, batches: Sequence[bytes], clients: int) -> float:
    """Events per second, counted when the requests are answered."""
    start = time.perf_counter()
    asyncio.run(_send(address, batches, clients))
    return len(batches) * EVENTS / (time.perf_counter() - start)


async def _send(address: str, batches: Sequence[bytes], clients: int) -> None:
    waiting = list(batches)
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            while waiting:
                body = waiting.pop()
                kind = {"Content-Type": "application/json"}
                async with session.post(f"{address}/api/v1/lineage/batch", data=body, headers=kind) as answer:
                    assert answer.status == 200, (answer.status, await answer.text())

        await asyncio.gather(*[client() for _ in range(clients)])


def wait_until_assembled(database: Database) -> None:
    """Wait until every event that was acknowledged is in an execution."""
    query = select(func.count()).select_from(lineage_events).where(lineage_events.c.is_read == 0)
    deadline = time.monotonic() + 300
    while database.look(lambda c: c.execute(query).scalar_one()):
        assert time.monotonic() < deadline, "the executions have not been assembled"
        time.sleep(0.05)
