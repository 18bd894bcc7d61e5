"""The parts of a run add up: no wait is negative or longer than the run, and time nobody accounts for has a name."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry
from sqlalchemy import Row

from tachograph import MetricsListener, Recorder
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepFinished,
    StepReady,
    StepRetrying,
    StepStarted,
    StepStatus,
)
from tachograph.histogram import ExponentialHistogram
from tachograph.identity import ExecutionRef, Origin, StepRef, workspace_id
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.workflow import Backoff, Executor, WorkflowBuilder
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.ingest.assembly.executions import AssembledExecution, assemble
from tachograph_exporter.ingest.spans import SpanRecord, records
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import recovery
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry
from tachograph_exporter.views.timeline import build_timeline
from tests.api.test_otlp import T0, S, export, span
from tests.conftest import make_execution, make_step

WHY = Failure("ValueError", "no luck")
SOON = T0 + 60 * S
LATE = 1 << 62
REGISTRY_NAMES = ("dependency", "queue", "backoff", "unaccounted", "scheduled")


def seconds(value: float) -> Any:
    return pytest.approx(value, abs=1e-6)


class Store:
    """A database, a writer of it, and the timeline of what it holds."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.writer = StoreWriter(self.database)

    def add(self, events: Sequence[Event]) -> None:
        self.writer.apply(events)

    def run(self, execution_id: str) -> execution_rows.StoredRun:
        stored = self.database.look(lambda c: execution_rows.run(c, workspace_id("default"), execution_id))
        assert stored is not None
        return stored

    def timeline(self, execution_id: str, now_ns: int = SOON) -> WorkflowExecutionTimeline:
        return build_timeline(self.run(execution_id), now_ns=now_ns)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.database.close()


def records_of(spans: Sequence[Span]) -> list[SpanRecord]:
    return [record for record in records(export(spans).resource_spans) if isinstance(record, SpanRecord)]


def assembled(*spans: Span, now_ns: int = SOON) -> list[AssembledExecution]:
    return assemble("default", records_of(spans), now_ns, is_quiet=True)


def steps_of(timeline: WorkflowExecutionTimeline) -> dict[str, WorkflowStepTimelineEntry]:
    return {entry.step_name: entry for entry in timeline.step_timeline}


def ends_of(events: Sequence[Event]) -> dict[str, StepFinished]:
    return {event.step.name: event for event in events if isinstance(event, StepFinished)}


def parts_of(event: StepFinished | StepStarted) -> int:
    run_ns = event.run_ns if isinstance(event, StepFinished) else 0
    waits = (event.dependency_ns, event.unaccounted_ns, event.scheduled_ns, event.queue_ns, event.backoff_ns)
    assert min(waits) >= 0
    return sum(waits) + run_ns


# What nobody asked for


def test_a_call_in_a_program_waits_for_its_dependencies_and_then_for_the_program() -> None:
    attempts = StepAttempts(make_step(make_execution("w"), "a"), 100)
    started = attempts.started(190, ready_ns=150)
    ended = attempts.finished(200, StepStatus.COMPLETED)
    for event in (started, ended):
        assert (event.dependency_ns, event.unaccounted_ns, event.queue_ns) == (50, 40, 0)
    assert parts_of(ended) == 100


@pytest.mark.parametrize(("ready", "dependency", "unaccounted"), [(50, 0, 90), (190, 90, 0), (500, 90, 0)])
def test_readiness_outside_the_wait_is_cut_to_it(ready: int, dependency: int, unaccounted: int) -> None:
    attempts = StepAttempts(make_step(make_execution("w"), "a"), 100)
    started = attempts.started(190, ready_ns=ready)
    assert (started.dependency_ns, started.unaccounted_ns) == (dependency, unaccounted)


def test_a_queued_step_was_ready_before_it_was_asked_for() -> None:
    attempts = StepAttempts(make_step(make_execution("w"), "a"), 100)
    assert isinstance(attempts.ready(160, 130), StepReady)
    started = attempts.started(200)
    assert (started.dependency_ns, started.unaccounted_ns, started.queue_ns) == (30, 30, 40)


@pytest.mark.parametrize(
    ("met", "asked", "due", "parts"),
    [
        (110, 130, 160, (10, 20, 30, 40)),
        (100, 100, 200, (0, 0, 100, 0)),
        (150, 130, 160, (50, 0, 10, 40)),  # It was asked for before its dependencies were met.
        (170, 130, 160, (60, 0, 0, 40)),
        (100, 180, 160, (0, 60, 0, 40)),  # It was due at once.
        (90, 95, 90, (0, 0, 0, 100)),  # The clock of whoever asked for it is behind.
    ],
)
def test_a_step_that_is_asked_for_a_later_time_is_scheduled_until_then(
    met: int, asked: int, due: int, parts: tuple[int, ...]
) -> None:
    attempts = StepAttempts(make_step(make_execution("w"), "a"), 100)
    attempts.ready(due, met, asked)
    started = attempts.started(200)
    retrying = attempts.retrying(220, StepStatus.FAILED, 0, WHY)
    again = attempts.started(230)
    ended = attempts.finished(250, StepStatus.COMPLETED)
    for event in (started, retrying):
        assert (event.dependency_ns, event.unaccounted_ns, event.scheduled_ns, event.queue_ns) == parts
    assert again.scheduled_ns == 0
    assert ended.scheduled_ns == parts[2]
    assert parts_of(ended) == 150


