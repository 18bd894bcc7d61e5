"""How long a command takes before its own work, beside an interpreter that does nothing and other commands.

Processor time of a whole process (the least of some rounds: other programs only add to it). Other engines' commands are
measured where they are installed.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled

ROUNDS = scaled(5, 1)
HERE = [sys.executable, "-m", "tachograph_exporter"]
PEERS = (["prefect", "--version"], ["dagster", "--version"], ["airflow", "version"], ["celery", "--version"],
         ["alembic", "--version"], ["dbt", "--version"])  # fmt: skip


def cost(command: list[str], directory: str) -> tuple[float, float]:
    """(processor seconds, seconds) of a process: the least of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=directory, capture_output=True, check=False)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        rounds.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds))
    return min(cpu for cpu, _ in rounds), min(seconds for _, seconds in rounds)


def main(console: Console) -> list[Line]:
    """Print the table."""
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        flow = os.path.join(directory, "flow.json")
        with open(flow, "w") as file:
            file.write('{"name": "flow", "steps": [{"name": "a", "config": {"handler": "noop"}}]}')
        subprocess.run([*HERE, "run", flow], cwd=directory, capture_output=True, check=True)
        rows = [("an interpreter: python -c pass", [sys.executable, "-c", "pass"])]
        rows += [
            (f"an import: {name}", [sys.executable, "-c", f"import {name}"])
            for name in ("typer", "sqlalchemy", "aiohttp", "opentelemetry.sdk.trace", "tachograph")
        ]
        for words in (["--version"], ["--help"], ["runs", "--help"], ["validate", flow], ["runs"], ["timeline", "last"],
                      ["run", flow], ["serve", "--help"]):  # fmt: skip
            rows.append((f"tachograph {' '.join(words).replace(flow, 'FILE')}", [*HERE, *words]))
        rows += [(" ".join(command), command) for command in PEERS if shutil.which(command[0])]
        table = Table("process", "processor time", "time", title="Until a command is done, almost nothing to do")
        for label, command in rows:
            cpu, seconds = cost(command, directory)
            costs[label] = cpu * 1000
            table.add_row(label, f"{cpu * 1000:.0f} ms", f"{seconds * 1000:.0f} ms")
        console.print(table)
    bare = "an interpreter: python -c pass"
    return [
        against(f"`{label}`, processor time", costs[label], "ms", "an interpreter that does nothing", costs[bare])
        for label in ("tachograph --help", "tachograph runs")
    ]


if __name__ == "__main__":
    main(Console())
