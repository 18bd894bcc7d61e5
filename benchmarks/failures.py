"""What groups of failures cost the writer: their part of its processor time, while a part of the runs fails.

Every failure has a message of its own, with values of several kinds, and the same stack of twelve functions for each of
seven causes. Measured in the same batches: the processor time of the process, and of what finds, writes and
checks the groups.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import databases
import msgspec
from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled
from writer import STEPS, build_execution

from tachograph.events import Event, ExecutionFinished, ExecutionStatus, Failure, StepFinished, StepStatus
from tachograph.recording.listener_queue import MAX_BATCH
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.failure_groups import occurrences
from tachograph_exporter.store.writer import StoreWriter

EXECUTIONS = scaled(1_500, 40)
ROUNDS = scaled(5, 1)
SHARE = 0.05
KIND = "requests.exceptions.ReadTimeout"
STACK = "Traceback (most recent call last):\n" + "".join(
    f'  File "/srv/app/stage_{i}.py", line {i * 7}, in run_{i}\n    rows = load(source)\n           ^^^^^^^^^^^^\n'
    for i in range(12)
)


def failing_execution(rng: random.Random, cause: str) -> list[Event]:
    """Ten steps, the last of which fails."""
    message = (
        f"record {rng.randrange(10**7)} of '{rng.random()}' is bad ({cause}): HTTPConnectionPool(host='db-"
        f"{rng.randrange(9)}', port=443): Read timed out. (read timeout={rng.random():.3f})"
    )
    events = build_execution()
    last = [event for event in events if isinstance(event, StepFinished)][-1]
    failed: list[Event] = []
    for event in events:
        if event is last:
            failure = Failure(KIND, message, f"{STACK}{KIND}: {message}\n")
            event = msgspec.structs.replace(last, status=StepStatus.FAILED, failure=failure, output=None)
        elif isinstance(event, ExecutionFinished):
            event = msgspec.structs.replace(
                event, status=ExecutionStatus.FAILED, completed_step_count=STEPS - 1, failed_step_count=1,
                failure=Failure(KIND, f'step "step-{STEPS - 1}": {message}'),
            )  # fmt: skip
        failed.append(event)
    return failed


class Spent:
    """Processor time of the calling thread inside functions."""

    def __init__(self) -> None:
        self.ns = 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.ns += time.thread_time_ns() - began

        return measured


def main(console: Console) -> list[Line]:
    """Print the table."""
    table = Table(
        "database", "failing runs", "writer, µs a run", "groups, µs a run", "groups, µs a failing run", "part"
    )
    lines: list[Line] = []
    spent = Spent()
    originals = occurrences.note, occurrences.settle
    rng = random.Random(7)
    for name, url in databases.installed(console):
        database = Database(url)
        writer = StoreWriter(database)
        occurrences.note, occurrences.settle = spent.of(originals[0]), spent.of(originals[1])
        try:
            rounds: list[tuple[float, float]] = []
            for number in range(ROUNDS + 1):
                events: list[Event] = []
                for i in range(EXECUTIONS):
                    is_failing = rng.random() < SHARE
                    events += failing_execution(rng, "abcdefg"[i % 7]) if is_failing else build_execution()
                spent.ns, began = 0, time.process_time_ns()
                for i in range(0, len(events), MAX_BATCH):
                    writer.apply(events[i : i + MAX_BATCH])
                if number:
                    rounds.append(((time.process_time_ns() - began) / 1000, spent.ns / 1000))
        finally:
            occurrences.note, occurrences.settle = originals
            database.close()
        whole, groups = (statistics.median(values) / EXECUTIONS for values in zip(*rounds, strict=True))
        part = statistics.median(groups / whole for whole, groups in rounds)
        table.add_row(
            name, f"{SHARE:.0%}", f"{whole:.0f}", f"{groups:.1f}", f"{groups / SHARE:.0f}", f"{100 * part:.2f} %"
        )  # fmt: skip
        subject = f"groups of failures, of {SHARE:.0%} of the runs, {name}"
        lines.append(against(subject, groups, "µs", "all that the writer does for a run", whole, ratio=part, goal=0.03))
    console.print(table)
    return lines
