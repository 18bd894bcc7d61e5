"""A fully recorded step (span, histograms, events, store row, up to the commit) beside a bare SDK span.

Sides:
- bare span: an OpenTelemetry SDK span with six attributes, a batch processor, an exporter that discards.
- naive: what one writes first: a span with the step's attributes through the SDK, labelled metrics, an INSERT per step.
- tachograph: the recorder with all its listeners, until everything is delivered and committed.
- spans only, spans and metrics: the same with fewer listeners, until everything is delivered.
- hot path: only the CPU time of the workflow's own thread; limited spans: the same with a provider that keeps eight
  attributes of a span.
"""

from __future__ import annotations

import gc
import logging
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import set_span_in_context
from prometheus_client import CollectorRegistry, Counter, Histogram
from rich.console import Console
from rich.table import Table
from summary import Line, against, scaled

from tachograph import MetricsListener, Recorder, SpanListener
from tachograph.clock import AnchoredClock
from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    PathStep,
    StepFinished,
    StepReady,
    StepStarted,
    StepStatus,
)
from tachograph.identity import StepRef, new_execution_ref, new_span_id, step_id, workflow_id
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

STEPS = scaled(5_000, 100)
ROUNDS = scaled(9, 1)
NAMES = 20


class Discard(SpanExporter):
    """Discards spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def provider(limits: SpanLimits | None = None) -> TracerProvider:
    target = TracerProvider(shutdown_on_exit=False, span_limits=limits)
    target.add_span_processor(BatchSpanProcessor(Discard(), max_queue_size=max(1_024, 2 * STEPS)))
    return target


def bare() -> float:
    """Microseconds per span."""
    target = provider()
    tracer = target.get_tracer("bench")
    root = set_span_in_context(tracer.start_span("root"))
    began = time.perf_counter()
    for i in range(STEPS):
        span = tracer.start_span("step", root)
        span.set_attribute("workflow.definition.name", "w")
        span.set_attribute("workflow.execution.id", "0197")
        span.set_attribute("workflow.step.name", "s")
        span.set_attribute("workflow.step.id", "42")
        span.set_attribute("workflow.step.attempt", i)
        span.set_attribute("workflow.step.status", "completed")
        span.end()
    target.force_flush()
    took = time.perf_counter() - began
    target.shutdown()
    return took / STEPS * 1e6


def naive() -> float:
    """Microseconds per step, with everything written on the step's own thread."""
    target, registry = provider(), CollectorRegistry()
    tracer = target.get_tracer("bench")
    root = set_span_in_context(tracer.start_span("root"))
    duration = Histogram("d_seconds", "d", ["workspace", "workflow", "step", "status"], registry=registry)
    wait = Histogram("w_seconds", "w", ["workspace", "workflow", "step", "reason"], registry=registry)
    attempts = Counter("a_total", "a", ["workspace", "workflow", "step", "outcome"], registry=registry)
    with tempfile.TemporaryDirectory() as directory:
        database = sqlite3.connect(Path(directory) / "x.db")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("CREATE TABLE steps (e, s, name, status, started, finished, wait, span, PRIMARY KEY (e, s))")
        began = time.perf_counter()
        for i in range(STEPS):
            name = f"s{i % NAMES}"
            started = time.time_ns()
            span = tracer.start_span(name, root)
            for key in ("definition.name", "definition.id", "definition.version", "workspace", "execution.id"):
                span.set_attribute(f"workflow.{key}", "value")
            for key in ("name", "id", "type", "status"):
                span.set_attribute(f"workflow.step.{key}", name)
            span.set_attribute("workflow.step.attempt", 1)
            span.set_attribute("workflow.step.wait_seconds", 0.1)
            for key in ("name", "run.id", "task.name", "task.run.id", "task.run.result"):
                span.set_attribute(f"cicd.pipeline.{key}", "value")
            span.end()
            finished = time.time_ns()
            duration.labels("default", "w", name, "completed").observe((finished - started) / 1e9)
            wait.labels("default", "w", name, "dependency").observe(0.1)
            wait.labels("default", "w", name, "queue").observe(0.0)
            attempts.labels("default", "w", name, "completed").inc()
            row = ("e", str(i), name, "completed", started, finished, 0.1, f"{span.get_span_context().span_id:016x}")
            database.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            database.commit()
        target.force_flush()
        took = time.perf_counter() - began
        database.close()
    target.shutdown()
    return took / STEPS * 1e6


