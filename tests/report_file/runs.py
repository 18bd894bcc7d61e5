"""Runs for reports: long ones with values that differ, and one whose every text is hostile."""

from __future__ import annotations

import random
from typing import Final

import msgspec
from tests.conftest import make_execution, make_step

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepFinished,
    StepLogged,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

MS: Final = 1_000_000
START: Final = 1_795_000_000_000 * MS
HOSTILE: Final = (
    "</script><script>document.title='broken'</script>", "<!--<script>", "]]>", "\u2028\u2029", "&lt;b&gt;",
    "\"'`${alert(1)}\\u003c/script>", "<img src=x onerror=alert(1)>", "{{7*7}}", "%3Cscript%3E", "\u202eevil",
    "a" * 190, "</style></title>", "javascript:alert(1)", "__proto__", "constructor", "timeline",
)  # fmt: skip
"""Names of steps that would break out of a document, or of an object."""


def record(url: str, events: list[Event]) -> None:
    database = Database(url)
    try:
        StoreWriter(database).apply(events)
    finally:
        database.close()


def long_run(count: int, *, is_open: bool = False, name: str = "long") -> tuple[ExecutionRef, list[Event]]:
    """A run of so many steps: a hundredth fail, each waits for two before it, inputs and outputs differ."""
    chance = random.Random(count)
    run = make_execution(name)
    events: list[Event] = [
        ExecutionStarted(execution=run, time_ns=START, step_count=count, inputs='{"day":"2026-11-30"}')
    ]
    ids: list[str] = []
    end = START
    for i in range(count):
        begin = START + int(i * 900 * MS * chance.uniform(0.98, 1.0))
        length = int(chance.lognormvariate(6, 1) * MS)
        end = max(end, begin + length)
        is_bad = chance.random() < 0.01
        name = f"load part {i:05d} of {chance.choice(['orders', 'customers', 'stock'])}"
        step = make_step(run, name, step_order=i + 1, depends_on=tuple(ids[-2:]))
        ids.append(step.step_id)
        failure = (
            Failure(type="OSError", message=f"disk {chance.getrandbits(32):08x} is full", stack=None)
            if is_bad
            else None
        )
        values = {"path": f"/data/{chance.getrandbits(64):016x}.parquet", "rows": chance.randrange(10**6)}
        events.append(StepFinished(
            step=step, time_ns=begin + length, status=StepStatus.FAILED if is_bad else StepStatus.COMPLETED, attempt=1,
            started_ns=begin, attempt_started_ns=begin, run_ns=length, dependency_ns=begin - START, failure=failure,
            inputs=msgspec.json.encode(values).decode(),
            output=msgspec.json.encode({"sha": f"{chance.getrandbits(128):032x}"}).decode(),
        ))  # fmt: skip
    if not is_open:
        events.append(ExecutionFinished(execution=run, time_ns=end, status=ExecutionStatus.FAILED, started_ns=START,
                                        step_count=count))  # fmt: skip
    return run, events


def hostile_run() -> tuple[ExecutionRef, list[Event]]:
    """A failed run whose names, values, errors and lines are hostile."""
    run = make_execution(HOSTILE[0])
    events: list[Event] = [
        ExecutionStarted(execution=run, time_ns=START, inputs=msgspec.json.encode(list(HOSTILE)).decode())
    ]
    for i, name in enumerate(HOSTILE):
        step = make_step(run, name, step_order=i + 1)
        begin = START + i * 100 * MS
        failure = Failure(type="Bad</script>", message=f"{name} happened", stack=f"{name}\n  at </script>")
        events += [
            StepStarted(step=step, time_ns=begin),
            StepLogged(step=step, time_ns=begin + MS, attempt=1, level="error", message=f"line {name}", sequence=i),
            StepFinished(
                step=step, time_ns=begin + 90 * MS, status=StepStatus.FAILED, attempt=1, started_ns=begin,
                attempt_started_ns=begin, run_ns=90 * MS, failure=failure,
                output=msgspec.json.encode({name: name}).decode(),
            ),
        ]  # fmt: skip
    failure = Failure(type="Bad</script>", message="</script>" * 2_000, stack=None)
    events.append(ExecutionFinished(execution=run, time_ns=START + 3_000 * MS, status=ExecutionStatus.FAILED,
                                    started_ns=START, step_count=len(HOSTILE), failure=failure))  # fmt: skip
    return run, events
