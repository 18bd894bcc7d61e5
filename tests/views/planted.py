"""A small world: workflows whose runs are as the library records them, with causes planted in what the world shows.

A scenario changes the plans of some of 200 runs of the workflow *nightly*: durations, waits, inputs, versions, hosts,
spans below a step, resources, the runs of other workflows. Nothing in the rows says that a cause was planted.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.critical_path import critical_path_of
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Resources,
    SkipReason,
    StepFinished,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, new_execution_ref, step_id, workflow_id, workspace_id
from tachograph_exporter.ingest.span_rows import SpanRows
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

RUNS: Final = 200
EVERY_S: Final = 3_000
"""Seconds between runs: 200 of them take a week."""
END_NS: Final = 1_790_000_000 * NS
HOSTS: Final = ("host-a", "host-b", "host-c", "host-d")
MB: Final = 1_000_000


@dataclass
class Try:
    """An attempt that failed, and the wait after it."""

    seconds: float
    error: str
    message: str
    backoff: float


@dataclass
class Step:
    """What a step of a run will do."""

    name: str
    seconds: float
    after: tuple[str, ...] = ()
    cpu: float = 0.0
    memory: float = 300 * MB
    queue: float = 0.05
    tries: list[Try] = field(default_factory=list)
    output: dict[str, Any] = field(default_factory=dict)
    below: dict[str, tuple[float, int]] = field(default_factory=dict)
    index: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    is_mapped: bool = False
    is_skipped: bool = False
    error: tuple[StepStatus, str, str] | None = None
    child: Plan | None = None


@dataclass
class Plan:
    """A run that will be recorded. ``at`` is unix seconds."""

    workflow: str
    at: float
    steps: list[Step]
    version: str = "1.7"
    process: str = "host-a/boot.1/100/1"
    inputs: dict[str, Any] = field(default_factory=dict)
    execution: ExecutionRef | None = None
    extra: dict[str, float] = field(default_factory=dict)

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def start_of(self, name: str) -> float:
        """When a step will be ready, in unix seconds."""
        return self._ready(self.step(name))

    def _ready(self, step: Step) -> float:
        return max((self._end(self.step(name)) for name in step.after), default=self.at + 0.01)

    def _end(self, step: Step) -> float:
        if step.is_skipped:
            return self._ready(step)
        waits = sum(each.seconds + each.backoff for each in step.tries)
        return self._ready(step) + step.queue + waits + step.seconds

    @property
    def end(self) -> float:
        """When it will end, in unix seconds."""
        return max(self._end(step) for step in self.steps)


class World:
    """The runs of a week, before a cause is planted."""

    def __init__(self, rng: random.Random, *, process_life: int = 40) -> None:
        self.rng = rng
        start = END_NS // NS - RUNS * EVERY_S
        self.runs = [self._nightly(i, start + i * EVERY_S + rng.uniform(-600, 600), process_life) for i in range(RUNS)]
        self.others: list[Plan] = []
        for name, every, seconds in (("cleanup", 16_000, 300), ("weekly_report", 40_000, 240)):
            for i in range(RUNS * EVERY_S // every):
                at = start + i * every + rng.uniform(0, 1_800)
                steps = [Step("work", seconds * self.noise(0.3), cpu=10)]
                self.others.append(Plan(name, at, steps, process=f"host-z/boot.1/{len(name)}/1"))

    def noise(self, deviation: float = 0.06) -> float:
        return math.exp(self.rng.gauss(0, deviation))

    def _nightly(self, number: int, at: float, process_life: int) -> Plan:
        rng, noise = self.rng, self.noise
        host = rng.choice(HOSTS)
        rows = round(10_000 * noise(0.05))
        scale = (rows / 10_000) ** 0.8

        def step(name: str, seconds: float, *after: str, **more: Any) -> Step:
            length = seconds * noise()
            output = {"rows": round(rows * noise(0.02)), "files": rng.randrange(3, 9)}
            return Step(
                name, length, after, cpu=0.4 * seconds * noise(0.1), memory=300 * MB * noise(0.05), output=output,
                queue=rng.uniform(0.01, 0.2), **more,
            )  # fmt: skip

        below = {
            "SELECT orders": (20 * noise(0.1), 3), "UPDATE accounts": (3 * noise(0.1), 1),
            "GET rates.example": (6 * noise(0.1), 2), "GET partner.example": (2 * noise(0.1), 1),
        }  # fmt: skip
        inputs = {
            "day": f"2026-09-{1 + number % 28:02d}", "batch": f"{rng.getrandbits(64):016x}", "rows": rows,
            "region": rng.choice(("us", "eu", "ap", "sa")), "tenant": f"tenant {rng.randrange(25)}",
            "options": {"dry_run": rng.random() < 0.2, "limit": rng.choice((100, 1000))},
        }  # fmt: skip
        return Plan(
            "nightly",
            at,
            [
                step("extract", 60),
                step("transform", 120 * scale, "extract"),
                step("load", 240 * scale, "transform", below=below),
                step("report", 150, "transform"),
                step("publish", 20, "load", "report"),
            ],
            process=f"{host}/boot.1/{100 + number // process_life}/{HOSTS.index(host)}",
            inputs=inputs,
            extra={"life": number % process_life},
        )

    def some(self, share: float) -> list[Plan]:
        """Some of the runs, in no order of time, and the last one."""
        chosen = [run for run in self.runs[:-1] if self.rng.random() < share]
        return [*chosen, self.runs[-1]]

    def beside(self, name: str, at: float, seconds: float, process: str = "host-y/boot.1/7/1") -> None:
        """Another workflow's run."""
        self.others.append(Plan(name, at, [Step("work", seconds, cpu=1)], process=process))


