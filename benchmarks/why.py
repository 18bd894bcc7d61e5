"""How long *why* takes in a history of many runs, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from functools import partial

import databases
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    PathStep,
    Resources,
    StepFinished,
    StepStatus,
)
from tachograph.identity import StepRef, new_execution_ref, new_span_id, step_id, workflow_id, workspace_id
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.causes.reading import BACK_SECONDS, read_why
from tachograph_exporter.views.schemas.why import WhyAnswer

RUNS = int(os.environ.get("WHY_RUNS", "90000"))
WORKFLOWS = 20
STEPS = 4
WEEKS = 4
ROUNDS = 15
BATCH_RUNS = 1_000
WORKSPACE = workspace_id("default")


def run_events(rng: random.Random, workflow: str, start_ns: int, *, is_slow: bool) -> tuple[str, list[Event]]:
    """A run of a chain of steps; a slow one has another version, and its last step takes eight times as long."""
    owner = workflow_id("default", workflow)
    execution = new_execution_ref(
        workspace="default", workflow=workflow, workflow_id=owner, version="1.8" if is_slow else "1.7"
    )
    inputs = json.dumps({"rows": rng.randrange(1_000), "region": rng.choice("abcd"), "tenant": rng.randrange(50)})
    events: list[Event] = [
        ExecutionStarted(
            execution=execution,
            time_ns=start_ns,
            step_count=STEPS,
            inputs=inputs,
            process=f"h/b.1/{rng.randrange(4)}/1",
        )
    ]
    at, path, before = start_ns, [], ""
    for i in range(STEPS):
        length = round(20 * NS * rng.lognormvariate(0, 0.1) * (8 if is_slow and i == STEPS - 1 else 1))
        step = StepRef(
            execution=execution, step_id=step_id(owner, f"step {i}"), name=f"step {i}", span_id=new_span_id(),
            parent_span_id=execution.span_id, step_order=i, depends_on=(before,) if before else (),
        )  # fmt: skip
        events.append(
            StepFinished(
                step=step, time_ns=at + length, status=StepStatus.COMPLETED, attempt=1, started_ns=at,
                attempt_started_ns=at, dependency_ns=at - start_ns, run_ns=length,
                output=json.dumps({"rows": rng.randrange(1_000)}), resources=Resources(cpu_seconds=length / NS / 3),
            )
        )  # fmt: skip
        path.append(PathStep(step.step_id, step.name, length))
        at, before = at + length, step.step_id
    events.append(
        ExecutionFinished(
            execution=execution, time_ns=at, status=ExecutionStatus.COMPLETED, started_ns=start_ns, step_count=STEPS,
            completed_step_count=STEPS, work_ns=at - start_ns, critical_path=tuple(path),
        )
    )  # fmt: skip
    return execution.execution_id, events


def fill(database: Database) -> tuple[str, str]:
    """Write the history; (id of a slow run, id of a usual one)."""
    rng, writer = random.Random(1), StoreWriter(database)
    end_ns = time.time_ns()
    usual = slow = ""
    events: list[Event] = []
    for number in range(RUNS):
        start_ns = end_ns - (RUNS - number) * WEEKS * 7 * 86_400 * NS // RUNS
        workflow, is_slow = f"workflow {number % WORKFLOWS}", number >= RUNS - 10 * WORKFLOWS
        execution_id, told = run_events(rng, workflow, start_ns, is_slow=is_slow)
        events += told
        if is_slow:
            slow = execution_id
        else:
            usual = execution_id
        if (number + 1) % BATCH_RUNS == 0:
            writer.apply(events)
            events = []
    writer.apply(events)
    return slow, usual


def ask(execution_id: str, connection: Connection) -> WhyAnswer:
    """The answer for a run."""
    return read_why(connection, WORKSPACE, execution_id, BACK_SECONDS * NS, time.time_ns())


def main(console: Console) -> None:
    """Print the time of an answer for a slow and for a usual run."""
    table = Table("database", "run", "median", "slowest", "first cause", title=f"why, {RUNS:,} runs of history")
    with databases.sqlite() as sqlite, databases.postgresql() as postgresql:
        for name, url in (("SQLite", sqlite), ("PostgreSQL", postgresql)):
            if url is None:
                continue
            database = Database(url)
            for kind, execution_id in zip(("slow", "usual"), fill(database), strict=True):
                took, first = [], ""
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    answer = database.look(partial(ask, execution_id))
                    took.append((time.perf_counter() - started) * 1000)
                    first = f"{answer.causes[0].kind} {answer.causes[0].subject}" if answer.causes else answer.verdict
                table.add_row(name, kind, f"{statistics.median(took):.0f} ms", f"{max(took):.0f} ms", first)
            database.close()
    console.print(table)
