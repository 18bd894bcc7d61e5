"""One and two processes that write executions of ten steps to one PostgreSQL at the same time, each into workflows of
its own, or both into one. Beside them the database's bulk insert of the same rows, by INSERT and by COPY.

On two processors, one writer and its server use most of both, so the rate of two says little; what one would be kept
waiting does: ``alone`` is the rate of two that take turns with one lock, as all writers do that register workflows.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any, Final

import databases
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text
from summary import Line, against, scaled
from writer import STEPS, build_execution, clear, copied, inserted

from tachograph.recording.listener_queue import MAX_BATCH
from tachograph_exporter.store import locking
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

EXECUTIONS: Final = scaled(1_500, 20)
ROUNDS: Final = scaled(3, 1)


def write(url: str, workflow: str, is_alone: bool, barrier: Barrier, answers: Any) -> None:
    """Write executions once all are ready; puts the processor time that it took, in seconds."""
    database = Database(url)
    writer = StoreWriter(database)
    events = [event for _ in range(EXECUTIONS) for event in build_execution(workflow)]
    writer.apply(build_execution(workflow))
    barrier.wait()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for i in range(0, len(events), MAX_BATCH):
        part = events[i : i + MAX_BATCH]
        if is_alone:
            writer.stored(database.run(locking.alone(lambda c, part=part: writer.put(c, part))))  # type: ignore[misc]
        else:
            writer.apply(part)
    after = resource.getrusage(resource.RUSAGE_SELF)
    barrier.wait()
    answers.put(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    database.close()


def rate(url: str, workflows: list[str], *, is_alone: bool = False) -> tuple[float, float]:
    """Executions per second of a process for each of these workflows, and seconds of processor time for 1,000."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(len(workflows) + 1), context.Queue()
    processes = [context.Process(target=write, args=(url, name, is_alone, barrier, answers)) for name in workflows]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    took = time.perf_counter() - started
    used = sum(answers.get() for _ in processes)
    for process in processes:
        process.join()
    count = EXECUTIONS * len(workflows)
    return count / took, used / count * 1_000


def main(console: Console) -> list[Line]:
    """Print the table."""
    with databases.postgresql() as url:
        if url is None:
            console.print("PostgreSQL is not installed")
            return []
        database = Database(url)
        sides: dict[str, Callable[[], tuple[float, float]]] = {
            "bulk insert, one process": lambda: (inserted(database), 0.0),
            "COPY, one process": lambda: (copied(database), 0.0),
            "one writer": lambda: rate(url, ["a"]),
            "two writers, two workflows": lambda: rate(url, ["a", "b"]),
            "two writers, one workflow": lambda: rate(url, ["a", "a"]),
            "two writers, alone in turn": lambda: rate(url, ["a", "b"], is_alone=True),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(ROUNDS + 1):
            for name, side in sides.items():
                measured[name].append(side())
            database.run(clear)
            with contextlib.suppress(Exception):
                database.run(_analyze)
            if number == 0:
                measured = {name: [] for name in sides}
        database.close()
    table = Table("", "executions/s", "steps/s", "/ one writer", "/ bulk insert", "ms of processor per execution")
    ones = [value for value, _ in measured["one writer"]]
    bulks = [value for value, _ in measured["bulk insert, one process"]]
    for name, values in measured.items():
        rates = [value for value, _ in values]
        used = statistics.median(value for _, value in values)
        table.add_row(
            name, f"{statistics.median(rates):,.0f}", f"{statistics.median(rates) * STEPS:,.0f}",
            f"{statistics.median(a / b for a, b in zip(rates, ones, strict=True)):.2f}",
            f"{statistics.median(a / b for a, b in zip(rates, bulks, strict=True)):.2f}",
            f"{used:.2f}" if used else "",
        )  # fmt: skip
    console.print(table)
    one = statistics.median(ones)
    return [
        against(
            f"{name}, PostgreSQL, executions of {STEPS} steps", statistics.median(value for value, _ in measured[name]),
            "/s", "one writer", one, is_rate=True, goal=goal,
            ratio=statistics.median(value / each for (value, _), each in zip(measured[name], ones, strict=True)),
        )
        for name, goal in (("two writers, two workflows", 1.7), ("two writers, alone in turn", None))
    ]  # fmt: skip


def _analyze(connection: Connection) -> None:
    connection.execute(text("ANALYZE workflow_executions, workflow_step_executions"))


if __name__ == "__main__":
    main(Console())