# Each returns the names of causes that count as the planted one, and further facts that may be said with certainty.
Cause = tuple[str, str]
Planted = tuple[set[Cause], set[Cause]]


def lock(world: World) -> Planted:
    for run in world.some(0.08):
        world.beside("vacuum", run.start_of("load") - 60, 500)
        run.step("load").below["UPDATE accounts"] = (400 * world.noise(), 1)
        run.step("load").seconds += 400
    return {("below", "UPDATE accounts"), ("beside", "vacuum")}, {("waiting", "load")}


def slow_query(world: World) -> Planted:
    for run in world.runs[-12:]:
        run.step("load").below["SELECT orders"] = (400 * world.noise(), 3)
        run.step("load").seconds += 400
    return {("below", "SELECT orders")}, {("waiting", "load")}


def bigger_input(world: World) -> Planted:
    for run in world.some(0.05):
        run.inputs["rows"] *= 8
        for name in ("transform", "load"):
            run.step(name).seconds *= 5
            run.step(name).cpu *= 5
            run.step(name).output["rows"] *= 8
    return {("input", "input.rows")}, {("working", "load")}


def bad_host(world: World) -> Planted:
    for run in world.runs:
        if run is world.runs[-1]:
            run.process = "host-c/boot.1/104/2"
        if run.process.startswith("host-c"):
            run.step("load").seconds *= 2.5
    return {("host", "host-c")}, {("waiting", "load")}


def new_version(world: World) -> Planted:
    for i, run in enumerate(world.runs[-15:]):
        run.version = "1.8"
        host = run.process.partition("/")[0]
        run.process = f"{host}/boot.1/{900 + i % 2}/1"
        run.step("transform").seconds *= 2.5
        run.step("transform").cpu *= 4
    return {("version", "1.8")}, {("working", "transform")}


def throttled_api(world: World) -> Planted:
    for run in world.some(0.06):
        run.step("load").below["GET rates.example"] = (300 * world.noise(), 15)
        run.step("load").seconds += 300
    return {("below", "GET rates.example")}, {("waiting", "load")}


def memory_growth(world: World) -> Planted:
    for run in world.runs:
        # The collector works the harder, the nearer the heap is to its limit.
        life = run.extra["life"] / 40
        heap = 300 * MB * (1 + 6 * life**2) * world.noise(0.03)
        collecting = 300 * max(0.0, life - 0.75) * 4
        step = run.step("transform")
        step.memory, step.seconds, step.cpu = heap, step.seconds + collecting, step.cpu + collecting
    return {("memory", "steps.transform.peak_memory_bytes")}, {("working", "transform")}


def full_queue(world: World) -> Planted:
    first = world.runs[-18].at
    for i, run in enumerate(world.runs[-18:]):
        run.at = first + 60 * i
        run.step("load").queue = 40.0 + 30 * i
    return {("queue", "load"), ("concurrency", "runs_at_once")}, {("queue", "load")}


