"""Rendering a scrape of 1,000, 10,000 and 108,000 series of a step histogram (26 series per label set).

Compared: Tachograph (text, OpenMetrics, protobuf; with a tenth and with all of the label sets changed since the last
scrape), prometheus_client (text, OpenMetrics), pytheus (text), opentelemetry-exporter-prometheus (text; its SDK folds
label sets beyond 2,000 into one, so at 108,000 series it renders about half). Also measured: one observation, the
longest block of the event loop while a thread renders 108,000 series, and the peak memory of a process that holds and
renders the series.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client.openmetrics import exposition as openmetrics
from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled

from tachograph.metrics.exposition import render
from tachograph.metrics.negotiation import Format
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import BUCKETS

SIZES = tuple(sorted({scaled(size, 100) for size in (1_000, 10_000, 108_000)}))
PER_LABEL_SET = len(BUCKETS) + 3
NAME, HELP = "workflow_step_duration_seconds", "Time a step ran."
LABELS = ("workspace", "workflow", "step", "status")


class Side(NamedTuple):
    """A library that holds the series; ``renders`` by format."""

    observe: Callable[[int, float], None]
    renders: dict[str, Callable[[], Any]]


def label_values(i: int) -> tuple[str, str, str, str]:
    """The values of label set ``i``."""
    return ("default", f"workflow-{i % 50}", f"step-{i}", "completed")


def tachograph(count: int) -> Side:
    series = SeriesRegistry()
    family = series.histogram(NAME, HELP, LABELS, buckets=BUCKETS)
    children = [family.labels(*label_values(i)) for i in range(count)]
    renders: dict[str, Callable[[], Any]] = {form.name.lower(): partial(render, series, form) for form in Format}
    return Side(lambda i, value: children[i].observe(value), renders)


def client(count: int) -> Side:
    registry = prometheus_client.CollectorRegistry()
    family = prometheus_client.Histogram(NAME, HELP, LABELS, registry=registry, buckets=BUCKETS)
    children = [family.labels(*label_values(i)) for i in range(count)]
    renders: dict[str, Callable[[], Any]] = {
        "text": lambda: prometheus_client.generate_latest(registry),
        "openmetrics": lambda: openmetrics.generate_latest(registry),  # type: ignore[no-untyped-call]
    }
    return Side(lambda i, value: children[i].observe(value), renders)


def pytheus(count: int) -> Side:
    from pytheus.exposition import generate_metrics
    from pytheus.metrics import Histogram
    from pytheus.registry import CollectorRegistry

    registry = CollectorRegistry()
    family = Histogram(NAME, HELP, required_labels=LABELS, registry=registry, buckets=BUCKETS)
    children = [family.labels(dict(zip(LABELS, label_values(i), strict=True))) for i in range(count)]
    return Side(lambda i, value: children[i].observe(value), {"text": lambda: generate_metrics(registry).encode()})


def opentelemetry(count: int) -> Side:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

    before = set(prometheus_client.REGISTRY._collector_to_names)
    reader = PrometheusMetricReader()
    (collector,) = set(prometheus_client.REGISTRY._collector_to_names) - before
    prometheus_client.REGISTRY.unregister(collector)
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    view = View(instrument_name="d", name=NAME, aggregation=ExplicitBucketHistogramAggregation(BUCKETS))
    histogram = MeterProvider([reader], views=[view], shutdown_on_exit=False).get_meter("b").create_histogram("d")
    attributes = [dict(zip(LABELS, label_values(i), strict=True)) for i in range(count)]
    return Side(
        lambda i, value: histogram.record(value, attributes[i]),
        {"text": lambda: prometheus_client.generate_latest(registry)},
    )


SIDES = {
    "tachograph": tachograph,
    "prometheus_client": client,
    "pytheus": pytheus,
    "opentelemetry-exporter-prometheus": opentelemetry,
}


def fill(side: Side, count: int) -> None:
    """Observe three values in every label set."""
    rng = random.Random(1)
    for i in range(count):
        for _ in range(3):
            side.observe(i, rng.lognormvariate(-2, 2))


def milliseconds(side: Side, form: str, changed: range, rounds: int) -> float:
    """Median time of a scrape after these label sets have changed."""
    times = []
    for _ in range(rounds + 1):
        for i in changed:
            side.observe(i, 0.25)
        gc.collect()
        start = time.perf_counter()
        side.renders[form]()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


async def longest_block(side: Side, count: int) -> float:
    """The longest time, in ms, that the event loop was blocked while a thread rendered."""
    longest, last, stop = 0.0, time.perf_counter(), False

    async def tick() -> None:
        nonlocal longest, last
        while not stop:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    longest = 0.0
    for _ in range(5):
        for i in range(count):
            side.observe(i, 0.5)
        last = time.perf_counter()
        await asyncio.get_running_loop().run_in_executor(None, side.renders["text"])
    stop = True
    await ticking
    return longest * 1000


def memory(name: str, size: int) -> float:
    """Peak resident MB of a process that holds the series and renders text twice."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import exposition as e\n"
        f"count = {size} // e.PER_LABEL_SET; side = e.SIDES[{name!r}](count); e.fill(side, count)\n"
        "side.renders['text'](); side.renders['text']()\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(result.stdout) / 1024