def recorded(*, metrics: bool = True, store: bool = True, limits: SpanLimits | None = None) -> tuple[float, float]:
    """Microseconds per step: until all is delivered and committed, and CPU time of the workflow's own thread."""
    target = provider(limits)
    recorder = Recorder()
    recorder.set_spans(SpanListener(target))
    if metrics:
        recorder.add("metrics", MetricsListener(CollectorRegistry()))
    with tempfile.TemporaryDirectory() as directory:
        database = Database(f"sqlite:///{directory}/x.db")
        if store:
            recorder.add("store", StoreWriter(database))
        execution = new_execution_ref(workspace="default", workflow="w", workflow_id=workflow_id("default", "w"))
        ids = [step_id(execution.workflow_id, f"s{i % NAMES}", i) for i in range(STEPS)]
        clock = AnchoredClock()
        recorder(ExecutionStarted(execution=execution, time_ns=clock(), step_count=STEPS))
        recorder.flush()
        before: tuple[str, ...] = ()
        links: tuple[str, ...] = ()
        began, cpu = time.perf_counter(), time.thread_time()
        for i in range(STEPS):
            step = StepRef(
                execution=execution,
                step_id=ids[i],
                name=f"s{i % NAMES}",
                span_id=new_span_id(),
                parent_span_id=execution.span_id,
                depends_on=before,
                links=links,
            )
            before, links = (ids[i],), (step.span_id,)
            ready = clock()
            recorder(StepReady(step=step, time_ns=ready))
            started = clock()
            recorder(StepStarted(step=step, time_ns=started, dependency_ns=100, queue_ns=started - ready))
            ended = clock()
            recorder(
                StepFinished(
                    step=step,
                    time_ns=ended,
                    status=StepStatus.COMPLETED,
                    attempt=1,
                    started_ns=started,
                    attempt_started_ns=started,
                    dependency_ns=100,
                    queue_ns=started - ready,
                    run_ns=ended - started,
                    last_queue_ns=started - ready,
                )
            )
        recorder(
            ExecutionFinished(
                execution=execution,
                time_ns=clock(),
                status=ExecutionStatus.COMPLETED,
                started_ns=ready,
                step_count=STEPS,
                completed_step_count=STEPS,
                critical_path=tuple(PathStep(i, "s", 1) for i in ids),
            )
        )
        hot = time.thread_time() - cpu
        if not recorder.flush(30):
            raise RuntimeError("not everything was delivered")
        took = time.perf_counter() - began
        recorder.close()
        if any(queue.dropped for queue in recorder.queues.values()):
            raise RuntimeError("events were dropped")
        database.close()
    target.shutdown()
    return took / STEPS * 1e6, hot / STEPS * 1e6


def main(console: Console) -> list[Line]:
    """Print the table."""
    sides: dict[str, list[float]] = {
        "bare span": [],
        "naive": [],
        "tachograph": [],
        "tachograph, hot path": [],
        "tachograph, limited spans": [],
        "tachograph, limited spans, hot path": [],
        "tachograph, spans only": [],
        "tachograph, spans and metrics": [],
    }

    def run(name: str, **options: Any) -> None:
        total, hot = recorded(**options)
        sides[name].append(total)
        if f"{name}, hot path" in sides:
            sides[f"{name}, hot path"].append(hot)

    rounds: list[Callable[[], None]] = [
        lambda: sides["bare span"].append(bare()),
        lambda: sides["naive"].append(naive()),
        lambda: run("tachograph"),
        lambda: run("tachograph, limited spans", limits=SpanLimits(max_span_attributes=8)),
        lambda: run("tachograph, spans only", metrics=False, store=False),
        lambda: run("tachograph, spans and metrics", store=False),
    ]
    # The SDK warns of every attribute it drops.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    for number in range(ROUNDS + 1):
        for side in rounds:
            gc.collect()
            side()
        if number == 0:
            for values in sides.values():
                values.clear()  # Warm-up.
    base = sides["bare span"]
    table = Table("a step", "µs, median", "min", "max", "x bare span (paired median)")
    for name, values in sides.items():
        ratio = statistics.median(value / bare_value for value, bare_value in zip(values, base, strict=True))
        figures = [f"{figure(values):.1f}" for figure in (statistics.median, min, max)]
        table.add_row(name, *figures, f"{ratio:.2f}")
    console.print(table)
    labels = {
        "naive": "a step recorded the naive way",
        "tachograph, spans and metrics": "a step: span and histograms",
        "tachograph": "a step, all the way to the commit",
        "tachograph, hot path": "… of that on the workflow's own thread",
    }
    goals = {"tachograph": 1.4}
    return [
        against(
            label, statistics.median(sides[name]), "µs", "a bare SDK span", statistics.median(base),
            ratio=statistics.median(a / b for a, b in zip(sides[name], base, strict=True)), goal=goals.get(name),
        )
        for name, label in labels.items()
    ]  # fmt: skip
