"""Searches and metrics of the last day in a database with a million spans, by TraceQL, as viewers ask for them; and
lists of executions by what they failed with and by their inputs.

``SEARCH_SPANS=10000000`` has ten million spans and a million executions. A part of the spans is written as an ingest
does; the others are copies of these, made by the database.
"""

from __future__ import annotations

import os
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import databases
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text
from summary import Line, against, scaled

from tachograph.identity import workspace_id
from tachograph_exporter.api.executions import read_page
from tachograph_exporter.ingest.span_rows import SpanRows
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store import partitions
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.input_values import InputValues
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.schema import EXECUTION_ROWS, span_values, spans
from tachograph_exporter.store.schema import traces as traces_table
from tachograph_exporter.traces.search import Search, search
from tachograph_exporter.traces.time_steps import TimeSteps
from tachograph_exporter.traces.trace_metrics import compute
from tachograph_exporter.traces.traceql.parser import parse

SPANS = int(os.environ.get("SEARCH_SPANS", str(scaled(1_000_000, 2_000))))
WRITTEN = min(SPANS, 100_000)
EXECUTIONS = SPANS // 10
PER_TRACE = 10
ROUNDS = 5
S = 1_000_000_000
DAY = 86_400 * S
LIMIT = 20
MAX_OF_METRICS = 1_000_000
"""Metrics read all spans of a range; of more they are not measured."""
GOAL_MS = 200.0
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
    '{ span.customer = "c7" && span.region = "r3" }',
    '{ name = "step 4" && duration > 50s }',
    '{ resource.service.name = "service 3" && duration > 50s }',
    '{ resource.service.name = "service 3" && name = "nothing" }',
)
LISTS = {
    "error text of one run": {"error": "disk 7 is full"},
    "error text of none": {"error": "no such text"},
    "input of one run": {"input": "order=77"},
    "input of none": {"input": "order=x"},
    "input of many": {"input": "mode=nightly"},
}
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
    count = WRITTEN // PER_TRACE
    for number in range(count):
        start = now_ns - DAY + number * DAY // count
        service, resource = resources[number % len(resources)]
        # The first byte tells copies apart.
        trace_id = b"\0" + rng.randbytes(15)
        records: list[SpanRecord] = []
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
            # Each of less than a twentieth of the traces, and never of one span.
            if index == 3:
                span.attributes.add(key="customer").value.string_value = f"c{number % 40}"
            if index == 5:
                span.attributes.add(key="region").value.string_value = f"r{number % 31}"
            if is_special:
                span.status.code = Status.STATUS_CODE_ERROR
            parent = parent or span.span_id
            records.append(record(span, service, "bench", service, resource, {"service.name": service}))
        yield records


