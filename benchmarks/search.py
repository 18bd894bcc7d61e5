"""Searches and metrics of the last day in a database with a million spans, by TraceQL, as viewers ask for them."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import databases
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text

from tachograph.identity import workspace_id
from tachograph_exporter.ingest.span_rows import SpanRows
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store.database import Database
from tachograph_exporter.traces.search import Search, search
from tachograph_exporter.traces.time_steps import TimeSteps
from tachograph_exporter.traces.trace_metrics import compute
from tachograph_exporter.traces.traceql.parser import parse

SPANS = int(os.environ.get("SEARCH_SPANS", "1000000"))
PER_TRACE = 10
ROUNDS = 5
S = 1_000_000_000
DAY = 86_400 * S
LIMIT = 20
WORKSPACE = workspace_id("default")

SEARCHES = (
    "{ }",
    '{ resource.service.name = "service 3" }',
    '{ name = "step 4" && duration > 1s }',
    '{ name = "seldom" }',
    "{ status = error }",
    "{ nestedSetParent < 0 && status = error }",
    '{ resource.service.name = "service 3" && status = error }',
    "{ duration > 50s }",
    "{ traceDuration > 50s }",
    '{ rootName = "seldom run" }',
    '{ name = "run" } >> { status = error } | count() > 0 | select(span.attempt)',
    '{ span.attempt = 2 && name = "step 4" }',
)
METRICS = (
    "{ status = error } | rate()",
    "{ nestedSetParent < 0 } | rate() by (resource.service.name)",
    '{ name = "step 4" } | quantile_over_time(duration, 0.9)',
    "{ } | rate() by (name)",
)


def traces(now_ns: int) -> Iterator[list[SpanRecord]]:
    """A day of traces: a root and its steps. One span in a hundred thousand is seldom, long or fails."""
    rng = random.Random(1)
    resources = []
    for number in range(10):
        group = ResourceSpans()
        group.resource.attributes.add(key="service.name").value.string_value = f"service {number}"
        group.scope_spans.add().scope.name = "bench"
        resources.append((f"service {number}", group.SerializeToString()))
    count = SPANS // PER_TRACE
    for number in range(count):
        start = now_ns - DAY + number * DAY // count
        service, resource = resources[number % len(resources)]
        trace_id = rng.randbytes(16)
        spans: list[SpanRecord] = []
        parent = b""
        for index in range(PER_TRACE):
            is_special = rng.random() < 1e-5
            name = "run" if index == 0 else f"step {index}"
            if is_special:
                name = "seldom run" if index == 0 else "seldom"
            length = 60 * S if is_special else rng.randrange(2 * S)
            span = Span(
                trace_id=trace_id,
                span_id=rng.randbytes(8),
                parent_span_id=parent,
                name=name,
                kind=Span.SPAN_KIND_INTERNAL,
                start_time_unix_nano=start + index,
                end_time_unix_nano=start + index + length,
            )
            span.attributes.add(key="attempt").value.int_value = index % 3
            span.attributes.add(key="workflow.execution.id").value.string_value = trace_id.hex()
            if is_special:
                span.status.code = Status.STATUS_CODE_ERROR
            parent = parent or span.span_id
            spans.append(record(span, service, "bench", service, resource, {"service.name": service}))
        yield spans


def fill(database: Database, now_ns: int) -> None:
    """Write the spans, as an ingest does, without assembling executions; PostgreSQL then looks at what it has."""
    rows = SpanRows(database.dialect)
    batch: dict[str, list[SpanRecord]] = {}

    def flush() -> None:
        counts = {trace_id: len(spans) for trace_id, spans in batch.items()}

        def work(connection: Connection) -> None:
            rows.put(connection, WORKSPACE, batch, counts, {})
            rows.put_traces(connection, WORKSPACE, batch, counts, {}, {}, now_ns)

        database.run(work, is_long=True)
        rows.settle(is_committed=True)
        batch.clear()

    for spans in traces(now_ns):
        batch[spans[0].trace_id] = spans
        if len(batch) >= 2_000:
            flush()
    flush()
    if not database.is_sqlite:
        database.run(lambda c: c.execute(text("ANALYZE")), is_long=True)


def ms(database: Database, work: Callable[[Connection], Any]) -> tuple[float, Any]:
    """Milliseconds (median) and the result."""
    result: Any = None
    took = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = database.look(work)
        took.append((time.perf_counter() - started) * 1000)
        if took[-1] > 3_000:
            break
    return statistics.median(took), result


def measure(database: Database, now_ns: int) -> Iterator[tuple[str, float, str]]:
    """Each query with its time and what it gave."""
    for query in SEARCHES:
        request = Search(query=parse(query), start_ns=now_ns - DAY, end_ns=now_ns, limit=LIMIT)

        def find(connection: Connection, request: Search = request) -> tuple[int, int]:
            taken: list[Any] = []
            inspected = search(connection, WORKSPACE, "default", request, taken.append)
            return len(taken), inspected

        took, (count, inspected) = ms(database, find)
        yield query, took, f"{count} of {inspected} inspected"
    steps = TimeSteps.over(now_ns - DAY, now_ns, 360 * S)
    for query in METRICS:
        took, answer = ms(database, lambda c, q=query: compute(c, WORKSPACE, "default", parse(q), steps))  # type: ignore[misc]
        yield query, took, f"{len(answer.series)} series of {answer.inspected_spans:,} spans"


def main(console: Console) -> None:
    """Measure on every database that is installed."""
    now_ns = time.time_ns()
    for name, url in databases.installed(console):
        database = Database(url)
        started = time.perf_counter()
        fill(database, now_ns)
        rate = SPANS / (time.perf_counter() - started)
        table = Table(title=f"{name}: {SPANS:,} spans of a day (written at {rate:,.0f} a second)")
        for column in ("query", "ms", "result"):
            table.add_column(column, justify="right" if column == "ms" else "left")
        for query, took, result in measure(database, now_ns):
            table.add_row(query, f"{took:,.1f}", result)
        console.print(table)
        database.close()


if __name__ == "__main__":
    main(Console())