def retry_storm(world: World) -> Planted:
    for run in world.runs[-10:]:
        run.step("load").tries = [
            Try(60, "ConnectionResetError", f"[Errno 104] connection {world.rng.randrange(9999)} reset", 2.0**i * 10)
            for i in range(4)
        ]
    return {("retries", "ConnectionResetError")}, set()


def slot_taken(world: World) -> Planted:
    for run in world.some(0.06):
        world.beside("backfill", run.start_of("load") - 30, 440, process=run.process)
        run.step("load").queue = 400 * world.noise()
    return {("slot", "backfill"), ("beside", "backfill")}, {("queue", "load")}


def hung_socket(world: World) -> Planted:
    step = world.runs[-1].step("load")
    step.below["GET partner.example"] = (900, 1)
    step.seconds += 900
    return {("below", "GET partner.example")}, {("waiting", "load")}


def regex(world: World) -> Planted:
    for run in world.some(0.05):
        run.step("transform").seconds += 300
        run.step("transform").cpu += 300
    return {("working", "transform")}, set()


def skewed_instance(world: World) -> Planted:
    for run in world.runs:
        load = run.step("load")
        parts = [
            Step("part", 100 * world.noise(), ("transform",), cpu=40, index=i, output={"rows": 100}) for i in range(8)
        ]
        run.steps = [*(step for step in run.steps if step is not load), *parts]
        run.step("publish").after = ("part", "report")
    slow = world.runs[-1].steps[-3]
    slow.seconds *= 8
    return {("skew", "part")}, {("waiting", "part")}


def cold_start(world: World) -> Planted:
    seen = set()
    for run in world.runs:
        if run.process not in seen:
            run.step("extract").seconds += 150
            run.step("extract").cpu += 10
        seen.add(run.process)
    last = world.runs[-1]
    if last.process in {run.process for run in world.runs[:-1]}:
        last.process = "host-b/boot.1/999/1"
        last.step("extract").seconds += 150
    return {("first_run", "first_run_in_process")}, {("waiting", "extract")}


def upstream_late(world: World) -> Planted:
    for run in world.runs:
        waited = (900 if run is world.runs[-1] else 60) * world.noise(0.2)
        run.steps.insert(0, Step("wait_for_orders", waited, cpu=0.5 * world.noise()))
        run.step("extract").after = ("wait_for_orders",)
        world.beside("orders_export", run.at + waited - 2_000, 2_000 - 0.3)
    return {("upstream", "orders_export")}, {("waiting", "wait_for_orders")}


def time_limit(world: World) -> Planted:
    for run in world.some(0.04):
        step = run.step("load")
        step.seconds, step.error = 600.0, (StepStatus.TIMEOUT, "TimeoutError", "step timed out after 600 s")
    return {("timeout", "load")}, {("waiting", "load")}


def new_step(world: World) -> Planted:
    for run in world.runs[-6:]:
        run.version = "1.8"
        run.steps.append(Step("validate", 200 * world.noise(), ("transform",), cpu=80))
        run.step("load").after = ("validate",)
    return {("new_step", "validate")}, set()


def other_order(world: World) -> Planted:
    for run in world.runs[-6:]:
        run.step("report").after = ("load",)
    return {("order", "report")}, set()


def fewer_workers(world: World) -> Planted:
    for run in world.runs[-16:]:
        run.process = world.runs[-16].process
        run.step("load").queue = 250 * world.noise(0.2)
    return {("workers", "processes")}, {("queue", "load")}


def time_of_day(world: World) -> Planted:
    shift = world.runs[-1].at % 86_400 - 2.5 * 3600
    for run in world.runs:
        run.at -= shift
        if 2 * 3600 <= run.at % 86_400 < 4 * 3600:
            run.step("load").seconds *= 2.2
    return {("time_of_day", "time_of_day")}, {("waiting", "load")}


def bigger_output(world: World) -> Planted:
    for run in world.some(0.06):
        run.step("transform").output["rows"] *= 10
        run.step("load").seconds *= 3
        run.step("load").cpu *= 3.2
    return {("output", "steps.transform.output.rows")}, {("working", "load")}