def fill(database: Database, now_ns: int) -> None:
    """Write the spans, as an ingest does, without assembling executions; PostgreSQL then looks at what it has."""
    rows = SpanRows(database.dialect)
    batch: dict[str, list[SpanRecord]] = {}

    def flush() -> None:
        counts = {trace_id: len(own) for trace_id, own in batch.items()}

        def work(connection: Connection) -> None:
            rows.put(connection, WORKSPACE, batch, counts, {})
            rows.put_traces(connection, WORKSPACE, batch, counts, {}, {}, now_ns)

        database.run(work, is_long=True)
        rows.settle(is_committed=True)
        batch.clear()

    for trace in traces(now_ns):
        batch[trace[0].trace_id] = trace
        if len(batch) >= 2_000:
            flush()
    flush()
    if SPANS > WRITTEN:
        # Their indexes are made at once, as that is much quicker.
        indexes = database.run(without_indexes, is_long=True)
        for copy in range(1, SPANS // WRITTEN):
            database.run(lambda c, copy=copy: copied(c, copy), is_long=True)  # type: ignore[misc]
        for index in indexes:
            database.run(lambda c, index=index: c.exec_driver_sql(index), is_long=True)  # type: ignore[misc]
    for first in range(0, EXECUTIONS, 100_000):
        database.run(lambda c, first=first: executed(c, first, now_ns), is_long=True)  # type: ignore[misc]
    if not database.is_sqlite:
        database.run(lambda c: c.execute(text("ANALYZE")), is_long=True)


def without_indexes(connection: Connection) -> list[str]:
    """Drop the indexes of spans and traces; returns how to make them again."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN "
    else:
        query = "SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'ix_%' AND tablename IN "
    rows = connection.execute(text(f"{query} ('spans', 'traces')")).all()
    for name, _ in rows:
        connection.execute(text(f"DROP INDEX {name}"))
    return [row[1] for row in rows]


def copied(connection: Connection, copy: int) -> None:
    """Copy what was written, with other ids and a little later."""
    shift = copy * DAY // (SPANS // PER_TRACE)
    for table, moved in (
        (spans, ("start_ns", "end_ns")), (traces_table, ("start_ns", "end_ns", "root_start_ns")),
        (span_values, ("start_ns",)),
    ):  # fmt: skip
        names = [column.name for column in table.columns]
        values = [
            f"'{copy:02x}' || substr({name}, 3)" if name == "trace_id"
            else f"CASE {name} WHEN 0 THEN 0 ELSE {name} + {shift} END" if name in moved else name
            for name in names
        ]  # fmt: skip
        connection.execute(text(
            f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {', '.join(values)} FROM {table.name} "
            f"WHERE trace_id LIKE '00%'"
        ))  # fmt: skip


def executed(connection: Connection, first: int, now_ns: int) -> None:
    """Write executions of a month; one in a hundred fails, most with the same error."""
    count = min(100_000, EXECUTIONS - first)
    columns = [column.name for column in EXECUTION_ROWS.table.columns]
    insert = str(EXECUTION_ROWS.upsert(connection.dialect))
    rows = {}
    for number in range(first, first + count):
        at = now_ns - 30 * DAY + number * 30 * DAY // EXECUTIONS
        id_ = str(uuid.UUID(int=(at // 1_000_000 << 80) | 7 << 76 | 2 << 62 | number))
        is_failed = number % 100 == 7
        values = {
            "execution_id": id_, "workspace_id": WORKSPACE, "project": "default", "workflow_id": f"w{number % 30}",
            "workflow": f"workflow {number % 30}", "version": "1", "trace_id": f"e{number:031x}",
            "span_id": f"{number:016x}", "created_ns": at, "rank": 2, "status": "failed" if is_failed else "completed",
            "started_ns": at, "finished_ns": at + S + number % 977 * 1_000_000, "last_seen_ns": at, "process": "p",
            "step_count": 1, "completed_step_count": 1, "failed_step_count": 0, "skipped_step_count": 0,
            "error_type": "OSError" if is_failed else None,
            "error_message": f"disk {number if number == 7 else 'x'} is full" if is_failed else None,
            "inputs": f'{{"order":{number},"mode":"nightly"}}', "number": number,
        }  # fmt: skip
        rows[id_] = tuple(values.get(name) for name in columns)
    partitions.ensure(connection, {month for month in map(partitions.month_of_id, rows) if month is not None})
    insert_many(connection, insert, list(rows.values()))
    InputValues(connection.dialect).note(connection, rows)


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
            outcome = search(connection, WORKSPACE, "default", request, taken.append)
            return len(taken), outcome.inspected

        took, (count, inspected) = ms(database, find)
        yield query, took, f"{count} of {inspected} inspected"
    for name, conditions in LISTS.items():
        selection = ExecutionFilter(workspace=WORKSPACE, **conditions)  # type: ignore[arg-type]
        took, page = ms(database, lambda c, selection=selection: read_page(c, selection, 50))  # type: ignore[misc]
        yield f"executions by {name}", took, f"{page.total} executions"
    if SPANS > MAX_OF_METRICS:
        return
    steps = TimeSteps.over(now_ns - DAY, now_ns, 360 * S)
    for query in METRICS:
        took, answer = ms(database, lambda c, q=query: compute(c, WORKSPACE, "default", parse(q), steps))  # type: ignore[misc]
        yield query, took, f"{len(answer.series)} series of {answer.inspected_spans:,} spans"


def main(console: Console) -> list[Line]:
    """Measure on every database that is installed."""
    now_ns = time.time_ns()
    lines: list[Line] = []
    for name, url in databases.installed(console):
        database = Database(url)
        started = time.perf_counter()
        fill(database, now_ns)
        rate = SPANS / (time.perf_counter() - started)
        table = Table(title=f"{name}: {SPANS:,} spans of a day (written and copied at {rate:,.0f} a second)")
        for column in ("query", "ms", "result"):
            table.add_column(column, justify="right" if column == "ms" else "left")
        slowest = ("", 0.0)
        for query, took, result in measure(database, now_ns):
            table.add_row(query, f"{took:,.1f}", result)
            if took > slowest[1] and query not in METRICS:
                slowest = (query, took)
        console.print(table)
        database.close()
        subject = f"the slowest of {len(SEARCHES) + len(LISTS)} searches of {SPANS:,} spans, {name}: `{slowest[0]}`"
        lines.append(against(subject, slowest[1], "ms", "the goal", GOAL_MS, goal=1.0))
    return lines


if __name__ == "__main__":
    main(Console())