def test_a_countdown_is_neither_the_queue_nor_the_programs_own_time(store: Store) -> None:
    # The attributes of opentelemetry-instrumentation-celery.
    sent = {"celery.action": "apply_async", "celery.task_name": "tasks.load", "messaging.message.id": "m1"}
    ran = {"celery.action": "run", "celery.task_name": "tasks.load", "messaging.message.id": "m1",
           "celery.state": "SUCCESS", "celery.eta": "2026-09-21T14:13:25+00:00"}  # fmt: skip
    other = {"celery.action": "run", "celery.task_name": "tasks.extract", "celery.state": "SUCCESS"}
    (run,) = assembled(
        span("publish", 1, 0, 0, 1),
        span("run/tasks.extract", 4, 1, 0, 2, of=other),
        span("apply_async/tasks.load", 2, 1, 0.5, 0.6, of=sent),
        span("run/tasks.load", 3, 2, 6, 7, of=ran),
    )
    load = ends_of(run.events)["tasks.load"]
    assert (load.dependency_ns, load.unaccounted_ns, load.scheduled_ns) == (0, S // 2, 9 * S // 2)
    assert (load.queue_ns, load.run_ns) == (S, S)
    assert load.step.depends_on == (), "what ended while it was scheduled did not hold it back"
    store.add(run.events)
    timeline = store.timeline(run.execution.execution_id)
    wait = steps_of(timeline)["tasks.load"].wait
    assert wait is not None
    assert (wait.dependency, wait.unaccounted, wait.scheduled, wait.queue, wait.backoff) == (0, 0.5, 4.5, 1, 0)
    assert steps_of(timeline)["tasks.load"].wait_seconds == wait.total == 6
    assert [(step.step_name, step.scheduled_seconds) for step in timeline.critical_path] == [("tasks.load", 4.5)]
    # A step that is lost keeps what it had waited.
    ended = store.run(run.execution.execution_id)
    (row,) = [step for step in ended.steps if step.name == "tasks.load"]
    row.status, row.finished_ns, row.run_ns = "running", None, None
    lost = recovery.lost_events(
        cast("Row[Any]", FakeRow({**ended.execution._mapping, "workspace": "default", "last_seen_ns": T0 + 8 * S})),
        [row],
    )
    (again,) = [event for event in lost if isinstance(event, StepFinished)]
    assert (again.scheduled_ns, again.queue_ns, again.run_ns) == (9 * S // 2, S, 2 * S)


def test_a_clock_that_steps_back_books_no_time_twice() -> None:
    attempts = StepAttempts(make_step(make_execution("w"), "a"), 100)
    attempts.started(90)
    attempts.retrying(140, StepStatus.FAILED, 0, WHY)
    attempts.started(120)
    ended = attempts.finished(150, StepStatus.COMPLETED)
    assert parts_of(ended) == 50
    assert ended.run_ns == 50


def test_the_roots_own_work_is_not_the_queue_of_the_next_step(store: Store) -> None:
    (nightly,) = assembled(span("nightly", 1, 0, 0, 10), span("extract", 2, 1, 1, 4), span("load", 3, 1, 6, 9))
    store.add(nightly.events)
    timeline = store.timeline(nightly.execution.execution_id)
    steps = steps_of(timeline)
    extract, load = steps["extract"].wait, steps["load"].wait
    assert extract is not None
    assert load is not None
    assert (extract.dependency, extract.unaccounted, extract.queue) == (0, 1, 0)
    assert (load.dependency, load.unaccounted, load.queue) == (4, 2, 0)
    assert timeline.critical_path_seconds == seconds(6)
    assert timeline.unaccounted_seconds == seconds(4)


def test_a_span_that_says_when_a_task_was_sent_is_evidence_of_a_queue() -> None:
    # The attributes of opentelemetry-instrumentation-celery.
    sent = {"celery.action": "apply_async", "celery.task_name": "tasks.load", "messaging.message.id": "m1"}
    ran = {"celery.action": "run", "celery.task_name": "tasks.load", "messaging.message.id": "m1",
           "celery.state": "SUCCESS"}  # fmt: skip
    (run,) = assembled(
        span("publish", 1, 0, 0, 1),
        span("apply_async/tasks.load", 2, 1, 0.5, 0.6, of=sent),
        span("run/tasks.load", 3, 2, 2, 3, of=ran),
    )
    load = ends_of(run.events)["tasks.load"]
    assert (load.unaccounted_ns, load.queue_ns, load.run_ns) == (S // 2, 3 * S // 2, S)


def test_a_task_that_waits_for_a_worker_does_not_depend_on_what_runs_meanwhile() -> None:
    # The attributes of Airflow 3: a task's span begins when the task is scheduled, its worker's when it runs.
    def task(name: str, number: int, asked: float, start: float, end: float) -> list[Span]:
        of: dict[str, str | int] = {
            "airflow.task_id": name,
            "airflow.dag_id": "nightly",
            "airflow.dag_run.run_id": "r1",
            "airflow.task_instance.try_number": 1,
            "airflow.task_instance.state": "success",
        }
        return [
            span(f"task_run.{name}", number, 1, asked, end, of=of),
            span(f"worker.{name}", number + 1, number, start, end, of={"airflow.task_id": name}),
        ]

    dag = {"airflow.dag_run.run_id": "r1", "airflow.dag_id": "nightly", "airflow.dag_run.state": "success"}
    (run,) = assembled(
        span("dag_run.nightly", 1, 0, 0, 10, of=dag),
        *task("a", 10, 1, 2, 4), *task("b", 20, 1, 5, 7), *task("c", 30, 8, 8.5, 9),
    )  # fmt: skip
    a, b, c = (ends_of(run.events)[name] for name in "abc")
    assert b.step.depends_on == ()
    assert (b.dependency_ns, b.unaccounted_ns, b.queue_ns) == (0, S, 4 * S)
    assert set(c.step.depends_on) == {a.step.step_id, b.step.step_id}
    assert (c.dependency_ns, c.unaccounted_ns, c.queue_ns) == (7 * S, S, S // 2)


# Clocks


def test_a_clock_an_hour_ahead_makes_no_wait_longer_than_the_run(store: Store) -> None:
    (run,) = assembled(span("nightly", 1, 0, 0, 0.05), span("load", 2, 1, 3600.01, 3600.03))
    store.add(run.events)
    timeline = store.timeline(run.execution.execution_id)
    (load,) = timeline.step_timeline
    assert load.wait is not None
    assert (load.wait.queue, load.wait.dependency) == (0, 0)
    assert (load.wait_seconds, load.run_seconds) == (seconds(0.03), seconds(0.02))
    # What is shown is what the span says, and that it cannot be.
    assert load.started_at is not None
    assert load.started_at.startswith("2026-09-21T15:13:20.01")
    assert load.duration_seconds == seconds(0.02)
    assert load.outside_run_seconds == seconds(3599.98)
    assert (timeline.critical_path_seconds, timeline.parallelism) == (seconds(0.02), seconds(0.4))


def test_a_clock_behind_makes_no_wait_negative() -> None:
    (run,) = assembled(span("nightly", 1, 0, 0, 1), span("a", 2, 1, -50, -49.5), span("b", 3, 1, 0.5, 1))
    ended = ends_of(run.events)
    assert ended["a"].run_ns == S // 2
    assert (parts_of(ended["a"]), parts_of(ended["b"])) == (S // 2, S)


def test_a_span_that_outlasts_its_root_counts_until_the_roots_end(store: Store) -> None:
    (run,) = assembled(span("nightly", 1, 0, 0, 2), span("a", 2, 1, 0, 1), span("b", 3, 1, 1, 30))
    store.add(run.events)
    timeline = store.timeline(run.execution.execution_id)
    assert timeline.total_duration_seconds == 2
    assert timeline.critical_path_seconds == seconds(2)
    assert timeline.parallelism == seconds(1)
    finished = run.events[-1]
    assert isinstance(finished, ExecutionFinished)
    assert sum(part.duration_ns for part in finished.critical_path) == finished.work_ns == 2 * S
    assert steps_of(timeline)["b"].outside_run_seconds == seconds(28)


def test_an_open_run_waits_no_longer_than_it_lasts(store: Store) -> None:
    # The root has not arrived; one of the clocks is an hour ahead.
    of = {"temporalWorkflowID": "w1", "temporalRunID": "01a210bd-1e9e-704c-b1f9-f5b51b5450f7"}
    (run,) = assembled(
        span("RunWorkflow:Nightly", 1, 0, 0, 0, of=of),
        span("StartActivity:load", 2, 1, 0.01, 0.01, of=of),
        span("RunActivity:load", 3, 2, 3600, 3600.2, of={**of, "temporalActivityID": "1"}),
        now_ns=T0 + S,
    )
    store.add(run.events)
    timeline = store.timeline(run.execution.execution_id, now_ns=T0 + S)
    (load,) = timeline.step_timeline
    assert load.wait_seconds is not None
    assert 0 <= load.wait_seconds <= 1
    assert timeline.critical_path_seconds <= 1
    assert timeline.unaccounted_seconds is not None
    assert timeline.unaccounted_seconds >= 0


class FakeRow:
    """A row of the store, for a view."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.__dict__.update(columns)


def as_run(events: Sequence[Event], now_ns: int) -> WorkflowExecutionTimeline:
    """The timeline of events as the store holds them, without the database."""
    from tachograph_exporter.store.batch import Batch
    from tachograph_exporter.store.schema import ATTEMPT_ROWS, EXECUTION_ROWS, STEP_ROWS
    from tachograph_exporter.store.steps import StoredStep, position

    batch = Batch(events)
    (execution,) = batch.executions.values()
    steps = []
    for row in batch.steps.values():
        columns = dict(zip(STEP_ROWS.columns, row, strict=True))
        fields = {name: columns[name] for name in StoredStep.__struct_fields__}
        steps.append(StoredStep(**{**fields, "depends_on": __import__("json").loads(columns["depends_on"])}))
    steps.sort(key=position)
    attempts = [FakeRow(dict(zip(ATTEMPT_ROWS.columns, row, strict=True))) for row in batch.attempts.values()]
    stored = execution_rows.StoredRun(
        cast("Row[Any]", FakeRow(dict(zip(EXECUTION_ROWS.columns, execution, strict=True)))),
        steps,
        cast("Sequence[Row[Any]]", attempts),
        [],
    )
    return build_timeline(stored, now_ns=now_ns)


MOMENT = st.one_of(st.integers(-20, 60), st.sampled_from([-3600, 3600, 10**6]))


@st.composite
def traces(draw: st.DrawFn) -> list[Span]:
    """Spans of one trace: any times, parents, links, kinds; the root has arrived or not."""
    count = draw(st.integers(1, 8))
    spans = []
    kinds: list[dict[str, str | int]] = [
        {},
        {},
        {"prefect.run.type": "task", "prefect.run.name": "t"},
        {"prefect.run.type": "flow", "prefect.run.name": "f", "prefect.run.id": "r"},
        {"celery.action": "apply_async", "celery.task_name": "c", "messaging.message.id": "m"},
        {"celery.action": "run", "celery.task_name": "c", "messaging.message.id": "m", "celery.state": "RETRY"},
    ]
    for number in range(1, count + 1):
        start, length = draw(MOMENT), draw(st.integers(0, 40))
        parent = draw(st.integers(0, count)) if number > 1 else 0
        links = draw(st.lists(st.integers(1, count), max_size=2))
        of = dict(draw(st.sampled_from(kinds)))
        if "prefect.run.id" in of:
            of["prefect.run.id"] = f"r{draw(st.integers(0, 2))}"
        end = None if draw(st.integers(0, 9)) == 0 else start + length
        name = draw(st.sampled_from("ab"))
        spans.append(span(name, number, parent, start, end, links=links, of=of))
    return spans


@given(traces(), st.integers(0, 100))
@settings(max_examples=300, deadline=None)
def test_whatever_spans_say_waits_are_within_the_run_and_parts_add_up(spans: list[Span], now: int) -> None:
    now_ns = T0 + now * S
    executions = assemble("default", records_of(spans), now_ns, is_quiet=True)
    by_id = {run.execution.execution_id: run.execution for run in executions}
    for run in executions:
        timeline = as_run(run.events, now_ns)
        total = timeline.total_duration_seconds
        if total is None:
            total = timeline.elapsed_seconds
        assert total is not None
        assert total >= 0
        assert 0 <= timeline.critical_path_seconds <= total + 1e-6
        assert timeline.unaccounted_seconds is not None
        assert timeline.critical_path_seconds + timeline.unaccounted_seconds == seconds(total)
        assert timeline.unaccounted_seconds >= 0
        if timeline.parallelism is not None:
            assert timeline.parallelism <= len(timeline.step_timeline) + 1e-6
        for entry in timeline.step_timeline:
            assert entry.run_seconds is None or 0 <= entry.run_seconds <= total + 1e-6
            if entry.wait is not None:
                parts = list(msgspec.structs.astuple(entry.wait))
                assert min(parts) >= 0
                assert entry.wait_seconds == seconds(sum(parts))
                assert sum(parts) + (entry.run_seconds or 0) <= total + 1e-6
        for event in run.events:
            if isinstance(event, StepFinished | StepStarted):
                assert parts_of(event) >= 0
        parent = run.execution.parent_execution_id
        assert parent is None or (parent in by_id and parent != run.execution.execution_id)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
    st.integers(40, 90),
)
@settings(max_examples=200, deadline=None)
def test_of_clocks_that_agree_the_parts_are_the_time_from_the_start_to_the_end(
    times: list[tuple[int, int]], end: int
) -> None:
    spans = [span("root", 1, 0, 0, end)]
    spans += [span(f"s{i}", 2 + i, 1, start, min(start + length, end)) for i, (start, length) in enumerate(times)]
    (run,) = assembled(*spans)
    for event in run.events:
        if isinstance(event, StepFinished):
            assert parts_of(event) == event.time_ns - T0


# Runs inside runs


PREFECT_FLOW = {"prefect.run.type": "flow", "prefect.run.name": "daring-coot", "prefect.run.id": "6ec4ce37",
                "prefect.flow.id": "5b59cb96"}  # fmt: skip
PREFECT_CHILD = {"prefect.run.type": "flow", "prefect.run.name": "tomato-jellyfish", "prefect.run.id": "e1928746",
                 "prefect.flow.id": "61f4db69"}  # fmt: skip
TEMPORAL = {"temporalWorkflowID": "nightly", "temporalRunID": "01a210bd-1e9e-704c-b1f9-f5b51b5450f7"}
TEMPORAL_CHILD = {"temporalWorkflowID": "nightly-child", "temporalRunID": "01a210bd-2e68-7c78-b23b-000000000001"}


def task(name: str) -> dict[str, str | int]:
    return {"prefect.run.type": "task", "prefect.run.name": name}


def by_workflow(executions: Sequence[AssembledExecution]) -> dict[str, AssembledExecution]:
    return {run.execution.workflow: run for run in executions}


def is_inside(parent: AssembledExecution, child: AssembledExecution, step: str) -> StepFinished:
    """Check that ``child`` is a step of ``parent``, linked both ways; returns the step's end."""
    end = ends_of(parent.events)[step]
    assert end.step.child_execution_id == child.execution.execution_id
    assert child.execution.parent_execution_id == parent.execution.execution_id
    assert child.execution.parent_step_id == end.step.step_id
    return end


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_prefect_subflow_is_a_step_of_its_flow_and_on_its_critical_path(store: Store, is_reversed: bool) -> None:
    spans = [
        span("daring-coot", 1, 0, 0, 10, of=PREFECT_FLOW),
        span("extract-523", 2, 1, 0, 2, of=task("extract-523")),
        span("flaky-a1b", 3, 1, 2, 4, of=task("flaky-a1b"), links=[2]),
        span("tomato-jellyfish", 4, 1, 4, 8, of=PREFECT_CHILD),
        span("load-e7f", 5, 4, 5, 7, of=task("load-e7f")),
        span("load-60a", 6, 1, 8, 10, of=task("load-60a"), links=[3]),
    ]
    runs = by_workflow(assembled(*(reversed(spans) if is_reversed else spans)))
    parent, child = runs["5b59cb96"], runs["61f4db69"]
    end = is_inside(parent, child, "61f4db69")
    assert (end.step.step_type, end.status, end.run_ns) == ("workflow", StepStatus.COMPLETED, 4 * S)
    finished = parent.events[-1]
    assert isinstance(finished, ExecutionFinished)
    path = [part.step for part in finished.critical_path]
    assert path == ["extract", "flaky", "61f4db69", "load"]
    assert (finished.step_count, finished.completed_step_count) == (4, 4)
    assert ends_of(child.events).keys() == {"load"}
    store.add([*parent.events, *child.events])
    timeline = store.timeline(parent.execution.execution_id)
    assert timeline.unaccounted_seconds == seconds(0)
    assert steps_of(timeline)["61f4db69"].child_execution_id == child.execution.execution_id
    inner = store.timeline(child.execution.execution_id)
    assert (inner.parent_execution_id, inner.parent_step_id) == (timeline.execution_id, end.step.step_id)


def test_a_temporal_child_workflow_is_a_step_that_waited_for_a_worker() -> None:
    # Version 1 of the interceptor: spans inside a workflow have no length, and the child is below the request.
    spans = [
        span("StartWorkflow:Nightly", 1, 0, 0, 0.1, of={"temporalWorkflowID": "nightly"}),
        span("RunWorkflow:Nightly", 2, 1, 1, 1, of=TEMPORAL),
        span("StartChildWorkflow:Child", 3, 1, 4, 4, of=TEMPORAL),
        span("RunWorkflow:Child", 4, 3, 5, 5, of=TEMPORAL_CHILD),
        span("StartActivity:load", 5, 3, 5, 5, of=TEMPORAL_CHILD),
        span("RunActivity:load", 6, 5, 6, 8, of={**TEMPORAL_CHILD, "temporalActivityID": "1"}),
        span("CompleteWorkflow:Child", 7, 3, 8, 8, of=TEMPORAL_CHILD),
        span("CompleteWorkflow:Nightly", 8, 1, 9, 9, of=TEMPORAL),
    ]
    runs = by_workflow(assembled(*spans))
    end = is_inside(runs["Nightly"], runs["Child"], "Child")
    assert (end.unaccounted_ns, end.queue_ns, end.run_ns) == (3 * S, S, 3 * S)
    finished = runs["Nightly"].events[-1]
    assert isinstance(finished, ExecutionFinished)
    assert [part.step for part in finished.critical_path] == ["Child"]


def test_a_run_that_another_one_continued_as_is_beside_it_and_not_inside() -> None:
    again = {**TEMPORAL, "temporalRunID": "43948e71-4634-4608-8cf0-000000000002"}
    third = {**TEMPORAL, "temporalRunID": "831f9bd6-98aa-48a4-8c80-000000000003"}
    runs = assembled(
        span("RunWorkflow:Looper", 1, 0, 0, 2, of=TEMPORAL),
        span("RunWorkflow:Looper", 2, 1, 2, 4, of=again),
        span("RunWorkflow:Looper", 3, 2, 4, 6, of=third),
    )
    assert len(runs) == 3
    assert {run.execution.parent_execution_id for run in runs} == {None}
    assert not any(ends_of(run.events) for run in runs)


def test_a_failed_and_an_abandoned_child_are_failed_and_lost_steps(store: Store) -> None:
    abandoned = {**PREFECT_CHILD, "prefect.run.id": "e2", "prefect.run.name": "owl", "prefect.flow.id": "70a1"}
    runs = by_workflow(
        assembled(
            span("daring-coot", 1, 0, 0, 10, of=PREFECT_FLOW),
            span("tomato-jellyfish", 2, 1, 0, 4, of=PREFECT_CHILD, error="disk full"),
            span("owl", 3, 1, 5, None, of=abandoned),
        )
    )
    ends = ends_of(runs["5b59cb96"].events)
    assert ends["61f4db69"].status is StepStatus.FAILED
    assert ends["61f4db69"].failure == Failure("ValueError", "disk full")
    assert (ends["70a1"].status, ends["70a1"].run_ns) == (StepStatus.LOST, 5 * S)
    assert isinstance(runs["70a1"].events[-1], ExecutionFinished) is False
    store.add(runs["5b59cb96"].events)
    assert store.timeline(runs["5b59cb96"].execution.execution_id).failed_step_count == 1


def test_a_step_that_ran_one_execution_stands_for_it_and_one_that_ran_two_has_them_inside() -> None:
    # A task of Celery that runs a flow of Prefect, or two.
    ran = {"celery.action": "run", "celery.task_name": "tasks.report", "messaging.message.id": "m1",
           "celery.state": "SUCCESS"}  # fmt: skip
    root = span("weekly", 1, 0, 0, 10, of=PREFECT_FLOW)
    outer = span("run/tasks.report", 2, 1, 1, 9, of=ran)
    other = {**PREFECT_CHILD, "prefect.run.id": "e3", "prefect.run.name": "owl", "prefect.flow.id": "70a1"}
    one = by_workflow(assembled(root, outer, span("tomato-jellyfish", 3, 2, 2, 4, of=PREFECT_CHILD)))
    assert is_inside(one["5b59cb96"], one["61f4db69"], "tasks.report").step.step_type == "task"
    two = by_workflow(
        assembled(
            root, outer, span("tomato-jellyfish", 3, 2, 2, 4, of=PREFECT_CHILD), span("owl", 4, 2, 5, 8, of=other)
        )
    )
    task_end = ends_of(two["5b59cb96"].events)["tasks.report"]
    assert task_end.step.child_execution_id is None
    for name in ("61f4db69", "70a1"):
        end = is_inside(two["5b59cb96"], two[name], name)
        assert end.step.parent_step_id == task_end.step.step_id
    finished = two["5b59cb96"].events[-1]
    assert isinstance(finished, ExecutionFinished)
    assert finished.work_ns == 8 * S


def test_a_child_whose_parents_root_has_not_arrived_is_its_step_already() -> None:
    # Our own spans name their execution, so the parent is known before its root ends.
    parent = {"workflow.execution.id": "01a210bd-1e9e-704c-b1f9-f5b51b5450f7", "workflow.definition.name": "outer"}
    child = {"workflow.execution.id": "01a210bd-2e68-7c78-b23b-000000000001", "workflow.definition.name": "inner"}
    step = {**parent, "workflow.step.name": "inner", "workflow.step.type": "workflow", "cicd.pipeline.task.name": "x"}
    runs = {
        run.execution.execution_id: run
        for run in assembled(span("inner", 2, 1, 1, 3, of=step), span("run inner", 3, 2, 1, 3, of=child))
    }
    outer, inner = runs[parent["workflow.execution.id"]], runs[child["workflow.execution.id"]]
    assert not outer.is_finished
    assert is_inside(outer, inner, "inner").step.step_type == "workflow"


def test_executions_on_a_cycle_and_deep_ones_end() -> None:
    flows = [{**PREFECT_FLOW, "prefect.run.id": f"r{i}"} for i in range(3_000)]
    circle = [span("f", i + 1, i or 3, 0, 1, of=flows[i]) for i in range(3)]
    assert len(assembled(*circle)) == 3
    deep = assembled(*[span("f", i + 1, i, i * 1e-6, 1, of=flow) for i, flow in enumerate(flows)])
    assert sum(run.execution.parent_execution_id is not None for run in deep) == len(flows) - 1
    assert all(len(ends_of(run.events)) <= 1 for run in deep)


def test_a_nested_run_and_counted_dependencies_are_in_the_rows_and_views(store: Store) -> None:
    parent = make_execution("outer")
    child_id = "01a210bd-2e68-7c78-b23b-000000000001"
    step = make_step(parent, "inner", step_type="workflow", child_execution_id=child_id, dependency_count=2000,
                     depends_on=("x",))  # fmt: skip
    child = ExecutionRef(
        workspace="default", workflow="inner", workflow_id="i", execution_id=child_id, trace_id=parent.trace_id,
        span_id="a" * 16, parent_execution_id=parent.execution_id, parent_step_id=step.step_id,
    )  # fmt: skip
    attempts = StepAttempts(step, T0)
    store.add(
        [
            ExecutionStarted(execution=parent, time_ns=T0),
            attempts.started(T0 + S, ready_ns=T0),
            ExecutionStarted(execution=child, time_ns=T0 + S),
            ExecutionFinished(
                execution=child, time_ns=T0 + 2 * S, status=ExecutionStatus.COMPLETED, started_ns=T0 + S, step_count=0
            ),
            attempts.finished(T0 + 2 * S, StepStatus.COMPLETED),
        ]
    )
    (entry,) = store.timeline(parent.execution_id).step_timeline
    assert (entry.child_execution_id, entry.depends_on_count, entry.depends_on) == (child_id, 2000, ["x"])
    assert entry.wait is not None
    assert entry.wait.unaccounted == 1
    inner = store.run(child_id)
    assert (inner.execution.parent_execution_id, inner.execution.parent_step_id) == (parent.execution_id, step.step_id)
    # A lost run's closing events name its parent, too.
    lost = recovery.lost_events(
        cast("Row[Any]", FakeRow({**inner.execution._mapping, "workspace": "default"})), inner.steps
    )
    end = list(lost)[-1]
    assert isinstance(end, ExecutionFinished)
    assert (end.execution, end.execution.origin) == (child, Origin.RECORDED)


# Steps that do not end well


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"workspace": "default", "workflow": "w", **labels})


async def test_a_step_cancelled_while_backing_off_counts_its_attempt_once(recorder: Recorder, store: Store) -> None:
    registry, seen = CollectorRegistry(), list[Event]()
    retrying = asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepRetrying):
            loop.call_soon_threadsafe(retrying.set)

    recorder.add("metrics", MetricsListener(registry))
    recorder.add("note", note)
    flow = WorkflowBuilder("w").step(
        "a", handler="fail", config={"times": 3}, max_retries=3, retry_backoff=Backoff(initial_seconds=60)
    )
    executor = Executor(recorder)
    ref, task_ = executor.submit(flow.build())
    await asyncio.wait_for(retrying.wait(), 60)
    executor.cancel(ref.execution_id)
    await task_
    recorder.flush()
    store.add(seen)
    timeline = store.timeline(ref.execution_id)
    (entry,) = timeline.step_timeline
    assert value(registry, "workflow_steps_running") == 0
    assert value(registry, "workflow_step_attempts_total", step="a", outcome="failed") == 1
    assert value(registry, "workflow_step_attempts_total", step="a", outcome="cancelled") is None
    assert [attempt.status for attempt in entry.attempts] == ["failed"]
    assert entry.run_seconds is not None
    assert entry.duration_seconds is not None
    assert entry.run_seconds <= entry.duration_seconds


def retried(step: StepRef, started_ns: int) -> tuple[StepAttempts, list[Event]]:
    """A step that failed after 10 s, backed off 5 s, failed after 20 s, backed off 5 s and runs for the third time."""
    attempts, now = StepAttempts(step, started_ns), started_ns
    events: list[Event] = [attempts.ready(now), attempts.started(now + S)]
    events.append(attempts.retrying(now + 11 * S, StepStatus.FAILED, 5 * S, WHY))
    attempts.backed_off(now + 16 * S)
    events.append(attempts.started(now + 17 * S))
    events.append(attempts.retrying(now + 37 * S, StepStatus.TIMEOUT, 5 * S, WHY))
    return attempts, events


def lost_run(store: Store) -> tuple[list[StepFinished], ExecutionFinished]:
    (lost,) = store.database.look(lambda c: recovery.find_lost(c, LATE, lease_seconds=0))
    events = list(recovery.lost_events(*lost))
    store.add(events)
    end = events[-1]
    assert isinstance(end, ExecutionFinished)
    return [event for event in events if isinstance(event, StepFinished)], end


@pytest.mark.parametrize(("is_running", "run", "backoff"), [(True, 33, 10), (False, 30, 5)])
def test_a_step_lost_on_a_later_attempt_counts_the_earlier_ones(
    store: Store, is_running: bool, run: int, backoff: int
) -> None:
    execution = make_execution("w")
    step, inner = make_step(execution, "a"), make_step(execution, "inside")
    inner = StepRef(**{f: getattr(inner, f) for f in StepRef.__struct_fields__} | {"parent_step_id": step.step_id})
    attempts, events = retried(step, T0)
    if is_running:
        attempts.backed_off(T0 + 42 * S)
        events.append(attempts.started(T0 + 43 * S))
        # Started in the third attempt, and last seen 3 s later.
        events.append(StepStarted(step=inner, time_ns=T0 + 46 * S))
    store.add([ExecutionStarted(execution=execution, time_ns=T0, process="elsewhere/b/1/2"), *events])
    ended, end = lost_run(store)
    lost = next(event for event in ended if event.step.name == "a")
    assert (lost.status, lost.attempt) == (StepStatus.LOST, 3 if is_running else 2)
    assert (lost.run_ns, lost.backoff_ns) == (run * S, backoff * S)
    assert lost.queue_ns == (3 if is_running else 2) * S
    assert parts_of(lost) == end.time_ns - T0
    # The time of a step inside it is its own.
    assert end.work_ns == lost.run_ns
    timeline = store.timeline(execution.execution_id)
    entry = steps_of(timeline)["a"]
    assert (entry.run_seconds, timeline.work_seconds) == (run, run)
    assert [attempt.attempt for attempt in entry.attempts] == ([1, 2, 3] if is_running else [1, 2])


def test_a_step_abandoned_where_it_started_leaves_the_gauge_and_counts_once() -> None:
    registry = CollectorRegistry()
    listener = MetricsListener(registry)
    execution = make_execution("w")
    attempts, other = (StepAttempts(make_step(execution, name), 1) for name in ("a", "b"))
    listener(ExecutionStarted(execution=execution, time_ns=1))
    listener(attempts.started(2))
    listener(other.started(2))
    assert value(registry, "workflow_steps_running") == 2
    listener(attempts.finished(3, StepStatus.LOST, WHY))
    assert value(registry, "workflow_step_attempts_total", step="a", outcome="lost") == 1
    # The end of the other one never comes: its execution's does.
    listener(
        ExecutionFinished(execution=execution, time_ns=4, status=ExecutionStatus.COMPLETED, started_ns=1, step_count=2)
    )
    assert value(registry, "workflow_steps_running") == 0
    assert value(registry, "workflow_executions_running") == 0


def test_unaccounted_time_is_a_reason_to_wait_in_the_metrics() -> None:
    registry = CollectorRegistry()
    listener = MetricsListener(registry)
    attempts = StepAttempts(make_step(make_execution("w"), "a"), 0)
    listener(attempts.started(3 * S, ready_ns=S))
    other = StepAttempts(make_step(make_execution("w"), "a"), 0)
    other.ready(5 * S, 0, S)
    listener(other.started(5 * S))
    sums = {reason: value(registry, "workflow_step_wait_seconds_sum", step="a", reason=reason) for reason in
            REGISTRY_NAMES}  # fmt: skip
    assert sums == {"dependency": 1, "queue": 0, "backoff": None, "unaccounted": 3, "scheduled": 4}


# Bounds


def many(count: int, workflow: Callable[[int], str], step: Callable[[int], str]) -> Iterator[Event]:
    """The events of an execution of one step, again and again, with names that differ."""
    for i in range(count):
        execution = ExecutionRef(
            workspace="default", workflow=workflow(i), workflow_id="w", execution_id=f"{i:036}", trace_id=f"{i:032}",
            span_id="a" * 16,
        )  # fmt: skip
        ref = StepRef(execution=execution, step_id="s", name=step(i), span_id="b" * 16, parent_span_id="a" * 16)
        yield ExecutionStarted(execution=execution, time_ns=0)
        yield StepStarted(step=ref, time_ns=0, unaccounted_ns=1)
        yield StepFinished(
            step=ref, time_ns=S, status=StepStatus.COMPLETED, attempt=1, started_ns=0, attempt_started_ns=0
        )
        yield ExecutionFinished(
            execution=execution, time_ns=S, status=ExecutionStatus.COMPLETED, started_ns=0, step_count=1
        )


@pytest.mark.parametrize(
    ("count", "workflow", "step"),
    [
        (5_000, lambda _: "w", lambda i: f"step {i}"),
        (5_000, lambda i: f"workflow {i}", lambda _: "s"),
        (5_000, str, str),
    ],
    ids=["steps", "workflows", "both"],
)
def test_past_the_limit_names_take_no_memory_and_are_still_counted(
    count: int, workflow: Callable[[int], str], step: Callable[[int], str]
) -> None:
    registry, series = CollectorRegistry(), SeriesRegistry(family_limit=100)
    listener = MetricsListener(registry, series=series)
    for event in many(2_000, workflow, step):
        listener(event)
    gc.collect()
    tracemalloc.start()
    try:
        for i, event in enumerate(many(2_000 + count, workflow, step)):
            if i >= 8_000:
                listener(event)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 2_000_000
    totals: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0) + sample.value
    assert totals["workflow_step_attempts_total"] == totals["workflow_step_duration_seconds_count"] == 2_000 + count
    assert totals["workflow_step_wait_seconds_count"] == 3 * (2_000 + count)
    assert totals["workflow_steps_running"] == totals["workflow_executions_running"] == 0


def test_running_steps_of_workflows_past_the_limit_are_counted_together() -> None:
    registry, series = CollectorRegistry(), SeriesRegistry(family_limit=2)
    listener = MetricsListener(registry, series=series)
    events = [list(many(5, lambda i: f"w{i}", lambda i: f"s{i}"))[i * 4 : i * 4 + 4] for i in range(5)]
    for started, step_started, *_ in events:
        listener(started)
        listener(step_started)
    others = {"workspace": "other", "workflow": "other"}
    for name in ("workflow_steps_running", "workflow_executions_running"):
        assert registry.get_sample_value(name, others) == 3
    for *_, finished, ended in events:
        listener(finished)
        listener(ended)
    for name in ("workflow_steps_running", "workflow_executions_running"):
        assert registry.get_sample_value(name, others) == 0
    oldest = "workflow_execution_oldest_running_start_timestamp_seconds"
    assert registry.get_sample_value(oldest, others) is None


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 65537.0], [0.5, 2.0], [1e-30, 1.0, 1e300], [0.0]])
@pytest.mark.parametrize("most", [1, 2, 3, 24])
def test_a_distribution_has_no_more_bars_than_asked_for_and_all_values(values: list[float], most: int) -> None:
    bars = ExponentialHistogram.of(values).bars(most)
    assert len(bars) <= most + (0.0 in values)
    assert sum(count for _, _, count in bars) == len(values)
    assert [low for low, _, _ in bars] == sorted(low for low, _, _ in bars)
    for number in values:
        assert any(low < number <= high or low == number == high for low, high, _ in bars)