def failing_value(world: World) -> Planted:
    world.runs[-1].inputs["region"] = "eu"
    for run in world.runs:
        if run.inputs["region"] == "eu":
            run.step("transform").error = (
                StepStatus.FAILED,
                "ValueError",
                f"unknown currency in row {run.inputs['rows']}",
            )
            run.step("transform").seconds = 5
    return {("input", "input.region")}, set()


def flaky_dependency(world: World) -> Planted:
    for run in world.some(0.07):
        run.step("load").tries = [Try(200, "requests.exceptions.Timeout", "read timed out (200 s)", 5)]
    return {("retries", "requests.exceptions.Timeout")}, set()


def slow_child(world: World) -> Planted:
    for run in world.runs:
        load = run.step("load")
        copying = load.seconds - 10
        if run in world.runs[-5:]:
            copying *= 4
        load.seconds = copying + 10
        load.below = {}
        steps = [Step("prepare", 4), Step("copy", copying - 5, ("prepare",), cpu=30)]
        load.child = Plan("loader", run.start_of("load") + 2, steps, process=run.process)
    return {("child", "loader")}, {("waiting", "load")}


# Beyond the scenarios: causes where they are harder to see.


def version_of_two_fifths(world: World) -> Planted:
    """A new version, in so many runs that slow ones are nothing unusual."""
    for i, run in enumerate(world.runs[-80:]):
        run.version = "1.8"
        host = run.process.partition("/")[0]
        run.process = f"{host}/boot.1/{900 + i // 20}/1"
        run.step("transform").seconds *= 2.5
        run.step("transform").cpu *= 4
    return {("version", "1.8")}, {("working", "transform")}


def slow_query_of_half(world: World) -> Planted:
    """A query that is slow in the second half of the runs."""
    for run in world.runs[100:]:
        run.step("load").below["SELECT orders"] = (400 * world.noise(), 3)
        run.step("load").seconds += 400
    return {("below", "SELECT orders")}, {("waiting", "load")}


def one_of_many_keys(world: World) -> Planted:
    """One of many hundred inputs, with a name and a value that are not ASCII."""
    for run in world.runs:
        noise = {f"key {i}": world.rng.choice(("a", "b", 1, 2.5, world.rng.random())) for i in range(600)}
        run.inputs = {**noise, **run.inputs, "größe 📦": world.rng.choice(("東京", "Zürich", "naïve", "x"))}
        if run is world.runs[-1]:
            run.inputs["größe 📦"] = "東京"
        if run.inputs["größe 📦"] == "東京":
            run.step("load").seconds *= 2.6
    return {("input", "input.größe 📦")}, {("waiting", "load")}


def version_that_goes_back(world: World) -> Planted:
    """A version that came, went and came again."""
    for i, run in enumerate(world.runs):
        if i // 10 % 4 == 1 or run is world.runs[-1]:
            run.version = "1.8"
            run.step("transform").seconds *= 2.5
            run.step("transform").cpu *= 4
    return {("version", "1.8")}, {("working", "transform")}


HARDER: Final[dict[str, tuple[Callable[[World], Planted], str]]] = {
    "a version of two fifths of the runs": (version_of_two_fifths, "transform"),
    "a slow query in half of the runs": (slow_query_of_half, "load"),
    "one of many inputs": (one_of_many_keys, "load"),
    "a version that goes back": (version_that_goes_back, "transform"),
}


def healthy(world: World) -> Planted:
    for name in [step.name for step in world.runs[-1].steps]:
        world.runs[-1].step(name).seconds = world.runs[-2].step(name).seconds * world.noise(0.02)
    return set(), set()


