"""Weeks of runs for the pictures in the docs: nightly, hourly and failing workflows, as events of the past."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    PathStep,
    SkipReason,
    StepFinished,
    StepLogged,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph_exporter.store.writer import open_writer

MINUTE, HOUR, DAY = 60, 3_600, 86_400
REFUSED = Failure("psycopg.OperationalError", 'connection to server at "db-orders", port 5432 refused')
"""A cause that several workflows share."""


class Step(NamedTuple):
    """A step of the past: how long it takes in seconds, and after which steps."""

    name: str
    seconds: float
    after: tuple[str, ...] = ()


NIGHTLY = (
    Step("open_window", 4),
    *(Step(f"extract_{name}", seconds, ("open_window",))
      for name, seconds in (("orders", 540), ("customers", 360), ("stock", 300), ("prices", 140))),
    *(Step(f"clean_{name}", seconds, (f"extract_{name}",))
      for name, seconds in (("orders", 180), ("customers", 120), ("stock", 100), ("prices", 48))),
    Step("join", 240, ("clean_orders", "clean_customers", "clean_stock", "clean_prices")),
    Step("check_totals", 95, ("join",)),
    Step("publish", 180, ("check_totals",)),
)  # fmt: skip
HOURLY = (Step("connect", 2), Step("load", 70, ("connect",)), Step("index", 25, ("load",)))
BACKUP = (Step("snapshot", 300), Step("copy", 1_100, ("snapshot",)), Step("verify", 150, ("copy",)))


def write(database: str) -> dict[str, str]:
    """Write the history into a new database (its URL); ids of runs by name: ``slow``, ``failed``, ``open``."""
    rng = random.Random(11)  # noqa: S311
    now = time.time()
    writer = open_writer(database)
    runs: dict[str, str] = {}

    def add(name: str, events: list[Event]) -> None:
        runs[name] = events[0].execution.execution_id
        writer.apply(events)

    for day in range(21, 0, -1):
        add("usual", run(rng, "nightly_sales", NIGHTLY, now - day * DAY - 90 * MINUTE))
        add("backup", run(rng, "backup", BACKUP, now - day * DAY - 2 * HOUR))
    add("slow", run(rng, "nightly_sales", NIGHTLY, now - 100 * MINUTE, {"extract_orders": 3.1}))
    for hour in range(21 * 24, 0, -1):
        start = now - hour * HOUR + 5 * MINUTE
        is_slower = {"load": 1.7} if hour < 60 else {}
        add("stock", run(rng, "import_stock", HOURLY, start, is_slower))
        fails = hour <= 3 or rng.random() < 0.004
        add("failed" if fails else "orders", run(rng, "import_orders", HOURLY, start, fails="connect" if fails else ""))
        if hour % 4 == 0:
            add("ledger", run(rng, "export_ledger", HOURLY, start, fails="connect" if hour == 8 else ""))
    add("open", run(rng, "backup", BACKUP, now - 95 * MINUTE, stops_in="copy"))
    writer.close()
    return runs


def run(
    rng: random.Random,
    workflow: str,
    steps: Sequence[Step],
    start_s: float,
    factors: dict[str, float] | None = None,
    *,
    fails: str = "",
    stops_in: str = "",
) -> list[Event]:
    """A run of the past. The step ``fails`` fails; in ``stops_in`` it still is."""
    execution = new_execution_ref(workspace="default", workflow=workflow, workflow_id=workflow_id("default", workflow))
    refs = dict(_refs(execution, steps))
    start_ns = round(start_s * NS)
    ends: dict[str, int] = {}
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=start_ns, step_count=len(steps))]
    path: dict[str, tuple[PathStep, ...]] = {"": ()}
    failed = False
    for step in steps:
        ref, last = refs[step.name], max(step.after, key=lambda name: ends.get(name, 0), default="")
        begin = max(ends.get(last, start_ns), max(ends.values(), default=0) if failed else 0) + 3_000_000
        length = round(step.seconds * rng.lognormvariate(0, 0.05) * (factors or {}).get(step.name, 1) * NS)
        if failed or (stops_in and any(name not in ends for name in step.after)):
            if failed:
                events.append(StepSkipped(step=ref, time_ns=begin, reason=SkipReason.UPSTREAM_FAILED))
            continue
        if step.name == stops_in:
            return [
                *events,
                StepStarted(step=ref, time_ns=begin),
                Heartbeat(execution=execution, time_ns=time.time_ns()),
            ]
        failed = step.name == fails
        ends[step.name] = begin + length
        path[step.name] = (*path[last], PathStep(ref.step_id, step.name, length))
        if failed:
            for second, text in ((0.2, "connecting to db-orders:5432"), (1.4, "no answer, trying once more")):
                events.append(
                    StepLogged(step=ref, time_ns=begin + round(second * NS), sequence=len(events), message=text)
                )
        events.append(
            StepFinished(
                step=ref, time_ns=ends[step.name], attempt=1, started_ns=begin, attempt_started_ns=begin, run_ns=length,
                status=StepStatus.FAILED if failed else StepStatus.COMPLETED, failure=REFUSED if failed else None,
                dependency_ns=begin - start_ns,
            )
        )  # fmt: skip
    last = max(ends, key=lambda name: ends[name])
    events.append(
        ExecutionFinished(
            execution=execution, time_ns=ends[last], started_ns=start_ns, step_count=len(steps),
            status=ExecutionStatus.FAILED if failed else ExecutionStatus.COMPLETED, failure=REFUSED if failed else None,
            completed_step_count=len(ends) - failed, failed_step_count=int(failed),
            skipped_step_count=len(steps) - len(ends), critical_path=path[last],
            work_ns=sum(part.duration_ns for part in path[last]),
        )
    )  # fmt: skip
    return events


def _refs(execution: ExecutionRef, steps: Sequence[Step]) -> Iterator[tuple[str, StepRef]]:
    for order, step in enumerate(steps):
        yield (
            step.name,
            StepRef(
                execution=execution,
                step_id=step_id(execution.workflow_id, step.name),
                name=step.name,
                span_id=new_span_id(),
                parent_span_id=execution.span_id,
                step_order=order,
                depends_on=tuple(step_id(execution.workflow_id, name) for name in step.after),
            ),
        )
