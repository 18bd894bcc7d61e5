"""Rendering a scrape: 1,000, 10,000 and 108,000 series of a step histogram (26 series a label set), in one run.

Sides: Tachograph (text, OpenMetrics, protobuf; with a tenth and with all label sets changed since the last scrape),
prometheus_client (text, OpenMetrics), pytheus (text), opentelemetry-exporter-prometheus (text; its SDK folds label sets
beyond 2,000 into one, so at 108,000 series it renders about half). Also: one observation, the longest time the event
loop was held up while 108,000 series were rendered beside it, and the peak memory of a process that holds the series
and renders them.
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
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client.openmetrics import exposition as openmetrics
from rich.console import Console
from rich.table import Table

from tachograph.metrics.exposition import render
from tachograph.metrics.negotiation import Format
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import BUCKETS

SIZES = (1_000, 10_000, 108_000)
PER_LABEL_SET = len(BUCKETS) + 3
NAME, ABOUT = "workflow_step_duration_seconds", "Time a step ran."
LABELS = ("workspace", "workflow", "step", "status")


class Side(NamedTuple):
    """A library holding the series."""

    observe: Callable[[int, float], None]
    renders: dict[str, Callable[[], Any]]


def values(i: int) -> tuple[str, str, str, str]:
    """Label values of a label set."""
    return ("default", f"workflow-{i % 50}", f"step-{i}", "completed")


def tachograph(count: int) -> Side:
    """Ours."""
    series = SeriesRegistry()
    family = series.histogram(NAME, ABOUT, LABELS, buckets=BUCKETS)
    children = [family.labels(*values(i)) for i in range(count)]
    renders: dict[str, Callable[[], Any]] = {
        form.name.lower(): (lambda form=form: render(series, form)) for form in Format
    }
    return Side(lambda i, value: children[i].observe(value), renders)


def client(count: int) -> Side:
    """prometheus_client."""
    registry = prometheus_client.CollectorRegistry()
    family = prometheus_client.Histogram(NAME, ABOUT, LABELS, registry=registry, buckets=BUCKETS)
    children = [family.labels(*values(i)) for i in range(count)]
    renders: dict[str, Callable[[], Any]] = {
        "text": lambda: prometheus_client.generate_latest(registry),
        "openmetrics": lambda: openmetrics.generate_latest(registry),  # type: ignore[no-untyped-call]
    }
    return Side(lambda i, value: children[i].observe(value), renders)


def pytheus(count: int) -> Side:
    """pytheus."""
    from pytheus.exposition import generate_metrics
    from pytheus.metrics import Histogram
    from pytheus.registry import CollectorRegistry

    registry = CollectorRegistry()
    family = Histogram(NAME, ABOUT, required_labels=LABELS, registry=registry, buckets=BUCKETS)
    children = [family.labels(dict(zip(LABELS, values(i), strict=True))) for i in range(count)]
    return Side(lambda i, value: children[i].observe(value), {"text": lambda: generate_metrics(registry).encode()})


def opentelemetry(count: int) -> Side:
    """opentelemetry-exporter-prometheus, over the OpenTelemetry metrics SDK."""
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
    attributes = [dict(zip(LABELS, values(i), strict=True)) for i in range(count)]
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
    """Three values in every label set."""
    draw = random.Random(1)
    for i in range(count):
        for _ in range(3):
            side.observe(i, draw.lognormvariate(-2, 2))


def milliseconds(side: Side, form: str, changed: range, rounds: int) -> float:
    """Median time of a scrape in which these label sets have changed."""
    found = []
    for _ in range(rounds + 1):
        for i in changed:
            side.observe(i, 0.25)
        gc.collect()
        begun = time.perf_counter()
        side.renders[form]()
        found.append((time.perf_counter() - begun) * 1000)
    return statistics.median(found[1:])


async def held_up(side: Side, count: int) -> float:
    """The longest time, in ms, that the event loop did not come round while a thread rendered."""
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main(console: Console) -> None:
    """Print the tables."""
    table = Table("series", "format", *SIDES, "prometheus_client / tachograph: 1 in 10 changed", "all changed")
    for size in SIZES:
        count = size // PER_LABEL_SET
        sides = {name: make(count) for name, make in SIDES.items()}
        for side in sides.values():
            fill(side, count)
        rounds = 3 if size > 50_000 else 9
        for form in ("text", "openmetrics", "protobuf"):
            some = milliseconds(sides["tachograph"], form, range(0, count, 10), rounds)
            cells = [f"{some:.2f} ms"]
            all_changed = milliseconds(sides["tachograph"], form, range(count), rounds)
            cells[0] += f" / {all_changed:.2f} ms"
            theirs = None
            for name in list(SIDES)[1:]:
                if form in sides[name].renders:
                    took = milliseconds(sides[name], form, range(0, count, 10), rounds)
                    theirs = took if name == "prometheus_client" else theirs
                    cells.append(f"{took:.1f} ms")
                else:
                    cells.append("–")
            ratios = [f"{theirs / took:.0f}" if theirs else "–" for took in (some, all_changed)]
            table.add_row(f"{size:,}", form, *cells, *ratios)
        if size == SIZES[-1]:
            ours = sides["tachograph"]
            console.print(
                f"event loop held up by a render of {size:,} series: {asyncio.run(held_up(ours, count)):.1f} ms at most"
            )
    console.print(table)
    console.print("tachograph: a tenth of the label sets changed since the last scrape / all changed")
    observations(console)
    peaks = Table("peak memory, 108,000 series", "MB")
    for name in SIDES:
        peaks.add_row(name, f"{memory(name, SIZES[-1]):.0f}")
    console.print(peaks)


def observations(console: Console) -> None:
    """One observation, classic and native buckets, beside prometheus_client's classic ones."""
    ours, theirs = tachograph(1), client(1)
    draw = random.Random(2)
    amounts = [draw.lognormvariate(-2, 2) for _ in range(50_000)]

    def once(side: Side) -> float:
        begun = time.perf_counter()
        for amount in amounts:
            side.observe(0, amount)
        return (time.perf_counter() - begun) / len(amounts) * 1e6

    pairs = [(once(ours), once(theirs)) for _ in range(7)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    console.print(f"observe: tachograph {mine:.2f} µs, prometheus_client {other:.2f} µs, ratio {ratio:.2f}")