SCENARIOS: Final[dict[str, tuple[Callable[[World], Planted], str]]] = {
    "a lock": (lock, "load"),
    "a slow query": (slow_query, "load"),
    "a bigger input": (bigger_input, "load"),
    "a bad host": (bad_host, "load"),
    "a new version": (new_version, "transform"),
    "a throttled API": (throttled_api, "load"),
    "memory growth with GC": (memory_growth, "transform"),
    "a full queue": (full_queue, "load"),
    "a retry storm": (retry_storm, "load"),
    "a slot taken by another workflow": (slot_taken, "load"),
    "a hung socket": (hung_socket, "load"),
    "a regex": (regex, "transform"),
    "one slow instance": (skewed_instance, "part"),
    "a cold start": (cold_start, "extract"),
    "an upstream workflow late": (upstream_late, "wait_for_orders"),
    "a time limit": (time_limit, "load"),
    "a new step": (new_step, ""),
    "another order of steps": (other_order, ""),
    "fewer workers": (fewer_workers, "load"),
    "the time of day": (time_of_day, "load"),
    "a bigger output": (bigger_output, "load"),
    "a failing input value": (failing_value, "transform"),
    "a flaky dependency": (flaky_dependency, "load"),
    "a slow child workflow": (slow_child, "load"),
    "nothing (the control)": (healthy, ""),
}
LIVES: Final = {"a cold start": 15}


