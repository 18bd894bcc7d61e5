"""A scrape of a service: reading what executions have ended since the last one, and rendering 108,000 series.

The totals are in the database, so the cost must not depend on how many executions they count. Beside it,
prometheus_client renders the same series, which it holds in memory, as a process would that counts its own runs only.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import prometheus_client
from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled
from writer import build_execution

from tachograph.events import Event
from tachograph.metrics.exposition import render
from tachograph.metrics.negotiation import Format
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

WORKFLOWS = scaled(100, 10)
ROUNDS = scaled(7, 1)


def events_of(workflow: str) -> list[Event]:
    """A run of ten steps."""
    return build_execution(workflow)


def run_all(writer: StoreWriter, workflows: range, times: int) -> None:
    """Record runs of these workflows, as many of each as ``times``."""
    for _ in range(times):
        for i in workflows:
            writer.apply(events_of(f"workflow-{i}"))


def milliseconds(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median time of ``work``, each time after ``before``."""
    times = []
    for _ in range(ROUNDS):
        before()
        gc.collect()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


class Scraped:
    """A service's metrics, without its HTTP."""

    def __init__(self, database: Database) -> None:
        self.metrics = WorkflowMetrics(database, SeriesRegistry(family_limit=100_000))
        asyncio.run(self.metrics.start())
        self.lines = 0

    def scrape(self) -> None:
        """What a GET of ``/metrics`` does."""
        self.metrics.refresh(60)
        generation = self.metrics.births.scraping()
        self.lines = render(self.metrics, Format.TEXT).count(b"\n")
        self.metrics.births.scraped(generation, None)


def main(console: Console) -> list[Line]:
    """Print the table."""
    lines: list[Line] = []
    table = Table("a scrape after", "executions in the database", "series", "ms", "prometheus_client, ms", "ratio")
    for executions in (1, 20):
        with tempfile.TemporaryDirectory() as directory:
            database = Database(f"sqlite:///{Path(directory) / 'scrape.db'}")
            writer = StoreWriter(database)
            run_all(writer, range(WORKFLOWS), executions)
            scraped = Scraped(database)
            scraped.scrape()
            scraped.scrape()
            client = milliseconds(lambda scraped=scraped: prometheus_client.generate_latest(scraped.metrics))  # type: ignore[misc]
            cases = {
                "nothing": range(0),
                "a tenth of the workflows ran": range(WORKFLOWS // 10),
                "all ran": range(WORKFLOWS),
            }
            for name, workflows in cases.items():
                ours = milliseconds(scraped.scrape, lambda w=workflows, writer=writer: run_all(writer, w, 1))  # type: ignore[misc]
                table.add_row(
                    name, f"{executions * WORKFLOWS:,}", f"{scraped.lines:,}", f"{ours:.1f}", f"{client:.0f}",
                    f"{client / ours:.0f}",
                )  # fmt: skip
                if executions > 1:
                    subject = f"a scrape of {scraped.lines:,} series after {name}"
                    lines.append(against(subject, ours, "ms", "prometheus_client", client))
            asyncio.run(scraped.metrics.close())
            again = Scraped(database)
            first = milliseconds(lambda again=again: _first(again))  # type: ignore[misc]
            table.add_row(
                "a restart", f"{executions * WORKFLOWS:,}", f"{again.lines:,}", f"{first:.0f}", f"{client:.0f}",
                f"{client / first:.1f}",
            )  # fmt: skip
            database.close()
    console.print(table)
    return lines


def _first(scraped: Scraped) -> None:
    scraped.metrics._last = scraped.metrics._epoch = -1
    scraped.scrape()
