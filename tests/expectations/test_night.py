"""The night at one look: what ran, what was due and what became of it, and who waited for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, update

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.expectation import Expectation
from tachograph.identity import ExecutionRef, workspace_id
from tachograph.spans.attributes import attempt_span_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.expectations.expected_starts import MAX_STARTS, Known, expected_starts
from tachograph_exporter.expectations.limits import limits_of
from tachograph_exporter.expectations.night import read_night
from tachograph_exporter.expectations.schedules import Every, Learned, schedule_of
from tachograph_exporter.store import expectations
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import archived_executions, workflow_expectations
from tachograph_exporter.store.workspaces import add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.times import parse_time
from tachograph_exporter.views.schemas.night import Night, NightStart, NightWorkflow
from tests.conftest import Api, make_execution, make_step, serve
from tests.openlineage_values import START, event, run_id

DEFAULT = workspace_id("default")
MINUTE, HOUR = 60 * NS, 3600 * NS
EVENING = 1_796_061_600 * NS  # 30 November 2026, 18:00 UTC
MORNING = EVENING + 15 * HOUR


def due(
    schedule: str, starts: Sequence[float], *, since: float = -1e6, now: float = 900, grace: float = 600, **known: Any
) -> list[tuple[str, float]]:
    """(state, minute) of a night's expected starts; starts and times are minutes after the evening."""
    said = Expectation(schedule=schedule, grace_seconds=grace)
    rhythm = schedule_of(schedule, "UTC", ())
    assert rhythm is not None
    facts = Known([EVENING + round(start * MINUTE) for start in starts], **known)
    at = EVENING + round(now * MINUTE), EVENING + round(since * MINUTE)
    return read(expected_starts(rhythm, limits_of(said), (EVENING, MORNING), facts, *at)[0])


def read(starts: Sequence[NightStart]) -> list[tuple[str, float]]:
    return [(start.state, (parse_time(start.at, 0) - EVENING) / MINUTE) for start in starts]


def test_a_start_is_that_of_the_last_time_before_it() -> None:
    states = due("0 */3 * * *", [-0.5, 195, 362, 540.1])
    assert states == [("started", 0), ("late", 180), ("started", 360), ("started", 540), ("missing", 720)]
    assert due("0 */3 * * *", [], now=185)[:3] == [("missing", 0), ("due", 180), ("due", 360)]
    assert due("0 */3 * * *", [], since=350, now=900) == [("missing", 360), ("missing", 540), ("missing", 720)]


def test_an_interval_begins_with_the_start_before_it() -> None:
    # Every 15 minutes, 12 minutes past each quarter: nothing is late.
    steady = [-3 + 15 * n for n in range(61)]
    assert {state for state, _ in due("every 15m", steady)} == {"started"}
    gone = due("every 15m", [*steady[:4], 120])
    assert gone[:3] == [("started", 12), ("started", 27), ("started", 42)]
    # One that comes late, and one that never comes: nothing is expected after it.
    assert gone[3:] == [("late", 57), ("missing", 135)]
    assert due("every 15m", [-300]) == [("missing", -285)]
    assert due("every 15m", [], since=-5, now=12) == [("due", 10)]
    assert due("every 2h", [30], since=30, now=140) == [("started", 30), ("due", 150)]


def test_nothing_is_missed_while_a_run_hangs_or_where_runs_are_left_out() -> None:
    hung = ((EVENING + 5 * MINUTE, EVENING + 400 * MINUTE),)
    assert due("0 */3 * * *", [2], hung_ns=hung)[:4] == [("started", 0), ("held", 180), ("held", 360), ("missing", 540)]
    assert due("0 */3 * * *", [500], since_ns=EVENING + 490 * MINUTE) == [("missing", 540), ("missing", 720)]
    assert due("every 15m", [500, 515], since_ns=EVENING + 490 * MINUTE) == [("started", 515), ("missing", 530)]


def test_a_learned_schedule_has_the_spread_it_was_learned_with() -> None:
    learned = Learned(Every(3600.0), 1200.0, 1800.0, 9)
    facts = Known([EVENING + minute * MINUTE for minute in (-10, 65)])
    limits = limits_of(Expectation(schedule="learned"))
    starts, _ = expected_starts(learned, limits, (EVENING, MORNING), facts, EVENING + 150 * MINUTE, 1)
    assert read(starts) == [("started", 50), ("due", 125)]


def test_of_many_the_newest_are_listed() -> None:
    said = limits_of(Expectation(schedule="* * * * *"))
    rhythm = schedule_of("* * * * *", "UTC", ())
    assert rhythm is not None
    starts, is_whole = expected_starts(rhythm, said, (EVENING, MORNING), Known(()), MORNING + HOUR, 1)
    assert (len(starts), is_whole, read(starts)[-1]) == (MAX_STARTS, False, ("missing", 899))


