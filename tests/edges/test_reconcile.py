"""Reconcile reads what users read: a difference planted in any view is found and named, an honest run agrees."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Connection, delete, insert, select, update

import tachograph
from tachograph.clock import NS
from tachograph.distribution import Distribution
from tachograph.events import (
    Event,
    ExecutionStarted,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, workflow_id, workspace_id
from tachograph.metrics.children import Child, CounterChild, GaugeChild
from tachograph.metrics.specs import EXECUTIONS_RUNNING, METRICS, OLDEST_RUNNING, STEPS_RUNNING, GaugeSpec
from tachograph.spans.listener import SpanListener
from tachograph.workflow import HandlerRegistry
from tachograph.workflow.definition import Backoff
from tachograph_exporter import bundled_workflows, service
from tachograph_exporter.config import Config
from tachograph_exporter.metrics.shown_series import SeriesKey
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics
from tachograph_exporter.store import archiving
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import checking
from tachograph_exporter.store.schema import (
    archived_executions,
    event_log,
    series_deltas,
    workflow_executions,
    workflow_rollups,
    workflow_series,
    workflow_step_attempts,
    workflow_step_executions,
)
from tachograph_exporter.store.series import checking as series_checking
from tachograph_exporter.store.series import rows as series_rows
from tachograph_exporter.store.series.values import (
    ATTEMPTS,
    DURATION,
    EXECUTION,
    KINDS,
    SEPARATOR,
    Series,
    StepSeries,
)
from tachograph_exporter.store.totals import WorkflowTotals
from tests.conftest import Api, make_step, serve

WORKSPACE: Final = workspace_id("default")
RECORDINGS: Final = Path(__file__).parent / "recordings"
REAL: Final = Path(__file__).parents[1] / "ingest" / "recordings"
VIEWS: Final = ("rows", "timeline", "list", "otlp", "spans", "events", "rollups", "metrics")
NIGHTLY: Final = {
    "name": "nightly",
    "steps": [
        {"name": "extract", "config": {"handler": "sleep", "seconds": 0.01}},
        {"name": "flaky", "config": {"handler": "fail", "times": 1}, "max_retries": 1,
         "retry_backoff": {"initial_seconds": 0.005}, "depends_on_steps": ["extract"]},
        {"name": "never", "condition_expression": "false", "depends_on_steps": ["extract"]},
        {"name": "load", "config": {"handler": "sleep", "seconds": 0.01}, "depends_on_steps": ["flaky"]},
    ],
}  # fmt: skip


@pytest.fixture
async def recording(
    any_database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    """A service that exports spans, on every kind of database."""
    async for api in recorded(any_database_url, handlers, monkeypatch):
        yield api


@pytest.fixture
async def local(database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """A service that exports spans, on SQLite."""
    async for api in recorded(database_url, handlers, monkeypatch):
        yield api


async def recorded(url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(service, "find_provider", lambda: provider)
    async for api in serve(Config(database=url, grace_seconds=0.2), handlers):
        yield api
    provider.shutdown()


@contextlib.asynccontextmanager
async def followed(api: Api) -> AsyncIterator[None]:
    """Somebody is about to follow the events, so they are logged."""
    await api.service.feed.position()
    yield


async def reconciled(api: Api, execution_id: str) -> dict[str, Any]:
    return cast("dict[str, Any]", await api.get(f"/api/workflows/executions/{execution_id}/reconcile"))


async def agreed(api: Api, execution_id: str) -> dict[str, Any]:
    result = await reconciled(api, execution_id)
    for _ in range(5):
        # The service says so when the machine is too busy.
        if "in time" not in result["reasons"].get("metrics", ""):
            break
        result = await reconciled(api, execution_id)
    assert result["differences"] == []
    assert result["agrees"]
    return result


async def write(api: Api, statement: Any) -> None:
    await api.service.database.write(lambda c: c.execute(statement))


async def newest(api: Api, count: int = 1) -> list[str]:
    await asyncio.to_thread(api.service.recorder.flush)
    items = (await api.get("/api/workflows/executions"))["items"]
    assert len(items) == count
    return [item["execution_id"] for item in items]


class Planting(NamedTuple):
    """A run, and what a fault can be planted in."""

    api: Api
    execution_id: str
    ref: ExecutionRef
    ids: dict[str, str]
    spans: dict[str, str]

    @property
    def metrics(self) -> WorkflowMetrics:
        return self.api.service.workflow_metrics

    @property
    def span_listener(self) -> SpanListener:
        return cast(SpanListener, self.api.service.recorder.spans)

    async def write(self, statement: Any) -> None:
        await write(self.api, statement)

    async def step(self, name: str, **values: Any) -> None:
        steps = workflow_step_executions.c
        await self.write(
            update(workflow_step_executions)
            .where(steps.execution_id == self.execution_id, steps.step_id == self.ids[name])
            .values(**values)
        )

    async def execution(self, **values: Any) -> None:
        row = workflow_executions
        await self.write(update(row).where(row.c.execution_id == self.execution_id).values(**values))

    async def rollup(self, change: Callable[[WorkflowTotals], None]) -> None:
        row = workflow_rollups
        is_head = (row.c.workflow_id == self.ref.workflow_id) & (row.c.period == "5m")

        def work(connection: Connection) -> None:
            (stored,) = connection.execute(select(row.c.executions, row.c.steps).where(is_head)).all()
            totals = WorkflowTotals.decode(stored.executions, stored.steps)
            change(totals)
            executions, steps = totals.encode()
            connection.execute(update(row).where(is_head).values(executions=executions, steps=steps))

        await self.api.service.database.write(work)

    async def log(self, change: Callable[[list[Event]], list[Event]]) -> None:
        log = event_log

        def work(connection: Connection) -> None:
            rows = connection.execute(select(log.c.sequence, log.c.events).where(log.c.count > 0)).all()
            for row in rows:
                events = change(msgspec.msgpack.decode(row.events, type=list[Event]))
                encoded = msgspec.msgpack.encode(events)
                connection.execute(update(log).where(log.c.sequence == row.sequence).values(events=encoded))

        await self.api.service.database.write(work)

    async def total(self, step: str, code: str, change: Callable[[Series], None]) -> None:
        """Change a stored series of the workflow."""
        row = workflow_series
        is_step = (row.c.workflow_id == self.ref.workflow_id) & (row.c.step == step)

        def work(connection: Connection) -> None:
            series_rows.absorb(connection)
            stored = connection.execute(select(row.c.series).where(is_step)).scalar()
            series = StepSeries.decode(stored) if stored is not None else StepSeries()
            change(series.by_code.setdefault(code, Series(code, 0.0)))
            if stored is None:
                values = {"workspace_id": WORKSPACE, "workflow_id": self.ref.workflow_id, "step": step}
                connection.execute(insert(row).values(**values, series=series.encode()))
            else:
                connection.execute(update(row).where(is_step).values(series=series.encode()))

        await self.api.service.database.write(work)

    def gauge(self, metric: str) -> GaugeChild:
        child = self.metrics.shown.families[metric].find("default", self.ref.workflow)
        assert isinstance(child, GaugeChild)
        return child

    def shown(self, step: str, code: str) -> Child:
        child = self.metrics.shown.child(SeriesKey((WORKSPACE, self.ref.workflow_id), step, code))
        assert child is not None
        return child


async def planted(api: Api, *, is_followed: bool = False, workflow: str = "nightly") -> Planting:
    """An honest run of `NIGHTLY`, all views compared; its events only if somebody follows them, which takes a while."""
    status, _ = await api.call("POST", "/api/workflows", {**NIGHTLY, "name": workflow})
    assert status == 201
    async with followed(api) if is_followed else contextlib.nullcontext():
        execution_id = await api.run(workflow)
    result = await agreed(api, execution_id)
    assert result["views"] == {**dict.fromkeys(VIEWS, 4), "events": 4 if is_followed else None}
    assert set(result["reasons"]) == (set() if is_followed else {"events"})
    timeline = await api.get(f"/api/workflows/executions/{execution_id}/timeline")
    ref = ExecutionRef(
        workspace="default",
        workflow=workflow,
        workflow_id=timeline["workflow_id"],
        execution_id=execution_id,
        trace_id=timeline["trace_id"],
        span_id=timeline["span_id"],
    )
    ids = {step["step_name"]: step["step_id"] for step in timeline["step_timeline"]}
    spans = {step["step_name"]: step["span_id"] for step in timeline["step_timeline"]}
    return Planting(api, execution_id, ref, ids, spans)


Plant = Callable[[Planting], Awaitable[None] | None]


def span_change(name: str, **changes: Any) -> Plant:
    def plant(run: Planting) -> None:
        ended = run.span_listener.ended.of(run.execution_id)
        assert ended is not None
        key = int(run.spans[name] if name else run.ref.span_id, 16)
        span = dict(zip(("start_ns", "end_ns", "is_error", "status"), ended._spans[key], strict=True))
        for field, change in changes.items():
            span[field] = change(span[field])
        ended._spans[key] = tuple(span.values())  # type: ignore[assignment]

    return plant


def span_lost(run: Planting) -> None:
    ended = run.span_listener.ended.of(run.execution_id)
    assert ended is not None
    del ended._spans[int(run.spans["load"], 16)]


def span_too_many(run: Planting) -> None:
    ended = run.span_listener.ended.of(run.execution_id)
    assert ended is not None
    ended._spans[77] = (1, 2, False, "completed")


def ends_of(events: list[Event], name: str, change: Callable[[StepFinished], Event]) -> list[Event]:
    return [change(event) if type(event) is StepFinished and event.step.name == name else event for event in events]


def later(events: list[Event]) -> list[Event]:
    return ends_of(events, "load", lambda event: msgspec.structs.replace(event, time_ns=event.time_ns + 7))


def without_load(events: list[Event]) -> list[Event]:
    return [e for e in events if getattr(getattr(e, "step", None), "name", "") != "load"]


def other_output(events: list[Event]) -> list[Event]:
    return ends_of(events, "extract", lambda event: msgspec.structs.replace(event, output='"other"'))


def twice(totals: WorkflowTotals) -> None:
    totals.add(WorkflowTotals.decode(*totals.encode()))


def stale(totals: WorkflowTotals) -> None:
    totals.steps["load"].by_status["completed"].run_ns += 5


def step_missing(totals: WorkflowTotals) -> None:
    del totals.steps["extract"]


def one_more(series: Series) -> None:
    series.add(1)


def one_longer(series: Series) -> None:
    more = Distribution()
    more.observe_ns(5)
    series.add(more)


def another_bucket(series: Series) -> None:
    values = series.value
    assert isinstance(values, Distribution)
    values.classic = {index + 1: count for index, count in values.classic.items()}


def set_oldest(run: Planting) -> None:
    child = run.metrics.shown.families[OLDEST_RUNNING.name].labels("default", run.ref.workflow)  # type: ignore[attr-defined]
    child.set(5.0)


def shown_more(run: Planting) -> None:
    child = run.shown("load", f"{ATTEMPTS}{SEPARATOR}completed")
    assert isinstance(child, CounterChild)
    child.inc()


async def attempt_row(run: Planting) -> None:
    row = workflow_step_attempts.c
    is_second = (row.execution_id == run.execution_id) & (row.attempt == 2)
    await run.write(update(workflow_step_attempts).where(is_second).values(finished_ns=row.finished_ns + 3))


async def attempt_more(run: Planting) -> None:
    values = {"execution_id": run.execution_id, "step_id": run.ids["flaky"], "attempt": 3, "status": "failed",
              "started_ns": 5, "finished_ns": 6, "queue_ns": 0, "backoff_ns": 0}  # fmt: skip
    await run.write(insert(workflow_step_attempts).values(values))


ATTEMPTS_OF_LOAD: Final = 'workflow_step_attempts_total{step="load",outcome="completed"}'


def stepwise(name: str, **values: Any) -> Plant:
    return lambda run: run.step(name, **values)


def executionwise(**values: Any) -> Plant:
    return lambda run: run.execution(**values)


STEP_END: Final = workflow_step_executions.c.finished_ns
QUEUE_OF_LOAD: Final = 'workflow_step_wait_seconds_sum{step="load",reason="queue"}'


class Planted(NamedTuple):
    """A fault, and the step, field and views that a difference must name."""

    plant: Plant
    step: str
    field: str
    views: set[str]


PLANTS: Final[dict[str, Planted]] = {
    "a step's status": Planted(
        stepwise("load", status="failed"), "load", "status", {"rows", "timeline", "spans", "otlp", "events"}
    ),
    "a step's length": Planted(
        stepwise("load", finished_ns=STEP_END + 5), "load", "duration_ns", {"rows", "timeline", "spans", "otlp"}
    ),
    "a step's end": Planted(
        stepwise("load", finished_ns=STEP_END + 5), "load", "finished_ns", {"rows", "events", "spans", "otlp"}
    ),
    "a step's running time": Planted(stepwise("load", run_ns=1), "load", "run_ns", {"rows", "timeline", "events"}),
    "a step's output": Planted(stepwise("load", output='"x"'), "load", "output", {"rows", "events"}),
    "a step's wait": Planted(stepwise("load", queue_ns=10**6), "load", QUEUE_OF_LOAD, {"metrics", "executions"}),
    "a step's span id": Planted(
        stepwise("load", span_id="00000000000000aa"), "load", "presence", {"spans", "rows"}
    ),
    "an attempt's end": Planted(
        attempt_row, "flaky", "attempts[2].finished_ns", {"rows", "spans", "otlp", "events"}
    ),
    "an attempt more": Planted(attempt_more, "flaky", "attempts", {"step", "attempts"}),
    "a run's status": Planted(executionwise(status="failed"), "", "status", {"rows", "list", "spans", "events"}),
    "a run's start": Planted(
        executionwise(started_ns=workflow_executions.c.started_ns + 5), "", "started_ns", {"rows", "spans", "events"}
    ),
    "a run's error": Planted(executionwise(error_message="x"), "", "error_message", {"rows", "list", "events"}),
    "step_count": Planted(executionwise(step_count=0), "", "step_count", {"list", "timeline", "events"}),
    "completed_step_count": Planted(
        executionwise(completed_step_count=9), "", "completed_step_count", {"list", "timeline", "events"}
    ),
    "failed_step_count": Planted(executionwise(failed_step_count=1), "", "failed_step_count", {"list", "timeline"}),
    "skipped_step_count": Planted(executionwise(skipped_step_count=0), "", "skipped_step_count", {"list", "timeline"}),
    "work": Planted(executionwise(work_ns=7), "", "work_ns", {"list", "timeline", "events"}),
    "the critical path's length": Planted(
        executionwise(critical_path_ns=7), "", "critical_path_ns", {"list", "timeline", "events"}
    ),
    "the critical path": Planted(
        executionwise(critical_path="[]"), "load", "on_critical_path", {"timeline", "rollups"}
    ),
    "a span's end": Planted(
        span_change("load", end_ns=lambda ns: ns + 9), "load", "duration_ns", {"spans", "rows"}
    ),
    "a span's status": Planted(span_change("load", status=lambda _: "failed"), "load", "status", {"spans", "rows"}),
    "the run's span": Planted(span_change("", end_ns=lambda ns: ns + 9), "", "finished_ns", {"spans", "rows"}),
    "a span lost": Planted(span_lost, "load", "presence", {"spans", "rows"}),
    "a span of nothing": Planted(span_too_many, "", "presence", {"spans", "rows"}),
    "an event's time": Planted(lambda run: run.log(later), "load", "finished_ns", {"events", "rows"}),
    "an event's output": Planted(lambda run: run.log(other_output), "extract", "output", {"events", "rows"}),
    "an event lost": Planted(lambda run: run.log(without_load), "load", "presence", {"events", "rows"}),
    "a rollup counted twice": Planted(lambda run: run.rollup(twice), "", "rollups", {"rollups", "executions"}),
    "a stale rollup": Planted(lambda run: run.rollup(stale), "load", "completed.run_ns", {"rollups", "executions"}),
    "a rollup without a step": Planted(
        lambda run: run.rollup(step_missing), "extract", "completed.count", {"rollups", "executions"}
    ),
    "a rollup that is no rollup": Planted(
        lambda run: run.write(update(workflow_rollups).values(steps=b"x")), "", "rollups", {"rollups", "executions"}
    ),
    "a rollup missing": Planted(
        lambda run: run.write(delete(workflow_rollups)), "", "rollups", {"rollups", "executions"}
    ),
    "an attempt counted twice": Planted(
        lambda run: run.total("load", f"{ATTEMPTS}{SEPARATOR}completed", one_more), "load", ATTEMPTS_OF_LOAD,
        {"metrics", "executions"},
    ),
    "a step counted twice": Planted(
        lambda run: run.total("load", f"{DURATION}{SEPARATOR}completed", one_longer), "load",
        'workflow_step_duration_seconds_count{step="load",status="completed"}', {"metrics", "executions"},
    ),
    "a step in another bucket": Planted(
        lambda run: run.total("load", f"{DURATION}{SEPARATOR}completed", another_bucket), "load",
        'workflow_step_duration_seconds_bucket{step="load",status="completed"}', {"metrics", "executions"},
    ),
    "a run counted twice": Planted(
        lambda run: run.total("", f"{EXECUTION}{SEPARATOR}completed", one_longer), "",
        'workflow_execution_duration_seconds_count{status="completed"}', {"metrics", "executions"},
    ),
    "an unknown step counted": Planted(
        lambda run: run.total("other", f"{ATTEMPTS}{SEPARATOR}completed", one_more), "other",
        ATTEMPTS_OF_LOAD.replace("load", "other"), {"metrics", "executions"},
    ),
    "a total missing": Planted(
        lambda run: run.write(delete(series_deltas)), "load", ATTEMPTS_OF_LOAD, {"metrics", "executions"}
    ),
    "more shown than stored": Planted(shown_more, "load", ATTEMPTS_OF_LOAD, {"metrics", "database"}),
    "running executions": Planted(
        lambda run: run.gauge(EXECUTIONS_RUNNING.name).inc(), "", EXECUTIONS_RUNNING.name, {"metrics", "running"}
    ),
    "running steps below zero": Planted(
        lambda run: run.gauge(STEPS_RUNNING.name).set(-1), "", STEPS_RUNNING.name, {"metrics", "running"}
    ),
    "the oldest": Planted(set_oldest, "", OLDEST_RUNNING.name, {"metrics", "running"}),
}  # fmt: skip


@pytest.mark.parametrize("is_followed", [False, True], ids=["not followed", "followed"])
@pytest.mark.parametrize("part", range(3))
async def test_differences_are_found_where_they_were_planted(part: int, is_followed: bool, local: Api) -> None:
    """Each in a run of a workflow of its own."""
    plants = [(name, planted) for name, planted in PLANTS.items() if ("events" in planted.views) is is_followed]
    for name, (plant, step, field, views) in plants[part::3]:
        run = await planted(local, is_followed=is_followed, workflow=name)
        if (planting := plant(run)) is not None:
            await planting
        result = await reconciled(local, run.execution_id)
        assert not result["agrees"], name
        named = [d for d in result["differences"] if (d["step"], d["field"]) == (step, field)]
        assert any(views <= set(d["values"]) for d in named), (name, result["differences"])
        if step in run.ids:
            assert {d["step_id"] for d in named} <= {run.ids[step], ""}, name
        assert result["difference_count"] == len(result["differences"]), name


# Faults that all listeners' own notes agreed on.


async def test_steps_of_another_process_are_missed_in_the_list_and_the_totals(local: Api) -> None:
    # A forked child writes its steps itself; the parent's listeners and its totals know nothing of them.
    @tachograph.workflow
    def forks() -> None:
        parent = tachograph.current_execution()
        assert parent is not None
        now = time.time_ns()
        for i in range(4):
            step = make_step(parent, f"child {i}")
            local.service.writer.apply([
                StepStarted(step=step, time_ns=now),
                StepFinished(step=step, time_ns=now + 50, status=StepStatus.COMPLETED, attempt=1, started_ns=now,
                             attempt_started_ns=now, run_ns=50),
            ])  # fmt: skip

    await asyncio.to_thread(forks)
    (execution_id,) = await newest(local)
    result = await reconciled(local, execution_id)
    differences = {(d["step"], d["field"]): d["values"] for d in result["differences"]}
    step_count = differences["", "step_count"]
    assert (step_count["list"], step_count["timeline"]) == (0, 4)
    assert differences["", "work_ns"] == {"rows": 0, "timeline": 200, "list": 0}
    # Series are counted from the rows: those are there.
    assert not any(field.startswith("workflow_") for _, field in differences)
    assert differences["child 2", "presence"]["spans"] is False


async def test_a_step_that_runs_on_in_an_ended_run_is_named(local: Api) -> None:
    run = await planted(local)
    await run.step("load", status="running", finished_ns=None, run_ns=None, rank=2)
    (status,) = [
        d for d in (await reconciled(local, run.execution_id))["differences"]
        if d["field"] == "status" and d["message"]
    ]  # fmt: skip
    assert (status["step"], status["values"]) == ("load", {"timeline": "running", "execution": "completed"})


async def test_totals_that_do_not_fit_into_the_run_are_impossible(local: Api) -> None:
    impossible: dict[str, dict[str, Any]] = {
        "work_ns": {"work_ns": 10**15},
        "critical_path_ns": {"critical_path_ns": 10**15},
        "finished_ns": {"finished_ns": 1, "status": "completed"},
    }
    for field, values in impossible.items():
        run = await planted(local, workflow=field)
        await run.execution(**values)
        differences = (await reconciled(local, run.execution_id))["differences"]
        assert [d for d in differences if d["field"] == field and d["step"] == "" and d["message"]], field


LONG: Final = 10**15
IMPOSSIBLE: Final[dict[str, tuple[dict[str, Any], str, str]]] = {
    "before the run": ({"started_ns": 5}, "started_ns", "before the run"),
    "after the run": ({"finished_ns": 1 << 61}, "finished_ns", "after the run"),
    "ended before it began": ({"finished_ns": 5}, "finished_ns", "before it began"),
    "ran longer than it lasted": ({"run_ns": LONG}, "run_ns", "longer than it lasted"),
    "waited longer than the run": ({"queue_ns": LONG}, "queue_ns", "longer than the run"),
    "a negative wait": ({"dependency_ns": -3}, "dependency_ns", "negative"),
    "parts that do not add up": ({"backoff_ns": 3}, "wait_ns + run_ns", "add up"),
    "inside no step": ({"parent_step_id": "nowhere"}, "parent_step_id", "no such step"),
    "ended at no time": ({"finished_ns": None}, "finished_ns", "no time"),
}


async def test_times_that_no_step_can_have_are_named_though_views_may_show_them_alike(local: Api) -> None:
    for name, (values, field, message) in IMPOSSIBLE.items():
        run = await planted(local, workflow=name)
        await run.step("load", **values)
        differences = (await reconciled(local, run.execution_id))["differences"]
        (difference,) = [d for d in differences if d["field"] == field and message in d["message"]]
        assert difference["step"] == "load", name


async def test_an_event_that_comes_twice_counts_once(local: Api) -> None:
    events: list[Event] = []
    local.service.recorder.add("test", events.append)
    run = await planted(local)
    for event in [
        e for e in events if getattr(getattr(e, "step", None), "name", "") == "load" or "Exec" in str(type(e))
    ]:
        local.service.recorder.queues["store"].put(event)
    result = await agreed(local, run.execution_id)
    assert result["views"]["metrics"] == 4


# Honest runs.

CASES: Final[list[tuple[str, dict[str, Any]]]] = [
    *((path.stem, {}) for path in bundled_workflows.workflow_files()),
    ("conditional_workflow", {"mode": "none of them"}),
    ("data_pipeline", {"minimum_rows": 10**9}),
]


async def test_every_example_agrees_in_every_view(recording: Api) -> None:
    async with followed(recording):
        for name, inputs in CASES:
            document = (bundled_workflows.workflow_directory() / f"{name}.json").read_bytes()
            headers = {"Content-Type": "application/json"}
            await recording.call("POST", "/api/workflows", None, data=document, headers=headers)
            result = await agreed(recording, await recording.run(name, inputs))
            assert set(result["views"]) == set(VIEWS)
            assert result["reasons"] == {}, name
            assert len(set(result["views"].values())) == 1


@tachograph.step(max_retries=2, backoff=Backoff(initial_seconds=0.002))
def unsteady(failures: list[int]) -> str:
    if failures:
        failures.pop()
        raise OSError("not yet")
    tachograph.measure("rows", 12, "row")
    tachograph.cost(0.25, tokens_in=10, tokens_out=3, model="m")
    tachograph.log("done")
    return "ok"


@tachograph.step
def outer() -> None:
    for _ in range(3):
        inner()
    unsteady([1])


@tachograph.step
def inner() -> None:
    time.sleep(0.001)


@tachograph.step
def breaks() -> None:
    raise ValueError("broken")


async def test_recorded_functions_agree_nested_retried_repeated_failed_and_cancelled(recording: Api) -> None:
    @tachograph.workflow
    def mixed(error: BaseException | None) -> None:
        unsteady([1, 2])
        outer()
        for _ in range(4):
            inner()
        if error is not None:
            raise error

    @tachograph.workflow
    def failing() -> None:
        inner()
        breaks()

    def run() -> None:
        mixed(None)
        for function, arguments in ((mixed, (KeyboardInterrupt(),)), (mixed, (OSError(),)), (failing, ())):
            with contextlib.suppress(BaseException):
                function(*arguments)

    async with followed(recording):
        await asyncio.to_thread(run)
        for execution_id in await newest(recording, 4):
            result = await agreed(recording, execution_id)
            assert result["reasons"] == {}
            assert len(set(result["views"].values()) - {0}) == (
                2 if result["views"]["list"] != result["views"]["rows"] else 1
            )


async def test_a_run_agrees_while_it_goes_on(recording: Api) -> None:
    half, goes_on = threading.Event(), threading.Event()

    @tachograph.workflow
    def long() -> None:
        inner()
        unsteady([1])
        with tachograph.step("waits"):
            half.set()
            assert goes_on.wait(60)

    async with followed(recording):
        running = asyncio.create_task(asyncio.to_thread(long))
        await asyncio.to_thread(half.wait, 60)
        (execution_id,) = await newest(recording)
        result = await agreed(recording, execution_id)
        assert result["reasons"] == {"rollups": "it has not ended", "metrics": "it counts when it ends"}
        assert result["views"]["metrics"] is None
        # What has ended is compared.
        row = workflow_step_executions
        statement = update(row).where(row.c.name == "inner").values(status="failed")
        await write(recording, statement)
        assert {"status"} <= {d["field"] for d in (await reconciled(recording, execution_id))["differences"]}
        goes_on.set()
        await running


async def test_cancelled_and_timed_out_runs_agree(recording: Api) -> None:
    slow = {
        "name": "slow", "max_retries": 9, "steps": [
            {"name": "backs off", "config": {"handler": "fail"}, "retry_backoff": {"initial_seconds": 60}},
            {"name": "sleeps", "config": {"handler": "sleep", "seconds": 60}},
            {"name": "after", "depends_on_steps": ["sleeps"]},
        ],
    }  # fmt: skip
    await recording.call("POST", "/api/workflows", slow)
    await recording.call("POST", "/api/workflows", {**slow, "name": "short", "timeout_seconds": 0.2})
    async with followed(recording):
        _, body = await recording.call("POST", "/api/workflows/slow/execute", {})
        cancelled = body["execution_id"]
        while True:
            steps = (await recording.get(f"/api/workflows/executions/{cancelled}/timeline"))["step_timeline"]
            if {step["status"] for step in steps if step["step_name"] != "after"} == {"retrying", "running"}:
                break
            await asyncio.sleep(0.02)
        await agreed(recording, cancelled)
        await recording.call("POST", f"/api/workflows/executions/{cancelled}/cancel")
        await recording.finished(cancelled)
        for execution_id in (cancelled, await recording.run("short")):
            result = await agreed(recording, execution_id)
            assert result["views"] == dict.fromkeys(VIEWS, 3)


@pytest.mark.parametrize(
    "name",
    ["airflow3_nightly", "celery_failed", "langchain_retry", "logfire_openai_agents_as_tool", "pydantic_ai_nested"],
)
async def test_runs_of_engines_agree(name: str, recording: Api) -> None:
    body = next(path for at in (RECORDINGS, REAL) if (path := at / f"{name}.json").exists()).read_bytes()
    status, _ = await recording.call(
        "POST", "/v1/traces", None, data=body, headers={"Content-Type": "application/json"}
    )
    assert status == 200
    items = (await recording.get("/api/workflows/executions"))["items"]
    assert items
    for item in items:
        result = await agreed(recording, item["execution_id"])
        assert result["views"]["spans"] == result["views"]["rows"] > 0
        assert result["views"]["rollups"] == result["views"]["rows"]


async def test_a_fault_in_an_engines_run_is_found(local: Api) -> None:
    body = (RECORDINGS / "celery_failed.json").read_bytes()
    await local.call("POST", "/v1/traces", None, data=body, headers={"Content-Type": "application/json"})
    item = (await local.get("/api/workflows/executions"))["items"][0]
    row = workflow_step_executions
    (step, *_) = (await local.get(f"/api/workflows/executions/{item['execution_id']}/timeline"))["step_timeline"]
    statement = update(row).where(row.c.step_id == step["step_id"]).values(span_id="00000000000000aa")
    await write(local, statement)
    result = await reconciled(local, item["execution_id"])
    (presence,) = [d for d in result["differences"] if d["field"] == "presence"]
    assert (presence["step"], presence["values"]["spans"]) == (step["step_name"], False)


async def test_a_lost_run_agrees_though_its_process_is_gone(recording: Api) -> None:
    from tests.store.test_recovery import dead_identity

    now = time.time_ns()
    ref = ExecutionRef(
        workspace="default", workflow="gone", workflow_id=workflow_id("default", "gone"), trace_id="ab" * 16,
        execution_id="0190aaaa-0000-7000-8000-000000000001", span_id="cd" * 8,
    )  # fmt: skip
    done, left = make_step(ref, "done"), make_step(ref, "left")
    sweep = recording.sweep_by_hand()
    recording.service.writer.apply([
        ExecutionStarted(execution=ref, time_ns=now, step_count=5, process=dead_identity()),
        StepStarted(step=done, time_ns=now + 10, dependency_ns=10),
        StepFinished(step=done, time_ns=now + 50, status=StepStatus.COMPLETED, attempt=1, started_ns=now + 10,
                     attempt_started_ns=now + 10, dependency_ns=10, run_ns=40),
        StepStarted(step=left, time_ns=now + 60, dependency_ns=60),
    ])  # fmt: skip
    result = await agreed(recording, ref.execution_id)
    assert result["reasons"]["metrics"] == "it counts when it ends"
    assert "another process" in result["reasons"]["spans"]
    assert await sweep() == 1
    await asyncio.to_thread(recording.service.recorder.flush)
    result = await agreed(recording, ref.execution_id)
    assert result["views"]["metrics"] == 2
    assert result["views"]["spans"] == 1
    assert "metrics" not in result["reasons"]
    assert result["reasons"]["spans"].startswith("in part")


async def test_a_run_of_another_process_is_compared_where_it_can_be(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async for api in recorded(database_url, handlers, monkeypatch):
        execution_id = (await planted(api, is_followed=True)).execution_id
    # The service starts again: its listeners know nothing of earlier runs.
    async for api in recorded(database_url, handlers, monkeypatch):
        result = await agreed(api, execution_id)
        assert {view for view, count in result["views"].items() if count is None} == {"spans"}
        assert set(result["reasons"]) == {"spans"}
        assert result["views"]["metrics"] == 4
        assert result["views"]["events"] == 4


async def test_spans_that_another_process_exported_to_us_are_compared(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async for api in recorded(database_url, handlers, monkeypatch):
        execution_id = (await planted(api)).execution_id
    async for api in recorded(database_url, handlers, monkeypatch):
        exported = await api.get(f"/api/workflows/executions/{execution_id}/timeline?format=otlp")
        (group,) = exported["resourceSpans"]
        spans = group["scopeSpans"][0]["spans"]
        (late,) = [span for span in spans if span["name"] == "load"]
        spans.remove(late)
        assert (await api.call("POST", "/v1/traces", exported))[0] == 200
        result = await agreed(api, execution_id)
        assert result["views"]["spans"] == 3
        assert result["reasons"]["spans"].startswith("in part")
        spans.append(late)
        assert (await api.call("POST", "/v1/traces", exported))[0] == 200
        result = await agreed(api, execution_id)
        assert result["views"]["spans"] == 4
        assert "spans" not in result["reasons"]
        row = workflow_step_executions.c
        is_load = (row.execution_id == execution_id) & (row.name == "load")
        await write(api, update(workflow_step_executions).where(is_load).values(started_ns=row.started_ns + 1))
        differences = (await reconciled(api, execution_id))["differences"]
        assert {"rows", "spans", "otlp"} <= {
            view for d in differences if (d["step"], d["field"]) == ("load", "started_ns") for view in d["values"]
        }


async def test_archived_runs_say_what_cannot_be_compared(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    async for api in recorded(database_url, handlers, monkeypatch):
        execution_id = (await planted(api)).execution_id
        tomorrow = time.time_ns() + 86_400 * NS
        await asyncio.to_thread(archiving.archive, Database(database_url), tomorrow, tmp_path / "archive")
        result = await agreed(api, execution_id)
        left_out = {view for view, count in result["views"].items() if count is None}
        assert left_out == {"spans", "events", "rollups", "metrics"}
        assert all("archived" in reason for reason in result["reasons"].values())
        statement = update(archived_executions).values(step_count=3)
        await write(api, statement)
        differences = (await reconciled(api, execution_id))["differences"]
        assert [(d["field"], d["values"]["list"], d["values"]["timeline"]) for d in differences] == [
            ("step_count", 3, 4)
        ]


async def test_a_run_whose_trace_was_dropped_says_so(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async for api in recorded(database_url, handlers, monkeypatch):
        await api.call("POST", "/api/workflows", NIGHTLY)
        result = await agreed(api, await api.run("nightly"))
        assert (result["views"]["spans"], result["reasons"]["spans"]) == (None, "the sampler dropped its trace")


async def test_a_run_past_the_limit_on_series_agrees_and_a_fault_in_it_is_still_found(
    database_url: str, handlers: HandlerRegistry
) -> None:
    async for api in serve(Config(database=database_url, grace_seconds=0.2, series_limit=2), handlers):
        await api.call("POST", "/api/workflows", NIGHTLY)
        execution_id = await api.run("nightly")
        result = await agreed(api, execution_id)
        assert result["views"]["metrics"] == 4
        statement = delete(series_deltas)
        await write(api, statement)
        differences = (await reconciled(api, execution_id))["differences"]
        assert {"workflow_step_attempts_total"} <= {d["field"].partition("{")[0] for d in differences}


async def test_executions_that_are_too_many_to_count_again_are_left_out(
    local: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await planted(local)
    monkeypatch.setattr(checking, "MAX_STEPS", 4)
    result = await agreed(local, run.execution_id)
    assert result["views"]["rollups"] is None
    assert "too many" in result["reasons"]["rollups"]
    # Series are then compared with what all rollups add up to.
    monkeypatch.setattr(series_checking, "MAX_STEPS", 4)
    result = await agreed(local, run.execution_id)
    assert "too many" in result["reasons"]["metrics"]
    await run.total("load", f"{DURATION}{SEPARATOR}completed", one_longer)
    (count, total) = (await reconciled(local, run.execution_id))["differences"]
    assert count["values"] == {"metrics": 2, "rollups": 1}
    assert total["field"].startswith("workflow_step_duration_seconds_sum")


async def test_concurrent_runs_of_one_workflow_agree_and_are_told_apart(local: Api) -> None:
    await local.call("POST", "/api/workflows", NIGHTLY)
    ids = await asyncio.gather(*[local.run("nightly") for _ in range(12)])
    for execution_id in ids:
        await agreed(local, execution_id)
    row = workflow_step_executions
    statement = update(row).where(row.c.execution_id == ids[3], row.c.name == "load").values(attempt=2)
    await write(local, statement)
    assert [execution_id for execution_id in ids if not (await reconciled(local, execution_id))["agrees"]] == [
        *ids  # The rollup row that all of them are in shows a retry too few.
    ]
    fields = {d["field"] for d in (await reconciled(local, ids[3]))["differences"]}
    assert "attempts" in fields
    assert "attempts" not in {d["field"] for d in (await reconciled(local, ids[4]))["differences"]}


async def test_a_long_run_is_compared_in_a_few_times_what_its_timeline_costs(local: Api) -> None:
    @tachograph.workflow
    def long() -> None:
        for i in range(3_000):
            with tachograph.step(f"s{i % 50}"):
                pass

    async with followed(local):
        await asyncio.to_thread(long)
        (execution_id,) = await newest(local)
        assert await asyncio.to_thread(local.service.recorder.flush, 60)
    took: dict[str, float] = {}
    for _ in range(3):
        for view in ("timeline", "reconcile"):
            began = time.perf_counter()
            result = await local.get(f"/api/workflows/executions/{execution_id}/{view}")
            took[view] = min(took.get(view, 99.0), time.perf_counter() - began)
    assert result["differences"] == []
    assert result["views"] == {**dict.fromkeys(VIEWS, 3_000)}
    # Of 10,000 steps 0.25 and 1.3 s on two cores that were busy with something else, too.
    assert took["reconcile"] < 20 * took["timeline"]


async def test_differences_are_counted_and_listed_up_to_a_limit(local: Api) -> None:
    @tachograph.workflow
    def wide() -> None:
        for i in range(1_100):
            with tachograph.step(f"s{i}"):
                pass

    await asyncio.to_thread(wide)
    (execution_id,) = await newest(local)
    row = workflow_step_executions
    statement = update(row).where(row.c.execution_id == execution_id).values(status="failed")
    await write(local, statement)
    result = await reconciled(local, execution_id)
    assert len(result["differences"]) == 1_000 < result["difference_count"]


def test_every_metric_is_counted_from_rows_or_a_gauge() -> None:
    # A new metric must be taught to the series, or no service would ever show it.
    counted = {kind.spec for kind in KINDS.values()}
    assert {spec for spec in METRICS if spec not in counted} == {EXECUTIONS_RUNNING, STEPS_RUNNING, OLDEST_RUNNING}
    assert all(isinstance(spec, GaugeSpec) for spec in METRICS if spec not in counted)
