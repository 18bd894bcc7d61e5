"""What a log record of a step costs its thread, beside what other handlers cost it; and what a flood costs.

- Processor time of the calling thread for each record: no handler, `logging.FileHandler`, and Tachograph's, in turn.
- A step that logs as fast as it can in three threads: how long it takes, and how much memory it needs.
"""

from __future__ import annotations

import logging
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tachograph
from tachograph.recording import line_buffers, log_handler

ROUNDS = 7
RECORDS = 20_000
FLOOD_SECONDS = 5.0
log = logging.getLogger("benchmark")


def thread_microseconds(work: Callable[[], None], count: int) -> float:
    """Processor time of the calling thread for each of ``count`` parts of the work."""
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / count / 1_000


def emit() -> None:
    """The records of a round."""
    for number in range(RECORDS):
        log.info("row %d of %s", number, "orders")


def costs(file: Path) -> dict[str, float]:
    """Median microseconds for each record, by handler."""
    null, to_file = logging.NullHandler(), logging.FileHandler(file)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    cases = {
        "no handler": (null, None),
        "logging.FileHandler": (to_file, None),
        "Tachograph": (null, logging.INFO),
        "both": (to_file, logging.INFO),
    }
    samples: dict[str, list[float]] = {name: [] for name in cases}
    with tachograph.step("costs"):
        for _ in range(ROUNDS):
            for name, (handler, level) in cases.items():
                log.handlers[:] = [handler]
                log_handler.install(level)
                samples[name].append(thread_microseconds(emit, RECORDS))
    log.handlers[:] = [null]
    to_file.close()
    return {name: statistics.median(values) for name, values in samples.items()}


def flood() -> tuple[int, float, float]:
    """(records, seconds, MiB more than before) of a step that logs as fast as it can in three threads."""
    counts: list[int] = []
    end = time.monotonic() + FLOOD_SECONDS

    def work() -> None:
        count = 0
        while time.monotonic() < end:
            log.info("row %d %s", count, "x" * 200)
            count += 1
        counts.append(count)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with tachograph.step("flood"):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = time.monotonic() - began
    return sum(counts), seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(console: Console) -> None:
    """Print a table, and what a flood costs."""
    log.propagate = False
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as directory:
        recorder = tachograph.configure(
            database=f"sqlite:///{directory}/runs.db", registry=None, spans=False, logs="INFO"
        )
        table = Table("µs of the step's thread for each record", "", "beside no handler")
        measured = costs(Path(directory) / "log.txt")
        for name, cost in measured.items():
            table.add_row(name, f"{cost:.2f}", f"{cost - measured['no handler']:+.2f}")
        console.print(table)
        log_handler.install(logging.INFO)
        records, seconds, mebibytes = flood()
        recorder.flush(60)
        console.print(
            f"a flood of {records:,} records in {FLOOD_SECONDS:g} s: the step took {seconds:.2f} s and "
            f"{mebibytes:.1f} MiB; "
            f"{line_buffers.recorded:,} lines recorded in all, {line_buffers.dropped:,} dropped and counted"
        )
        recorder.close()