@pytest.fixture
def writer(any_database_url: str) -> Iterator[StoreWriter]:
    database = Database(any_database_url)
    database.run(lambda c: add_workspace(c, "default", 1))
    yield StoreWriter(database)
    database.close()


def events_of(
    execution: ExecutionRef, start: int, end: int | None, status: ExecutionStatus = ExecutionStatus.COMPLETED
) -> list[Event]:
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=start)]
    if end is not None:
        events.append(
            ExecutionFinished(execution=execution, time_ns=end, status=status, started_ns=start, step_count=0)
        )
    return events


def say(database: Database, workflow: str, schedule: str, **fields: Any) -> None:
    said = Expectation(schedule=schedule, **fields)
    database.run(lambda c: expectations.say(c, expectations.ANY, workflow, expectations.FILE, said, 1))
    database.run(lambda c: c.execute(update(workflow_expectations).values(since_ns=1)))


def look(writer: StoreWriter, now: int = MORNING, window: tuple[int, int] = (EVENING, MORNING)) -> Night:
    return writer.database.look(lambda c: read_night(c, DEFAULT, DEFAULT, window, now))


def by_name(night: Night) -> dict[str, NightWorkflow]:
    return {entry.workflow: entry for entry in night.workflows}


def test_what_a_window_has_a_part_of_and_nothing_false_is_missing(writer: StoreWriter) -> None:
    database = writer.database
    say(database, "minutely", "*/10 * * * *")
    say(database, "never", "0 3 * * *")
    say(database, "hourly", "0 * * * *", deadline_seconds=5400.0)
    events: list[Event] = []
    # More than the newest ones that are read of each workflow, before, in and after the window.
    for minute in range(-100, 1100, 10):
        if minute != 300:
            at = EVENING + minute * MINUTE
            events += events_of(make_execution("minutely"), at, at + NS)
    long, open_ = make_execution("long"), make_execution("open")
    events += events_of(long, EVENING - HOUR, EVENING + HOUR) + events_of(open_, EVENING - HOUR, None)
    events += events_of(make_execution("long"), EVENING - 2 * HOUR, EVENING - HOUR)
    # Hangs for two hours and a half.
    events += events_of(make_execution("hourly"), EVENING, EVENING + 150 * MINUTE)
    for hour in range(3, 15):
        status = ExecutionStatus.FAILED if hour == 4 else ExecutionStatus.COMPLETED
        events += events_of(make_execution("hourly"), EVENING + hour * HOUR, EVENING + hour * HOUR + NS, status)
    writer.apply(events)
    night = look(writer, now=EVENING + 1200 * MINUTE)
    assert [entry.workflow for entry in night.workflows] == ["minutely", "never", "hourly", "open", "long"]
    entries = by_name(night)
    missing = [start for start in entries["minutely"].expected if start.state == "missing"]
    assert read(missing) == [("missing", 300)]
    assert (entries["never"].missing, entries["never"].runs, entries["never"].workflow_id) == (1, [], None)
    assert [start.state for start in entries["hourly"].expected] == ["started", "held", "held", *["started"] * 12]
    assert entries["hourly"].failed == 1
    assert [run.execution_id for run in entries["long"].runs] == [long.execution_id]
    assert [(run.execution_id, run.completed_at) for run in entries["open"].runs] == [(open_.execution_id, None)]
    assert entries["open"].running == 1
    assert night.is_complete
    # The last time of a window that is past: it started after its end, and is not missing.
    past = by_name(look(writer, now=EVENING + 1200 * MINUTE, window=(EVENING - HOUR, EVENING + 5 * MINUTE)))
    assert {start.state for start in past["minutely"].expected} == {"started"}


def test_archived_runs_are_part_of_it(writer: StoreWriter) -> None:
    execution = make_execution("etl")
    writer.apply(events_of(make_execution("etl"), EVENING + 3 * HOUR, EVENING + 3 * HOUR + NS))
    values = {
        "execution_id": execution.execution_id, "workspace_id": DEFAULT, "project": "default",
        "workflow_id": execution.workflow_id, "workflow": "etl", "version": "1", "trace_id": execution.trace_id,
        "span_id": execution.span_id, "created_ns": EVENING + HOUR, "started_ns": EVENING + HOUR,
        "finished_ns": EVENING + HOUR + NS, "status": "completed", "last_seen_ns": EVENING + HOUR, "step_count": 0,
        "completed_step_count": 0, "failed_step_count": 0, "skipped_step_count": 0, "archive": "x",
    }  # fmt: skip
    writer.database.run(lambda c: c.execute(insert(archived_executions).values(**values)))
    say(writer.database, "etl", "0 * * * *")
    (entry,) = look(writer).workflows
    assert len(entry.runs) == 2
    assert [start.state for start in entry.expected][:5] == ["missing", "started", "missing", "started", "missing"]


@pytest.fixture
async def any_api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


