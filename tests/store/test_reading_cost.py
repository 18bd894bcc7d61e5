"""What is read at every scrape and for every list costs what runs, not what is recorded.

Counted in steps of SQLite's virtual machine, which are the same on every machine; on PostgreSQL the plan is looked at.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select, text, update
from tests.store.test_writer import RUN

from tachograph.spans.semconv import EXECUTION_ID
from tachograph_exporter.api.executions import read_page
from tachograph_exporter.store import definitions, executions, removal, running, windows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.recorded_search import recorded_traces
from tachograph_exporter.store.schema import (
    series_unsettled,
    workflow_definitions,
    workflow_executions,
    workflow_step_executions,
)
from tachograph_exporter.store.series import rows
from tachograph_exporter.store.span_criteria import SpanCriteria, Window
from tachograph_exporter.store.writer import StoreWriter

RECORDED = 4_000
OPEN = 3
ERROR = ("error_type", "error_message", "error_stack")
EVERY = 100
"""The handler is called after this many steps of the virtual machine."""


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    """Many executions that have ended, and a few that run or are not settled."""
    database = Database(any_database_url)
    StoreWriter(database).apply(RUN)

    def fill(connection: Connection) -> None:
        (execution,) = connection.execute(select(workflow_executions)).mappings().all()
        step = connection.execute(select(workflow_step_executions)).mappings().first()
        assert step is not None
        ids = [f"{i:032x}" for i in range(RECORDED)]
        times = ("created_ns", "started_ns", "finished_ns", "last_seen_ns")
        connection.execute(
            insert(workflow_executions),
            [
                {**execution, "execution_id": id_, "number": 10 + i, **{name: execution[name] + i for name in times}}
                for i, id_ in enumerate(ids)
            ],
        )
        # Nearly all went well, one after the other.
        good = {**step, "attempt": 1, **dict.fromkeys(ERROR)}
        connection.execute(
            update(workflow_executions).where(workflow_executions.c.number >= 10).values(dict.fromkeys(ERROR))
        )
        connection.execute(insert(workflow_step_executions), [{**good, "execution_id": id_} for id_ in ids])
        running_ids = ids[:OPEN]
        for table in (workflow_executions, workflow_step_executions):
            connection.execute(update(table).where(table.c.execution_id.in_(running_ids)).values(status="running"))
        connection.execute(insert(series_unsettled), [{"execution_id": id_} for id_ in ids[OPEN : 2 * OPEN]])

    database.run(fill)
    yield database
    database.close()


def owner(connection: Connection) -> tuple[str, str]:
    row = connection.execute(select(workflow_definitions.c.workspace_id, workflow_definitions.c.id)).one()
    return row[0], row[1]


def executions_of(connection: Connection, workspace: str, **conditions: Any) -> Any:
    return read_page(connection, ExecutionFilter(workspace=workspace, **conditions), 50)


READS: dict[str, Callable[[Connection, str, str], Any]] = {
    "running": lambda c, _, __: running.running(c),
    "series": lambda c, _, __: rows.news(c, 0),
    "open executions": lambda c, _, __: executions.open_executions(c),
    "open by status": lambda c, workspace, _: executions.open_counts(c, workspace),
    "open of a workflow": lambda c, workspace, workflow: executions.open_counts(c, workspace, workflow, 0),
    "open by workflow": lambda c, workspace, _: executions.open_by_workflow(c, workspace),
    "a workflow": lambda c, workspace, workflow: definitions.overview(c, workspace, workflow),
    "a window": lambda c, workspace, _: windows.executions_within(
        c, workspace, (RUN[0].time_ns + 9, RUN[0].time_ns + 19), 99
    ),
    "a list by error": lambda c, workspace, _: executions_of(c, workspace, error="no such text"),
    "a list by input": lambda c, workspace, _: executions_of(c, workspace, input="order=77"),
    "what took long": lambda c, workspace, _: list(
        recorded_traces(c, workspace, [SpanCriteria(min_ns=1 << 50)], Window(), "run ")
    ),
    "what failed": lambda c, workspace, _: list(
        recorded_traces(c, workspace, [SpanCriteria(status=2)], Window(), "run ")
    ),
    "a run by an attribute with its id": lambda c, workspace, _: list(
        recorded_traces(c, workspace, [SpanCriteria(values=((EXECUTION_ID, "1"),))], Window(), "run ")
    ),
    "removal is refused": lambda c, workspace, workflow: removal.remove_workflow(c, workspace, workflow),
}


def explained(connection: Connection, read: Callable[[Connection, str, str], Any]) -> str:
    """How PostgreSQL runs the queries of a read."""
    key = owner(connection)
    queries: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT") and "set_config" not in statement:
            queries.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    read(connection, *key)
    event.remove(connection, "before_cursor_execute", note)
    lines: list[str] = []
    for statement, parameters in queries:
        plan = connection.exec_driver_sql(f"EXPLAIN ANALYZE {statement}", parameters)
        lines += plan.scalars().all()
    return "\n".join(lines)


def thrown_away(plan: str) -> int:
    """How many rows scans looked at for nothing, or read whole tables for a hash join."""
    removed = re.findall(r"Rows Removed by (?:Join )?Filter: (\d+)", plan)
    scanned = re.findall(r"Seq Scan .*\(actual .*rows=(\d+)", plan)
    return sum(map(int, [*removed, *scanned]))


def test_a_read_costs_what_runs(database: Database) -> None:
    workspace, workflow = database.look(owner)
    if not database.is_sqlite:
        # Of a table that grows fast the planner has no statistics for a minute or more.
        for statement in ("SELECT 1", "ANALYZE"):
            database.run(lambda connection, statement=statement: connection.execute(text(statement)))  # type: ignore[misc]
            for name, read in READS.items():
                plan = database.run(lambda c, read=read: explained(c, read))  # type: ignore[misc]
                assert thrown_away(plan) < RECORDED / 10, (name, plan)
        return

    def counted(connection: Connection, read: Callable[[Connection, str, str], Any]) -> int:
        driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        calls = 0

        def count() -> int:
            nonlocal calls
            calls += 1
            return 0

        driver.set_progress_handler(count, EVERY)
        try:
            read(connection, workspace, workflow)
        finally:
            driver.set_progress_handler(None, 0)
        return calls * EVERY

    for name, read in READS.items():
        # A look at each recorded execution would be several steps for each of them.
        assert database.run(lambda c, read=read: counted(c, read)) < RECORDED, name  # type: ignore[misc]


def test_what_runs_is_counted(database: Database) -> None:
    entry = database.look(running.running)[database.look(owner)]
    assert (entry.executions, entry.steps, entry.unsettled) == (OPEN, OPEN, OPEN)
    stored = database.look(lambda c: c.execute(select(func.min(workflow_executions.c.started_ns))).scalar_one())
    assert entry.oldest_ns == stored
