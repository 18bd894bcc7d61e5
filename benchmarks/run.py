"""Compare what Tachograph costs with the alternatives, side by side in one run.

    python benchmarks/run.py            all benchmarks
    python benchmarks/run.py recorder   one benchmark (see BENCHMARKS)

Numbers are medians of several rounds, with the sides taken in turn. On a busy machine, read the ratios.
"""

from __future__ import annotations

import sys

import attacks
import exposition
import ingest
import live_spans
import metrics
import page
import recorder
import scrape
import search
import stream
import timeline
import viewers
import writer
from rich.console import Console

BENCHMARKS = {
    "recorder": recorder.main,
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
    "attacks": attacks.main,
}


if __name__ == "__main__":
    console = Console()
    for name in sys.argv[1:] or BENCHMARKS:
        console.rule(name)
        BENCHMARKS[name](console)
