"""What `tachograph exec` adds to a command, and how long `tachograph --help` takes: paired, beside the bare command.

    python benchmarks/run.py commands

The bare command and the recorded one are run in turn, and so is an interpreter that does nothing: the difference of
each pair, of which the median counts. ``exec`` sends to a service on this machine, which commits the run before the
command's end is acknowledged; that is part of the time. Processor time is that of the process and of its children,
without the service's.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.local_service import TACHOGRAPH, LocalService, environment

ROUNDS: Final = scaled(25, 3)
EXEC_LIMIT_MS: Final = 120.0
HELP_LIMIT_MS: Final = 250.0
BARE: Final = ["true"]
"""A command that does nothing."""


class Cost(NamedTuple):
    """What a process took, in milliseconds: of time, and of the processor."""

    took: float
    cpu: float


def cost(command: Sequence[str], variables: Mapping[str, str]) -> Cost:
    """Run a process and wait for it."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=dict(variables), capture_output=True, check=True)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(took * 1000, cpu * 1000)


def in_turn(sides: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> dict[str, list[Cost]]:
    """The costs of each side, by round; each round runs all of them."""
    costs: dict[str, list[Cost]] = {label: [] for label in sides}
    for number in range(ROUNDS + 1):
        for label, (command, variables) in sides.items():
            measured = cost(command, variables)
            if number:
                costs[label].append(measured)  # The first round reads files.
    return costs


def more(costs: Sequence[Cost], than: Sequence[Cost]) -> Cost:
    """The median of what the pairs differ by."""
    pairs = list(zip(costs, than, strict=True))
    return Cost(
        statistics.median(mine.took - other.took for mine, other in pairs),
        statistics.median(mine.cpu - other.cpu for mine, other in pairs),
    )


def main(console: Console) -> list[Line]:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory, LocalService(Path(directory)) as service:
        bare = environment()
        spool = {"TACHOGRAPH_SPOOL_DIR": os.path.join(directory, "spool")}
        to_service = {**bare, **spool, "TACHOGRAPH_URL": service.address}
        nowhere = {**bare, **spool, "TACHOGRAPH_URL": "http://127.0.0.1:1"}
        exec_ = [*TACHOGRAPH, "exec", "--", *BARE]
        sides: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
            "true": (BARE, bare),
            "an interpreter: python -c pass": ([sys.executable, "-c", "pass"], bare),
            "tachograph exec -- true": (exec_, to_service),
            "the same without a service": (exec_, nowhere),
            "tachograph --version": ([*TACHOGRAPH, "--version"], bare),
            "tachograph --help": ([*TACHOGRAPH, "--help"], bare),
        }
        costs = in_turn(sides)
    table = Table("process", "time", "processor time", "more time than true", "more processor time", title="Commands")
    for label, measured in costs.items():
        added = more(measured, costs["true"])
        medians = [statistics.median(column) for column in zip(*measured, strict=True)]
        table.add_row(label, *(f"{value:.0f} ms" for value in (*medians, *added)))
    console.print(table)
    added = more(costs["tachograph exec -- true"], costs["true"])
    help_ms = statistics.median(measured.took for measured in costs["tachograph --help"])
    return [
        against("`tachograph exec -- true`, more than `true`", added.took, "ms", "the limit", EXEC_LIMIT_MS, goal=1),
        against("… of that, processor time", added.cpu, "ms", "the limit", EXEC_LIMIT_MS, goal=1),
        against("`tachograph --help`", help_ms, "ms", "the limit", HELP_LIMIT_MS, goal=1),
    ]


if __name__ == "__main__":
    main(Console())
