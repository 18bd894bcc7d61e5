"""What stacks cost: a step that nobody looks at, a step that is sampled, and one request for stacks.

- Not looked at: recorded calls of a function that does nothing; what entering and leaving the register of running
  attempts takes of them, and whether there is a thread.
- Sampled: processor time of the sampling thread, as a share of a core, while a step computes, waits, has 200 threads
  beside it, or is deep in a recursion; and what the step itself loses.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tachograph
from tachograph import running_attempts
from tachograph.folded_stacks import StackWish
from tachograph.stacks.frames import FrameTexts
from tachograph.stacks.sampler import thread_name
from tachograph.stacks.taking import running_reporters, take
from tachograph.stacks.wishes import fulfil
from tachograph.workflow.reporter import Reporter

SECONDS = float(os.environ.get("TACHOGRAPH_BENCHMARK_SECONDS", "10"))
ROUNDS = 5
CALLS = 20_000


def not_looked_at(console: Console) -> None:
    """Print what the register costs a step."""
    recorder = tachograph.configure(database="", url="", registry=None, spans=False)
    step = tachograph.step(name="nothing")(lambda: None)
    whole: list[float] = []
    alone: list[float] = []
    reporters: list[Reporter] = []
    with tachograph.step("probe"):
        reporters += running_reporters()

    @tachograph.workflow(name="cost")
    def run() -> None:
        for _ in range(ROUNDS):
            began = time.thread_time_ns()
            for _ in range(1_000):
                step()
            whole.append((time.thread_time_ns() - began) / 1_000 / 1_000)
            recorder.flush(60)

    run()
    (reporter,) = reporters
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for _ in range(CALLS):
            running_attempts.begin(reporter)
            running_attempts.end(reporter)
        alone.append((time.thread_time_ns() - began) / CALLS / 1_000)
    step_us, register_us = statistics.median(whole), statistics.median(alone)
    threads = sum(thread.name == thread_name for thread in threading.enumerate())
    console.print(
        f"not looked at: {register_us:.2f} µs of the {step_us:.1f} µs of a step that does nothing "
        f"({100 * register_us / step_us:.1f} %), {threads} threads"
    )


def _processor_seconds(name: str) -> float:
    """Of the thread with a name, by the kernel's account."""
    for thread in threading.enumerate():
        if thread.name == name and thread.native_id is not None:
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
            return int(text.split()[0]) / 1e9
    return 0.0


def _spin(until: float) -> int:
    count = 0
    while time.monotonic() < until:
        sum(range(200))
        count += 1
    return count


def _deep(depth: int, until: float) -> None:
    if depth:
        _deep(depth - 1, until)
    else:
        time.sleep(max(0.0, until - time.monotonic()))


def sampled(console: Console) -> None:
    """Print the share of a core that sampling takes."""
    tachograph.configure(database="", url="", registry=None, spans=False)
    sys.setrecursionlimit(20_000)
    table = Table("a step that", "samples", "of a core")
    release = threading.Event()
    loads: dict[str, Callable[[float], object]] = {
        "computes": _spin,
        "waits": lambda until: time.sleep(max(0.0, until - time.monotonic())),
        "is 5,000 calls deep": lambda until: _deep(5_000, until),
        "has 200 threads beside it": lambda until: time.sleep(max(0.0, until - time.monotonic())),
    }
    for name, load in loads.items():
        if "threads" in name:
            for _ in range(200):
                threading.Thread(target=release.wait, daemon=True).start()
        with tachograph.step(name):
            (reporter,) = running_reporters()
            fulfil([StackWish(reporter.step.execution.execution_id, step_ids=(reporter.step.step_id,))])
            profile = reporter.profile
            began = time.monotonic()
            load(began + SECONDS)
            took = time.monotonic() - began
            used = _processor_seconds(thread_name)
            samples = getattr(profile, "_samples", 0)
        table.add_row(name, f"{samples:,}", f"{100 * used / took:.2f} %")
        while _processor_seconds(thread_name):
            time.sleep(0.05)
    console.print(table)
    with tachograph.step("asked"):
        attempts = running_reporters()
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            take(attempts, FrameTexts())
            times.append(1000 * (time.perf_counter() - began))
    console.print(f"one request, 200 threads beside it: {statistics.median(times):.2f} ms")
    release.set()


def main(console: Console) -> None:
    """Print all of it."""
    not_looked_at(console)
    sampled(console)


if __name__ == "__main__":
    main(Console())
