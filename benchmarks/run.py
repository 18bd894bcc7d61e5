"""Compare what Tachograph costs with the alternatives, side by side in one run.

    python benchmarks/run.py            all benchmarks
    python benchmarks/run.py recorder   one benchmark (see BENCHMARKS)

Numbers are medians of several rounds, with the sides taken in turn. On a busy machine, read the ratios. Each benchmark
writes what it printed to `results/`, with the day and the machine.
"""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import attacks
import engines
import exposition
import ingest
import live_spans
import logs
import metrics
import page
import recorder
import resources
import scrape
import search
import stacks
import startup
import stream
import timeline
import viewers
import why
import writer
from rich.console import Console

BENCHMARKS = {
    "startup": startup.main,
    "recorder": recorder.main,
    "resources": resources.main,
    "stacks": stacks.main,
    "logs": logs.main,
    "live-spans": live_spans.main,
    "timeline": timeline.main,
    "exposition": exposition.main,
    "scrape": scrape.main,
    "writer": writer.main,
    "metrics": metrics.main,
    "ingest": ingest.main,
    "page": page.main,
    "stream": stream.main,
    "search": search.main,
    "viewers": viewers.main,
    "why": why.main,
    "engines": engines.main,
    "attacks": attacks.main,
}


RESULTS = Path(__file__).parent / "results"
"""What was measured last, a file for each benchmark."""


def measured(name: str) -> str:
    """Run a benchmark and return what it printed, with the day and the machine above it."""
    console = Console(record=True, width=120)
    console.rule(name)
    BENCHMARKS[name](console)
    machine = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}\n\n{console.export_text()}"


if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or BENCHMARKS:
        (RESULTS / f"{name}.txt").write_text(measured(name))