async def test_who_waited_for_whom(any_api: Api) -> None:
    api = any_api
    outer, other = make_execution("outer"), make_execution("other")
    step = make_step(outer, "call")

    def inner(name: str, **fields: Any) -> ExecutionRef:
        called = {"trace_id": outer.trace_id, "parent_span_id": step.span_id}
        return msgspec.structs.replace(make_execution(name), **called, **fields)

    nested = inner("nested", parent_execution_id=outer.execution_id, parent_step_id=step.step_id)
    asked, started = inner("asked"), inner("started")
    # Called by the first try of a step that was tried twice.
    started = msgspec.structs.replace(started, parent_span_id=attempt_span_id(step.span_id, 1))
    base = EVENING + HOUR
    api.service.writer.apply(
        [
            ExecutionStarted(execution=outer, time_ns=base),
            StepStarted(step=step, time_ns=base + NS),
            *events_of(nested, base + 2 * NS, base + 3 * NS),
            *events_of(asked, base + 2 * NS, base + 4 * NS),
            *events_of(started, base + 2 * NS, base + 30 * NS),
            StepFinished(step=step, time_ns=base + 5 * NS, status=StepStatus.COMPLETED, started_ns=base + NS,
                         attempt=2, attempt_started_ns=base + 2 * NS),
            ExecutionFinished(execution=outer, time_ns=base + 6 * NS, status=ExecutionStatus.COMPLETED,
                              started_ns=base, step_count=1),
            *events_of(other, base, base + NS),
        ]
    )  # fmt: skip
    view = await api.get(f"/api/night?from={EVENING // NS}&to={MORNING // NS}")
    edges = {(edge["kind"], edge["target"]): (edge["source"], edge["step"], edge["datasets"]) for edge in view["edges"]}
    assert edges == {
        ("nested", nested.execution_id): (outer.execution_id, "call", []),
        ("nested", asked.execution_id): (outer.execution_id, "call", []),
        ("trigger", started.execution_id): (outer.execution_id, "call", []),
    }
    # A table that is written twice is read as it was written last; what a run writes for itself is its own business.
    lines = [
        event("START", 0, "early", "load"), event("COMPLETE", 60, "early", "load", outputs=["orders"]),
        event("START", 100, "late", "load"),
        event("COMPLETE", 130, "late.t", "load.task", parent=("late", "load"), outputs=["orders", "log"]),
        event("COMPLETE", 150, "late", "load"),
        event("START", 200, "report", "report", inputs=["orders", "log"]),
        event("COMPLETE", 230, "report", "report", inputs=["orders"], outputs=["sums"]),
        event("START", 240, "own", "own", outputs=["tmp"]), event("COMPLETE", 250, "own", "own", inputs=["tmp"]),
        event("START", 125, "eager", "eager", inputs=["orders"]), event("COMPLETE", 126, "eager", "eager"),
    ]  # fmt: skip
    status, answer = await api.call("POST", "/api/v1/lineage/batch", lines)
    assert (status, answer["status"]) == (200, "success"), answer
    begin = round(START.timestamp())
    view = await api.get(f"/api/night?from={begin - 60}&to={begin + 600}")
    read_by = {(edge["source"], edge["target"]): (edge["kind"], edge["datasets"]) for edge in view["edges"]}
    assert read_by == {
        (run_id("late"), run_id("report")): ("dataset", ["db/orders", "db/log"]),
        (run_id("early"), run_id("eager")): ("dataset", ["db/orders"]),
    }
    assert (await api.call("GET", "/api/night?from=9d"))[0] == 422
    assert (await api.get("/api/night?from=1s"))["workflows"] == []


async def test_an_application_that_a_task_submits_ran_inside_it(any_api: Api) -> None:
    lines = [
        event("START", 0, "dag", "dag", job_type=("AIRFLOW", "DAG")),
        event("START", 1, "task", "dag.submit", parent=("dag", "dag"), job_type=("AIRFLOW", "TASK")),
        event("START", 2, "app", "app", parent=("task", "dag.submit"), job_type=("SPARK", "APPLICATION")),
        event("COMPLETE", 8, "app", "app", parent=("task", "dag.submit"), job_type=("SPARK", "APPLICATION")),
        event("COMPLETE", 9, "task", "dag.submit", parent=("dag", "dag"), job_type=("AIRFLOW", "TASK")),
        event("COMPLETE", 10, "dag", "dag", job_type=("AIRFLOW", "DAG")),
    ]
    assert (await any_api.call("POST", "/api/v1/lineage/batch", lines))[0] == 200
    begin = round(START.timestamp())
    view = await any_api.get(f"/api/night?from={begin - 60}&to={begin + 600}")
    (edge,) = view["edges"]
    assert (edge["kind"], edge["source"], edge["target"], edge["step"]) == (
        "nested", run_id("dag"), run_id("app"), "submit",
    )  # fmt: skip
