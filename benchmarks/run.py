"""Side by side in one run: what Tachograph costs beside what one would use otherwise.

    python benchmarks/run.py            everything
    python benchmarks/run.py recorder   one of them (see BENCHMARKS)

Figures are medians of several rounds, the sides taken in turn; on a busy machine look at the ratios.
"""

from __future__ import annotations

import sys

import exposition
import ingest
import metrics
import page
import recorder
import stream
import timeline
import writer
from rich.console import Console

BENCHMARKS = {
    "recorder": recorder.main,
    "timeline": timeline.main,
    "exposition": exposition.main,
    "writer": writer.main,
    "metrics": metrics.main,
    "ingest": ingest.main,
    "page": page.main,
    "stream": stream.main,
}


if __name__ == "__main__":
    console = Console()
    for name in sys.argv[1:] or BENCHMARKS:
        console.rule(name)
        BENCHMARKS[name](console)
