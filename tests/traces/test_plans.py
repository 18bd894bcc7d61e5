"""No search and no list reads a whole table of spans, traces or runs: each finds what it reads by an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event
from tests.store.test_writer import RUN
from tests.traces.test_rare_traces import HOUR, START, TRACES, W, fill

from tachograph.events import ExecutionStatus
from tachograph_exporter.api.executions import read_page
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.execution_list import SORTS, ExecutionFilter, Order
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.traces.search import Search, search
from tachograph_exporter.traces.time_steps import TimeSteps
from tachograph_exporter.traces.trace_metrics import compute
from tachograph_exporter.traces.traceql.parser import parse

SEARCHES = (
    "{ }",
    '{ resource.service.name = "service" }',
    '{ name = "step" }',
    '{ name =~ "st.*" }',
    '{ name = "step" && duration > 50s }',
    '{ name = "step" && span.attempt = 2 }',
    "{ status = error }",
    "{ nestedSetParent < 0 && status = error }",
    '{ resource.service.name = "service" && status = error }',
    "{ duration > 50s }",
    "{ traceDuration > 50s }",
    '{ rootName = "run" }',
    '{ rootServiceName = "service" }',
    '{ span.customer = "c" && span.region = "r" }',
    '{ span.customer =~ "c.*" }',
    '{ span.customer = "c" && duration > 50s }',
    '{ span.customer = "none" }',
    '{ name = "run" } >> { status = error } | count() > 0',
    "{ kind = server }",
)
METRICS = (
    "{ } | rate() by (name)",
    "{ status = error } | rate()",
    '{ name = "step" } | quantile_over_time(duration, 0.9)',
    "{ nestedSetParent < 0 } | rate() by (resource.service.name)",
)
LISTS: dict[str, dict[str, Any]] = {
    "all": {},
    "of a workflow": {"workflow_id": RUN[0].execution.workflow_id},
    "failed": {"status": (ExecutionStatus.FAILED,)},
    "of a time": {"from_ns": START, "to_ns": START + HOUR},
    "by error": {"error": "no such text"},
    "by input": {"input": "order=77"},
    "by the beginning of the id": {"id": RUN[0].execution.execution_id[:9]},
    "by a step": {"step": "a"},
    "by the status of a step": {"step_status": ("failed",)},
}
LARGE = ("spans", "traces", "span_values", "span_resources", "workflow_executions", "workflow_step_executions",
         "workflow_step_attempts", "workflow_rollups", "input_values")  # fmt: skip


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    opened = Database(any_database_url)
    StoreWriter(opened).apply(RUN)
    fill(opened)
    yield opened
    opened.close()


def searched(query: str) -> Callable[[Connection], object]:
    request = Search(query=parse(query), start_ns=START, end_ns=START + TRACES * HOUR, limit=20)
    return lambda connection: search(connection, W, "default", request, lambda found: None)


def measured(query: str) -> Callable[[Connection], object]:
    steps = TimeSteps.over(START, START + TRACES * HOUR, HOUR)
    return lambda connection: compute(connection, W, "default", parse(query), steps)


def listed(conditions: dict[str, Any], order: Order) -> Callable[[Connection], object]:
    selection = ExecutionFilter(workspace=W, **conditions)
    return lambda connection: read_page(connection, selection, 50, order=order)


def plans(connection: Connection, read: Callable[[Connection], object]) -> list[str]:
    """How the database runs the queries of a read."""
    queries: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")) and "set_config" not in statement:
            queries.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    read(connection)
    event.remove(connection, "before_cursor_execute", note)
    assert queries
    if connection.dialect.name != "sqlite":
        # A small table is read whole; so it says which one cannot be read otherwise.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return [
        f"{row[-1]}    {statement}"
        for statement, parameters in queries
        for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
    ]


_SCANNED = re.compile(r"^\W*(?:->\s+)?(?:SCAN|Seq Scan on|Parallel Seq Scan on) (\w+)(?: USING INDEX (\w+))?")


def test_no_search_and_no_list_reads_a_whole_table(database: Database) -> None:
    reads = {f"search {query}": searched(query) for query in SEARCHES}
    reads |= {f"metrics {query}": measured(query) for query in METRICS}
    reads |= {
        f"list {name} sorted by {sort}": listed(conditions, Order(sort))
        for name, conditions in LISTS.items()
        for sort in (SORTS if not conditions else SORTS[:1])
    }
    scanned = {}
    for name, read in reads.items():
        for line in database.run(lambda c, read=read: plans(c, read)):  # type: ignore[misc]
            table = _SCANNED.match(line)
            # What failed, newest first, has an index of its own, which is read as far as it is needed.
            if table is not None and table[1].startswith(LARGE) and table[2] != "ix_steps_failed":
                scanned[name] = line
    assert not scanned
