"""Executions of ten steps, from events to committed rows and rollups. Compared with the database's own bulk insert:
the same rows into the same tables with one INSERT per table and batch, without merging and without rollups.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import databases
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, delete, insert
from sqlalchemy.util import await_only
from summary import Line, against, scaled

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    PathStep,
    StepFinished,
    StepReady,
    StepStarted,
    StepStatus,
)
from tachograph.identity import StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph.recording.listener_queue import MAX_BATCH
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.schema import EXECUTION_ROWS, STEP_ROWS, workflow_executions, workflow_step_executions
from tachograph_exporter.store.writer import StoreWriter

EXECUTIONS = scaled(1_500, 20)
STEPS = 10
ROUNDS = scaled(5, 1)


def build_execution(workflow: str = "bench") -> list[Event]:
    """The events that the executor emits for ten sequential steps."""
    run = new_execution_ref(workspace="default", workflow=workflow, workflow_id=workflow_id("default", workflow))
    at = time.time_ns()
    events: list[Event] = [ExecutionStarted(execution=run, time_ns=at, step_count=STEPS, inputs="{}")]
    path: list[PathStep] = []
    before: tuple[str, ...] = ()
    for i in range(STEPS):
        step = StepRef(
            execution=run,
            step_id=step_id(run.workflow_id, f"step-{i}"),
            name=f"step-{i}",
            span_id=new_span_id(),
            parent_span_id=run.span_id,
            step_order=i,
            depends_on=before,
        )
        before = (step.step_id,)
        start, at = at, at + 1_000_000 + i
        path.append(PathStep(step.step_id, step.name, at - start))
        events += [
            StepReady(step=step, time_ns=start),
            StepStarted(step=step, time_ns=start),
            StepFinished(
                step=step,
                time_ns=at,
                status=StepStatus.COMPLETED,
                attempt=1,
                started_ns=start,
                attempt_started_ns=start,
                run_ns=at - start,
                output='{"rows":7}',
            ),
        ]
    events.append(
        ExecutionFinished(
            execution=run,
            time_ns=at,
            status=ExecutionStatus.COMPLETED,
            started_ns=events[0].time_ns,
            step_count=STEPS,
            completed_step_count=STEPS,
            critical_path=tuple(path),
        )
    )
    return events


def settle() -> None:
    """Leave what was prepared to no garbage collection: it is the benchmark's, and no queue holds so much."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def finished_rows(count: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of executions and of their steps, as the writer writes them."""
    batch = Batch(event for _ in range(count) for event in build_execution())
    # Numbered, or they would be in an index that is empty otherwise.
    executions = [(*row[:-1], number) for number, row in enumerate(batch.executions.values(), 1)]
    return executions, list(batch.steps.values())


def recorded(database: Database) -> float:
    """Executions per second through the writer, in batches of the size that its listener queue builds."""
    writer = StoreWriter(database)
    events = [event for _ in range(EXECUTIONS) for event in build_execution()]
    settle()
    start = time.perf_counter()
    for i in range(0, len(events), MAX_BATCH):
        writer.apply(events[i : i + MAX_BATCH])
    return EXECUTIONS / (time.perf_counter() - start)


def inserted(database: Database) -> float:
    """Executions per second by plain bulk inserts of finished rows, with as many executions per transaction."""
    per_batch = MAX_BATCH // (3 * STEPS + 2)
    batches = []
    for i in range(0, EXECUTIONS, per_batch):
        count = min(per_batch, EXECUTIONS - i)
        batches.append(finished_rows(count))
    texts = [str(insert(rows.table).compile(dialect=database.dialect)) for rows in (EXECUTION_ROWS, STEP_ROWS)]
    settle()
    start = time.perf_counter()
    for executions, steps in batches:

        def write(connection: Connection, executions: object = executions, steps: object = steps) -> None:
            insert_many(connection, texts[0], executions)  # type: ignore[arg-type]
            insert_many(connection, texts[1], steps)  # type: ignore[arg-type]

        database.run(write)
    return EXECUTIONS / (time.perf_counter() - start)


def copied(database: Database) -> float:
    """The same by PostgreSQL's COPY."""
    per_batch = MAX_BATCH // (3 * STEPS + 2)
    batches = [finished_rows(min(per_batch, EXECUTIONS - i)) for i in range(0, EXECUTIONS, per_batch)]
    settle()
    start = time.perf_counter()
    for batch_rows in batches:

        def write(connection: Connection, batch_rows: object = batch_rows) -> None:
            driver: Any = connection.connection.driver_connection
            for table, rows in zip((EXECUTION_ROWS, STEP_ROWS), batch_rows, strict=True):  # type: ignore[call-overload]
                await_only(driver.copy_records_to_table(table.table.name, records=rows, columns=table.columns))

        database.run(write)
    return EXECUTIONS / (time.perf_counter() - start)


def clear(connection: Connection) -> None:
    """Delete all rows."""
    for table in (workflow_step_executions, workflow_executions):
        connection.execute(delete(table))


def main(console: Console) -> list[Line]:
    """Print the table."""
    lines: list[Line] = []
    table = Table(
        "database",
        "bulk insert, executions/s",
        "writer, executions/s",
        "steps/s",
        "writer / bulk insert (paired median)",
    )
    for name, url in databases.installed(console):
        database = Database(url)
        bulk: list[float] = []
        ours: list[float] = []
        for number in range(ROUNDS + 1):
            for side, rates in ((inserted, bulk), (recorded, ours)):
                rates.append(side(database))
            if number == 0:
                bulk.clear()
                ours.clear()
        database.run(clear)
        database.close()
        ratio = statistics.median(a / b for a, b in zip(ours, bulk, strict=True))
        rate = statistics.median(ours)
        table.add_row(name, f"{statistics.median(bulk):,.0f}", f"{rate:,.0f}", f"{rate * STEPS:,.0f}", f"{ratio:.2f}")
        subject = f"executions of {STEPS} steps written and totalled, {name}"
        beside = "the database's bulk insert of the rows"
        lines.append(against(subject, rate, "/s", beside, statistics.median(bulk), ratio=ratio, goal=0.7, is_rate=True))
    console.print(table)
    return lines
