"""Compare what Tachograph costs with the alternatives, side by side in one run.

    python benchmarks/run.py                     all benchmarks
    python benchmarks/run.py recorder writer     some (see BENCHMARKS)

Numbers are medians of several rounds, with the sides taken in turn. On a busy machine, read the ratios. Each benchmark
writes what it printed to `results/`, with the day and the machine. At the end there is one table of all
(`docs/performance.md`). `BENCH_SCALE=0.01` measures little of each, and `BENCH_PAGE` and `BENCH_RESULTS` name other
places to write to: to see whether they work.
"""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import attacks
import commands
import engines
import exposition
import failures
import growth
import ingest
import live_spans
import logs
import memory
import metrics
import overhead
import page
import recorder
import resources
import scrape
import search
import stacks
import startup
import stream
import summary
import timeline
import viewers
import why
import writer
import writers
from rich.console import Console

BENCHMARKS = {
    "startup": startup.main,
    "commands": commands.main,
    "recorder": recorder.main,
    "overhead": overhead.main,
    "resources": resources.main,
    "stacks": stacks.main,
    "logs": logs.main,
    "live-spans": live_spans.main,
    "timeline": timeline.main,
    "exposition": exposition.main,
    "scrape": scrape.main,
    "writer": writer.main,
    "writers": writers.main,
    "failures": failures.main,
    "metrics": metrics.main,
    "growth": growth.main,
    "ingest": ingest.main,
    "page": page.main,
    "stream": stream.main,
    "memory": memory.main,
    "search": search.main,
    "viewers": viewers.main,
    "why": why.main,
    "engines": engines.main,
    "attacks": attacks.main,
}


RESULTS = Path(os.environ.get("BENCH_RESULTS", Path(__file__).parent / "results"))
"""What was measured last, two files for each benchmark: what it printed, and its lines of the table."""
PAGE = Path(os.environ.get("BENCH_PAGE", Path(__file__).parent.parent / "docs" / "performance.md"))


def measured(name: str) -> tuple[str, summary.Measured]:
    """Run a benchmark. Returns what it printed, with the day and the machine above it, and its lines of the table."""
    console = Console(record=True, width=120)
    console.rule(name)
    lines = BENCHMARKS[name](console)
    machine = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    text = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}\n\n{console.export_text()}"
    return text, summary.measured(lines or ())


if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or BENCHMARKS:
        text, result = measured(name)
        (RESULTS / f"{name}.txt").write_text(text)
        if result.lines:
            summary.save(RESULTS, name, result)
    results = summary.saved(RESULTS, BENCHMARKS)
    summary.write(PAGE, results)
    Console(width=160).print(summary.as_markdown(results), markup=False)