def main(console: Console) -> list[Line]:
    """Print the tables."""
    lines: list[Line] = []
    table = Table("series", "format", *SIDES, "prometheus_client / tachograph: 1 in 10 changed", "all changed")
    for size in SIZES:
        count = size // PER_LABEL_SET
        sides = {name: build(count) for name, build in SIDES.items()}
        for side in sides.values():
            fill(side, count)
        rounds = 3 if size > 50_000 else 9
        for form in ("text", "openmetrics", "protobuf"):
            tenth = milliseconds(sides["tachograph"], form, range(0, count, 10), rounds)
            cells = [f"{tenth:.2f} ms"]
            all_changed = milliseconds(sides["tachograph"], form, range(count), rounds)
            cells[0] += f" / {all_changed:.2f} ms"
            theirs = None
            for name in list(SIDES)[1:]:
                if form in sides[name].renders:
                    took = milliseconds(sides[name], form, range(0, count, 10), rounds)
                    if size == SIZES[-1] and form == "text":
                        subject = f"{size:,} series rendered, a tenth of them changed"
                        lines.append(against(subject, tenth, "ms", name, took))
                    theirs = took if name == "prometheus_client" else theirs
                    cells.append(f"{took:.1f} ms")
                else:
                    cells.append("–")
            ratios = [f"{theirs / took:.0f}" if theirs else "–" for took in (tenth, all_changed)]
            table.add_row(f"{size:,}", form, *cells, *ratios)
        if size == SIZES[-1]:
            blocked = asyncio.run(longest_block(sides["tachograph"], count))
            console.print(f"event loop blocked by a render of {size:,} series: {blocked:.1f} ms at most")
    console.print(table)
    console.print("tachograph: a tenth / all of the label sets changed since the last scrape")
    observations(console)
    peaks = Table("peak memory, 108,000 series", "MB")
    for name in SIDES:
        peaks.add_row(name, f"{memory(name, SIZES[-1]):.0f}")
    console.print(peaks)
    return lines


def observations(console: Console) -> None:
    """One observation: classic and native buckets, compared with prometheus_client's classic ones."""
    ours, theirs = tachograph(1), client(1)
    rng = random.Random(2)
    amounts = [rng.lognormvariate(-2, 2) for _ in range(50_000)]

    def microseconds(side: Side) -> float:
        start = time.perf_counter()
        for amount in amounts:
            side.observe(0, amount)
        return (time.perf_counter() - start) / len(amounts) * 1e6

    pairs = [(microseconds(ours), microseconds(theirs)) for _ in range(7)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    console.print(f"observe: tachograph {mine:.2f} µs, prometheus_client {other:.2f} µs, ratio {ratio:.2f}")