class Recording:
    """Writes plans as the library records them."""

    def __init__(self, database: Database, seed: int) -> None:
        self._writer = StoreWriter(database)
        self._database = database
        self._rng = random.Random(f"ids {seed}")

    def write(self, workspace: str, plans: Sequence[Plan]) -> None:
        """Store runs with the spans below their steps."""
        events: list[Event] = []
        spans: dict[str, list[SpanRecord]] = {}
        for plan in sorted(plans, key=lambda plan: plan.end):
            events += self._events(workspace, plan, spans)
        for i in range(0, len(events), 4_000):
            self._writer.apply(events[i : i + 4_000])
        self._write_spans(workspace, spans)

    def _write_spans(self, workspace: str, spans: dict[str, list[SpanRecord]]) -> None:
        rows, owner = SpanRows(self._database.dialect), workspace_id(workspace)
        counts = {trace_id: len(group) for trace_id, group in spans.items()}

        def work(connection: Connection) -> None:
            rows.put(connection, owner, spans, counts, {})
            rows.put_traces(connection, owner, spans, counts, {}, {}, END_NS)

        if spans:
            self._database.run(work)

    def _id(self, bits: int) -> str:
        return f"{self._rng.getrandbits(bits) or 1:0{bits // 4}x}"

    def _events(self, workspace: str, plan: Plan, spans: dict[str, list[SpanRecord]]) -> Iterator[Event]:
        for step in plan.steps:
            if step.child is not None:
                yield from self._events(workspace, step.child, spans)
        owner = workflow_id(workspace, plan.workflow)
        execution = plan.execution = new_execution_ref(
            workspace=workspace, workflow=plan.workflow, workflow_id=owner, version=plan.version,
            parent=(self._id(128), self._id(64)),
        )  # fmt: skip
        start = round(plan.at * NS)
        inputs = json.dumps(plan.inputs)
        yield ExecutionStarted(
            execution=execution, time_ns=start, step_count=len(plan.steps), inputs=inputs, process=plan.process
        )
        refs: dict[str, list[StepRef]] = {}
        ends: dict[str, int] = {}
        timed: list[Any] = []
        failure = None
        pending = list(plan.steps)
        while pending:
            step = next(each for each in pending if all(name in refs for name in each.after))
            pending.remove(step)
            depends_on = [ref for name in step.after for ref in refs[name]]
            ref = StepRef(
                execution=execution, step_id=step_id(owner, step.name, step.index), name=step.name,
                span_id=self._id(64), parent_span_id=execution.span_id, step_order=len(ends), index=step.index,
                map_index=str(step.index) if step.is_mapped else None,
                depends_on=tuple(each.step_id for each in depends_on),
                child_execution_id=step.child.execution.execution_id if step.child and step.child.execution else None,
            )  # fmt: skip
            ready = max((ends[each.step_id] for each in depends_on), default=start + NS // 100)
            yield from self._step(step, ref, start, ready, ends)
            refs.setdefault(step.name, []).append(ref)
            if not step.is_skipped:
                timed.append(_Timed(ref, ready + round(step.queue * NS), ends[ref.step_id]))
            self._below(step, ref, ready + round(step.queue * NS), spans)
            if step.error is not None:
                failure = step.error
                break
        status = ExecutionStatus.COMPLETED if failure is None else ExecutionStatus.FAILED
        yield ExecutionFinished(
            execution=execution, time_ns=max(ends.values()) + NS // 100, status=status, started_ns=start,
            step_count=len(plan.steps), completed_step_count=len(ends) - (failure is not None),
            failed_step_count=int(failure is not None), critical_path=critical_path_of(timed),
            failure=Failure(failure[1], failure[2]) if failure is not None else None, inputs=inputs,
        )  # fmt: skip

    def _step(self, step: Step, ref: StepRef, start: int, ready: int, ends: dict[str, int]) -> Iterator[Event]:
        queue = round(step.queue * NS)
        if step.is_skipped:
            ends[ref.step_id] = ready
            yield StepSkipped(step=ref, time_ns=ready, reason=SkipReason.CONDITION)
            return
        first = at = ready + queue
        wait, backoff, running = ready - start, 0, 0
        yield StepStarted(step=ref, time_ns=at, dependency_ns=wait, queue_ns=queue)
        attempt = 1
        last_backoff = 0
        for each in step.tries:
            ended = at + round(each.seconds * NS)
            yield StepRetrying(
                step=ref, time_ns=ended, attempt=attempt, status=StepStatus.FAILED, started_ns=at,
                delay_ns=round(each.backoff * NS), failure=Failure(each.error, each.message),
                dependency_ns=wait if attempt == 1 else 0, queue_ns=queue if attempt == 1 else 0,
                backoff_ns=last_backoff,
            )  # fmt: skip
            running += ended - at
            last_backoff = round(each.backoff * NS)
            backoff += last_backoff
            at = ended + last_backoff
            attempt += 1
            yield StepStarted(step=ref, time_ns=at, attempt=attempt, backoff_ns=last_backoff)
        end = ends[ref.step_id] = at + round(step.seconds * NS)
        status, failure = StepStatus.COMPLETED, None
        if step.error is not None:
            status, failure = step.error[0], Failure(step.error[1], step.error[2])
        yield StepFinished(
            step=ref, time_ns=end, status=status, attempt=attempt, started_ns=first, attempt_started_ns=at,
            dependency_ns=wait, queue_ns=queue, backoff_ns=backoff, run_ns=running + end - at,
            last_queue_ns=queue if attempt == 1 else 0, last_backoff_ns=last_backoff, failure=failure,
            output=json.dumps(step.output) if status is StepStatus.COMPLETED and step.output else None,
            resources=Resources(cpu_seconds=round(step.cpu, 3), peak_memory_bytes=round(step.memory), **step.used),
        )  # fmt: skip

    def _below(self, step: Step, ref: StepRef, at: int, spans: dict[str, list[SpanRecord]]) -> None:
        for name, (seconds, count) in step.below.items():
            length = round(seconds * NS / count)
            for _ in range(count):
                span = Span(
                    trace_id=bytes.fromhex(ref.execution.trace_id), span_id=self._rng.randbytes(8),
                    parent_span_id=bytes.fromhex(ref.span_id), name=name, kind=Span.SPAN_KIND_CLIENT,
                    start_time_unix_nano=at, end_time_unix_nano=at + length,
                )  # fmt: skip
                at += length
                spans.setdefault(ref.execution.trace_id, []).append(
                    record(span, "worker", "sqlalchemy", "worker", _RESOURCE, {"service.name": "worker"})
                )


@dataclass
class _Timed:
    """A step on the critical path."""

    ref: StepRef
    started_ns: int | None
    finished_ns: int | None
    parent_step_id: str | None = None

    @property
    def step_id(self) -> str:
        return self.ref.step_id

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def depends_on(self) -> Sequence[str]:
        return self.ref.depends_on


def _resource() -> bytes:
    group = ResourceSpans()
    group.resource.attributes.add(key="service.name").value.string_value = "worker"
    group.scope_spans.add().scope.name = "sqlalchemy"
    return group.SerializeToString()


_RESOURCE: Final = _resource()


def play(database: Database, scenario: str, seed: int) -> tuple[str, str, Planted]:
    """Record a scenario in a workspace of its own: (workspace, id of the last run, what was planted)."""
    plant, _ = (SCENARIOS | HARDER)[scenario]
    world = World(random.Random(f"{scenario} {seed}"), process_life=LIVES.get(scenario, 40))
    planted = plant(world)
    workspace = f"{scenario} {seed}"
    Recording(database, seed).write(workspace, [*world.runs, *world.others])
    last = world.runs[-1].execution
    assert last is not None
    return workspace, last.execution_id, planted
