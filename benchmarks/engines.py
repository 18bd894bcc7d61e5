"""What the hooks of engines cost them: their own time for jobs that do nothing, without and with the hooks, in pairs.

Each round runs the same jobs without and with, in turn; the difference is the median of the rounds' differences. Jobs
of queues are sent in a block `together`, so that all of them have a place that is not their own. The service is a real
one on the same machine, which takes its share of the processors: what it does is no part of the engine's time, but
where they are busy, waiting for them is. The last columns say the same of the processor time of the engine's own
thread, and of the whole process with its children: there, sending what was recorded is included. What costs more than
1 ms and 1 % of the job in the engine's own thread is marked.

    python benchmarks/engines.py [NAME …]
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import graph_engines
import queue_engines
from engine_cost import Engine
from rich.console import Console
from rich.table import Table
from tools.local_service import LocalService, eventually, free_port

import tachograph

ROUNDS: Final = int(os.environ.get("TACHOGRAPH_BENCHMARK_ROUNDS", "9"))
GOAL_MS: Final = 1.0
GOAL_SHARE: Final = 0.01

ENGINES: Final[dict[str, tuple[Callable[[str], Engine], int]]] = {
    "celery": (queue_engines.celery, 100),
    "rq": (lambda address: queue_engines.rq(address, True), 30),
    "rq-simple": (lambda address: queue_engines.rq(address, False), 100),
    "dramatiq": (queue_engines.dramatiq, 300),
    "huey": (queue_engines.huey, 200),
    "arq": (queue_engines.arq, 100),
    "taskiq": (queue_engines.taskiq, 200),
    "procrastinate": (queue_engines.procrastinate, 100),
    "apscheduler": (graph_engines.apscheduler, 100),
    "dask": (graph_engines.dask, 200),
    "luigi": (graph_engines.luigi, 100),
    "kedro": (graph_engines.kedro, 100),
    "hamilton": (graph_engines.hamilton, 100),
}
"""How an engine is made ready, and how many jobs a round has."""


def _is_listening(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[str]:
    """A real Redis on a free port; an empty address where it is not installed."""
    if shutil.which("redis-server") is None:
        yield ""
        return
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=directory)
    try:
        eventually(lambda: _is_listening(port))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def measure(console: Console, names: list[str]) -> None:
    """Print what the hooks cost each engine that is installed."""
    table = Table("engine", "", "without, ms", "with, ms", "paired, ms", "own thread, ms", "process, ms", "",
                  title="of one job")  # fmt: skip
    for column in table.columns[2:]:
        column.justify = "right"
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as address, LocalService(Path(name)) as service:
        os.environ["XDG_STATE_HOME"] = name
        tachograph.configure(url=service.address, registry=None, spans=False)
        for engine in names:
            prepare, jobs = ENGINES[engine]
            try:
                run = prepare(address)
                run(jobs, True)
            except (ImportError, ValueError) as error:
                console.print(f"{engine}: not measured: {error}")
                continue
            pairs = [(run(jobs, False), run(jobs, True)) for _ in range(ROUNDS)]
            for what in ("sent", "ran"):
                without, with_ = ([getattr(pair[i], what) for pair in pairs] for i in (0, 1))
                paired, own, process = (
                    statistics.median(getattr(b, field) - getattr(a, field) for a, b in pairs)
                    for field in (what, f"{what}_thread", f"{what}_process")
                )
                if not any(without):
                    continue
                medians = [f"{statistics.median(values):.2f}" for values in (without, with_)]
                is_over = own > max(GOAL_MS, GOAL_SHARE * statistics.median(without))
                table.add_row(
                    engine,
                    what,
                    *medians,
                    f"{paired:+.2f}",
                    f"{own:+.2f}",
                    f"{process:+.2f}",
                    "over" if is_over else "",
                )
    console.print(table)
    console.print(f"{ROUNDS} rounds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def main(console: Console) -> None:
    """Measure all engines."""
    logging.disable(logging.CRITICAL)
    measure(console, list(ENGINES))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    measure(Console(), sys.argv[1:] or list(ENGINES))
