"""What it costs to measure what a step uses of the machine, and whether the measured values are right.

- Planted loads beside `getrusage` (read around the step, in the same process) and GNU time (`/usr/bin/time -v`, around
  a process that does nothing else than the load).
- The cost: recorded calls of a function that does nothing, measured and not measured, in turn; processor time of the
  calling thread. And the same for steps that are long enough for everything to be read.
- Its parts: what one reading of each counter takes here.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tachograph
from tachograph import counters, meter
from tachograph.events import Event, StepFinished
from tachograph.resources import Resources

ROUNDS = 15
CALLS = 50
PAIRS = 300
LONG_CALLS = 10
MIB = 1 << 20


def burn(seconds: float) -> None:
    """Use a processor for this long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def loop() -> None:
    """A processor for half a second."""
    burn(0.5)


def child() -> None:
    """The same in another process."""
    code = "import time\nwhile time.thread_time() < 0.5: sum(range(1000))"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)


def pool() -> None:
    """The same in four threads."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(burn, [0.125] * 4))


def allocate() -> None:
    """200 MiB of memory, and then none."""
    kept = bytearray(b"x" * MIB) * 200
    del kept


def write() -> None:
    """50 MB to a disk."""
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TACHOGRAPH_BENCHMARK_DISK") or Path.cwd()) as file:
        file.write(b"x" * 50_000_000)
        file.flush()
        os.fsync(file.fileno())


LOADS: dict[str, Callable[[], None]] = {load.__name__: load for load in (loop, child, pool, allocate, write)}


def say(name: str) -> None:
    """Run a load as the only step of this process, and print what was measured and what `getrusage` says."""
    used: list[Resources] = []

    def note(event: Event) -> None:
        if isinstance(event, StepFinished) and event.resources is not None:
            used.append(event.resources)

    recorder = tachograph.get_recorder()
    recorder.add("benchmark", note)
    tachograph.step(name="warm")(lambda: burn(0.02))()  # What the first step costs its process is not the load.
    recorder.flush(60)
    used.clear()
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    tachograph.step(name=name)(LOADS[name])()
    own_after, children_after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    recorder.flush(60)
    cpu = sum(
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        for before, after in ((own, own_after), (children, children_after))
    )
    peak = max(own_after.ru_maxrss, children_after.ru_maxrss) * 1024
    written = (own_after.ru_oublock - own.ru_oublock) * 512
    (use,) = used
    print(use.cpu_seconds, use.peak_memory_bytes, use.written_bytes, cpu, peak, written)


def gnu_time(load: str) -> tuple[float, int, int]:
    """(processor seconds, peak in bytes, bytes written) of a process that only runs a load, without Tachograph."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import resources; resources.LOADS[{load!r}]()"
    )
    said = subprocess.run(
        ["/usr/bin/time", "-v", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    def value(name: str) -> float:
        match = re.search(rf"{re.escape(name)}: ([\d.]+)", said.stderr)
        return float(match[1]) if match else float("nan")

    cpu = value("User time (seconds)") + value("System time (seconds)")
    return cpu, int(value("Maximum resident set size (kbytes)")) * 1024, int(value("File system outputs")) * 512


def accuracy(console: Console) -> None:
    """Print the measured values beside the kernel's."""
    table = Table("load", "value", "step", "getrusage", "difference", "/usr/bin/time -v, less an idle process")
    idle = gnu_time("idle")
    for name in list(LOADS)[:-1]:
        # By a small process between: the kernel's account of a peak begins with that of the process that starts it.
        command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, __file__, name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        cpu, peak, written, true_cpu, true_peak, true_written = map(float, said.stdout.split())
        timed = gnu_time(name)
        rows = [("processor s", cpu, true_cpu, timed[0] - idle[0], 1.0)]
        if name == "allocate":
            rows = [("peak MiB", peak, true_peak, float(timed[1]), MIB)]
        if name == "write":
            rows = [("written MB", written, true_written, float(timed[2] - idle[2]), 1e6)]
        for what, measured, true, by_time, unit in rows:
            difference = f"{100 * (measured - true) / true:+.2f} %" if true else "–"
            table.add_row(
                name, what, f"{measured / unit:.3f}", f"{true / unit:.3f}", difference, f"{by_time / unit:.3f}"
            )  # fmt: skip
    console.print(table)


def idle() -> None:
    """Nothing: what a process costs itself."""


LOADS["idle"] = idle


def _calls(function: Callable[[], object], count: int) -> float:
    """Microseconds of the calling thread's processor time a call."""
    began = time.thread_time_ns()
    for _ in range(count):
        function()
    return (time.thread_time_ns() - began) / count / 1000


def cost(console: Console) -> None:
    """Print what measuring costs a step."""
    table = Table("a step", "not measured µs", "measured µs", "difference µs (paired median)", "least")

    def compared(name: str, function: Callable[[], object], count: int, pairs: int) -> None:
        """``count`` calls measured and as many not measured, side by side: so much is the machine the same for both."""
        without: list[float] = []
        with_it: list[float] = []
        step = tachograph.step(name=name)(function)

        @tachograph.workflow(name="cost")
        def run() -> None:
            # Fewer than are folded.
            for number in range(max(1, 900 // (2 * count))):
                took = {}
                for is_enabled in (False, True) if number % 2 else (True, False):
                    meter.set_enabled(is_enabled)
                    took[is_enabled] = _calls(step, count)
                without.append(took[False])
                with_it.append(took[True])

        run()
        without.clear()
        with_it.clear()
        while len(without) < pairs:
            run()
            tachograph.get_recorder().flush(60)
        differences = [after - before for before, after in zip(without, with_it, strict=True)]
        table.add_row(
            name, f"{statistics.median(without):.1f}", f"{statistics.median(with_it):.1f}",
            f"{statistics.median(differences):.2f}", f"{min(with_it) - min(without):.2f}",
        )  # fmt: skip

    tachograph.configure(database="", url="", registry=None, spans=False)
    compared("that does nothing", lambda: None, CALLS, PAIRS)
    compared("of 0.3 ms of work", lambda: sum(range(15_000)), CALLS, PAIRS)
    compared("of 25 ms of waiting", lambda: time.sleep(0.025), LONG_CALLS, ROUNDS)
    meter.set_enabled(True)
    alone = [_calls(_start_and_stop, 5_000) for _ in range(ROUNDS)]
    table.add_row("the counters alone", "", f"{statistics.median(alone):.2f}", "", f"{min(alone):.2f}")
    console.print(table)


def _start_and_stop() -> None:
    running = meter.start()
    if running is not None:
        running.stop()


def parts(console: Console) -> None:
    """Print what the counters take that a step's cost is made of."""
    readings: dict[str, Callable[[], object]] = {
        "clock": time.perf_counter_ns,
        "processor time of the thread": time.thread_time_ns,
        "getrusage of the thread": lambda: resource.getrusage(resource.RUSAGE_THREAD),
        "getrusage of the process": lambda: resource.getrusage(resource.RUSAGE_SELF),
        "getrusage of children": lambda: resource.getrusage(resource.RUSAGE_CHILDREN),
        "resident set, from /proc": counters.resident_bytes,
        "nothing": lambda: None,
    }
    table = Table("a reading", "µs (median)", "least")
    for name, read in readings.items():
        alone = [_calls(read, 5_000) for _ in range(ROUNDS)]
        table.add_row(name, f"{statistics.median(alone):.2f}", f"{min(alone):.2f}")
    console.print(table)


def main(console: Console) -> None:
    """Print the tables."""
    accuracy(console)
    cost(console)
    parts(console)


if __name__ == "__main__":
    say(sys.argv[1])
