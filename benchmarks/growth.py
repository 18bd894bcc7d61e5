"""What grows with the number of executions, from a thousand to ten million of one database: writing, a page of a list,
metrics, trends.

The database grows from one size to the next. Executions of a year, of three steps each, are written with their rollups;
from ``GROWTH_COUNTED`` on (by default a million) the database copies them into further workflows, without steps: what
is measured is the first one. ``GROWTH_SIZES=1000,1000000`` names other sizes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import databases
from metrics import WORKFLOW, WORKSPACE, executions
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, String, bindparam, insert, select, text
from sqlalchemy.sql import func
from summary import SCALE, Line, against, scaled
from writer import STEPS, build_execution

from tachograph.clock import NS
from tachograph.events import Event, ExecutionStatus
from tachograph_exporter.api.executions import read_page
from tachograph_exporter.store import partitions
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.definitions import find_definition
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
from tachograph_exporter.store.schema import workflow_definitions, workflow_executions, workflow_step_executions
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.metrics import read_metrics
from tachograph_exporter.views.trends import bucket_range, read_trends

SIZES: Final = sorted(
    {scaled(int(size), 20) for size in os.environ.get("GROWTH_SIZES", "1000,10000,100000,1000000").split(",")}
)
COUNTED: Final = scaled(int(os.environ.get("GROWTH_COUNTED", "1000000")), 20)
ROUNDS: Final = scaled(9, 1)
WRITTEN: Final = scaled(300, 5)
CHUNK: Final = 5_000


class Growing:
    """A database to which executions are added."""

    def __init__(self, database: Database, now_s: int) -> None:
        self.database = database
        self.now_s = now_s
        self.size = self.counted = self.copies = 0
        database.run(self._begin)

    def _begin(self, connection: Connection) -> None:
        now = time.time_ns()
        add_workspace(connection, "default", now)
        add_project(connection, "default", "default", now)
        values = {"workspace_id": WORKSPACE, "created_ns": now, "updated_ns": now}
        connection.execute(insert(workflow_definitions).values(id=WORKFLOW, name="bench", **values))

    def grow(self, size: int) -> None:
        """Let it have so many executions."""
        if (count := min(size, COUNTED) - self.counted) > 0:
            for rows, steps in _chunks(count, self.now_s):
                self.database.run(lambda c, rows=rows, steps=steps: _write(c, rows, steps), is_long=True)  # type: ignore[misc]
            self.counted += count
            self.size += count
            self.database.run(lambda c: rollup_rebuild.rebuild_one(c, (WORKSPACE, WORKFLOW)), is_long=True)
        while self.size < size:
            self.copies += 1
            self.size += self.database.run(self._copy, is_long=True)
        self.database.run(lambda c: c.exec_driver_sql("ANALYZE"), is_long=True)

    def _copy(self, connection: Connection) -> int:
        """Copy all of the workflow's executions, with other ids, into another workflow."""
        key, of = workflow_executions.c.execution_id, bindparam("workflow", type_=String)
        mark = bindparam("mark", type_=String)
        changed: dict[str, Any] = {
            "execution_id": func.substr(key, 1, 24).op("||")(mark).op("||")(func.substr(key, 29)),
            "workflow_id": of,
            "workflow": of,
        }
        columns = [column for column in workflow_executions.c if column.name != "number"]
        source = select(*[changed.get(column.name, column) for column in columns]).where(
            workflow_executions.c.workflow_id == WORKFLOW
        )
        statement = insert(workflow_executions).from_select([column.name for column in columns], source)
        parameters = {"mark": f"{self.copies:04x}", "workflow": f"bench-{self.copies}"}
        return int(connection.execute(statement, parameters).rowcount)


def _chunks(count: int, now_s: int) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    for row, own in executions(count, now_s):
        rows.append(row)
        steps += own
        if len(rows) == CHUNK:
            yield rows, steps
            rows, steps = [], []
    if rows:
        yield rows, steps


def _write(connection: Connection, rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    months = {partitions.month_of_id(row["execution_id"]) for row in (rows[0], rows[-1])}
    partitions.ensure(connection, [month for month in months if month is not None])
    connection.execute(insert(workflow_executions), rows)
    connection.execute(insert(workflow_step_executions), steps)


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of ``work``; once before, so that all is prepared."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def measure(growing: Growing, writer: StoreWriter) -> dict[str, float]:
    """What each costs at this size, in milliseconds."""
    database, now_ns = growing.database, time.time_ns()
    newest = ExecutionFilter(workspace=WORKSPACE, workflow_id=WORKFLOW)
    failed = ExecutionFilter(workspace=WORKSPACE, workflow_id=WORKFLOW, status=(ExecutionStatus.FAILED,))
    low_s, high_s = bucket_range("1d", None, now_ns)
    unaligned_ns = now_ns - 364 * 86_400 * NS - 1234 * NS

    def written() -> None:
        events: list[Event] = [event for _ in range(WRITTEN) for event in build_execution("growing")]
        writer.apply(events)

    def trends(connection: Connection) -> object:
        workflow = find_definition(connection, WORKSPACE, WORKFLOW)
        assert workflow is not None
        return read_trends(connection, (WORKSPACE, WORKFLOW), workflow, "1d", low_s, high_s, None)

    return {
        f"an execution of {STEPS} steps written": milliseconds(written) / WRITTEN,
        "the newest page of a list": milliseconds(lambda: database.look(lambda c: read_page(c, newest, 50))),
        "… of the failed ones": milliseconds(lambda: database.look(lambda c: read_page(c, failed, 50))),
        "`metrics` of all time": milliseconds(
            lambda: database.look(lambda c: read_metrics(c, WORKSPACE, WORKFLOW, None, None, now_ns))
        ),
        "`metrics` of an unaligned year": milliseconds(
            lambda: database.look(lambda c: read_metrics(c, WORKSPACE, WORKFLOW, unaligned_ns, None, now_ns))
        ),
        "`trends` of 180 days": milliseconds(lambda: database.look(trends)),
    }


def main(console: Console) -> list[Line]:
    """Print the table."""
    lines: list[Line] = []
    for name, url in databases.installed(console):
        database = Database(url)
        growing, writer = Growing(database, int(time.time())), StoreWriter(database)
        results: dict[int, dict[str, float]] = {}
        for size in SIZES:
            growing.grow(size)
            results[size] = measure(growing, writer)
        table = Table("ms", *[f"{size:,}" for size in SIZES], "last / first", title=f"executions on {name}")
        first, last = results[SIZES[0]], results[SIZES[-1]]
        for what, least in first.items():
            cells = [f"{results[size][what]:.2f}" for size in SIZES]
            table.add_row(what, *cells, f"{last[what] / least:.2f}")
            subject = f"{what}, {SIZES[-1]:,} executions, {name}"
            lines.append(against(subject, last[what], "ms", f"the same of {SIZES[0]:,}", least))
        console.print(table)
        if not database.is_sqlite and SCALE >= 1:
            size = database.look(lambda c: c.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
            console.print(f"{name}: {size / 2**30:.1f} GiB")
        database.close()
    return lines


if __name__ == "__main__":
    main(Console())
