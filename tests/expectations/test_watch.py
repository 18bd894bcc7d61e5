"""What services tell of eleven nights in a real database: across a clock change, restarts, and a clock that is set."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import ClassVar
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepFinished,
    StepStarted,
    StepStatus,
    WorkflowExpected,
)
from tachograph.expectation import Expectation, StepExpectation
from tachograph.identity import ExecutionRef, StepRef, workspace_id
from tachograph.metrics.exposition import render
from tachograph_exporter.expectations.evaluation import Evaluation
from tachograph_exporter.expectations.limits import limits_of
from tachograph_exporter.expectations.metrics import ExpectationMetrics
from tachograph_exporter.expectations.reading import Expected
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.watch import Watch, Watched
from tachograph_exporter.store import expectations, notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tests.conftest import make_execution, make_step

pytestmark = pytest.mark.every_database

BERLIN = ZoneInfo("Europe/Berlin")
DEFAULT = workspace_id("default")


class Clock:
    """A clock that is moved, and can be set, beside the time that really passes."""

    def __init__(self, start: datetime) -> None:
        self.passed = start.timestamp()
        self.shift = 0.0

    def move(self, moment: datetime) -> None:
        self.passed = moment.timestamp()

    def ns(self) -> int:
        return round((self.passed + self.shift) * NS)

    def monotonic(self) -> float:
        return self.passed


@pytest.fixture
def writer(any_database_url: str) -> Iterator[StoreWriter]:
    database = Database(any_database_url)
    yield StoreWriter(database)
    database.close()


def watch_of(writer: StoreWriter, clock: Clock) -> Watch:
    target = Target(name="on call", url="https://example.com/")
    return Watch(writer.database, DEFAULT, [target], settle_seconds=1, clock=clock.ns, monotonic=clock.monotonic)


def execute(
    writer: StoreWriter, start: datetime, end: datetime | None, status: ExecutionStatus, ref: ExecutionRef | None = None
) -> ExecutionRef:
    execution = ref or make_execution("nightly")
    start_ns = round(start.timestamp()) * NS
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=start_ns)]
    if end is not None:
        events.append(
            ExecutionFinished(execution=execution, time_ns=round(end.timestamp()) * NS, status=status,
                              started_ns=start_ns, step_count=0)
        )  # fmt: skip
    writer.apply(events)
    return execution


def told(database: Database) -> list[tuple[str, str, str, str]]:
    """(kind, since, until, messages) of all notices, in local time, the oldest first."""

    def local(time_ns: int | None) -> str:
        return "" if time_ns is None else f"{datetime.fromtimestamp(time_ns / NS, BERLIN):%d %H:%M}"

    rows = database.look(lambda c: notices.listed(c, None))
    return [
        (row.kind, local(row.opened_ns), local(row.resolved_ns), " ".join(m.phase for m in messages))
        for row, messages in reversed(rows)
    ]


def test_eleven_nights(writer: StoreWriter) -> None:
    first = datetime(2026, 3, 24, tzinfo=BERLIN)
    clock = Clock(first)
    nightly = Expectation(schedule="30 2 * * *", timezone="Europe/Berlin", deadline_seconds=3600.0)
    database = writer.database
    database.run(lambda c: expectations.say(c, expectations.ANY, "nightly", expectations.FILE, nightly, clock.ns()))
    watch, other = watch_of(writer, clock), watch_of(writer, clock)
    both = "opened recovered"

    def look(moment: datetime) -> None:
        for seconds in (0, 2):
            clock.move(moment + timedelta(seconds=seconds))
            watch.look()
            other.look()

    for night in range(11):
        day = first + timedelta(days=night)
        # On the 29th there is no half past two: it is three then.
        due = day.replace(hour=3 if day.day == 29 else 2, minute=0 if day.day == 29 else 30)
        start = due + timedelta(minutes=40 if day.day == 30 else 0, seconds=5)
        end = start + timedelta(minutes=90 if day.day == 2 else 1)
        status = ExecutionStatus.FAILED if day.day == 1 else ExecutionStatus.COMPLETED
        for minutes in (-60, 5, 15, 45, 80, 100):
            if day.day == 2 and minutes == 5:
                running = execute(writer, start, None, status)
            if day.day == 2 and minutes == 100:
                execute(writer, start, end, status, running)
            elif day.day not in (2, 27) and minutes == (45 if day.day == 30 else 5):
                execute(writer, start, end, status)
            look(due + timedelta(minutes=minutes))
        if day.day == 27:
            # Another service goes on.
            watch = watch_of(writer, clock)
        if day.day == 31:
            # The clock is two hours ahead for a while.
            for clock.shift in (7200.0, 0.0):
                look(day.replace(hour=12))
    assert told(database) == [
        ("late", "27 02:40", "28 02:30", both),
        ("late", "30 02:40", "30 03:10", both),
        ("failed", "01 02:41", "02 04:00", both),
        ("overdue", "02 03:30", "02 04:00", both),
    ]


def test_a_step_past_the_deadline_of_its_code_is_told_also_when_it_has_ended_meanwhile(writer: StoreWriter) -> None:
    start = datetime(2026, 3, 24, 3, tzinfo=BERLIN)
    clock = Clock(start)
    watch = watch_of(writer, clock)

    def at(minutes: float) -> int:
        return round((start + timedelta(minutes=minutes)).timestamp()) * NS

    def expect_step(ref: ExecutionRef, name: str, seconds: float) -> Event:
        said = Expectation(steps={name: StepExpectation(deadline_seconds=seconds)})
        return WorkflowExpected(execution=ref, time_ns=at(0), source="code", expects=said)

    def look(minutes: float) -> None:
        for seconds in (0, 2):
            clock.move(start + timedelta(minutes=minutes, seconds=seconds))
            watch.look()

    first = make_execution("nightly")
    code = Expectation(deadline_seconds=36_000.0)
    load, other = make_step(first, "load"), make_step(first, "other")
    writer.apply([ExecutionStarted(execution=first, time_ns=at(0), expects=code)])
    writer.apply([expect_step(first, "load", 600), StepStarted(step=load, time_ns=at(0))])
    writer.apply([expect_step(first, "other", 60), StepStarted(step=other, time_ns=at(0))])
    (said,) = writer.database.look(lambda c: expectations.said(c, DEFAULT, "nightly"))
    assert said.expectation == Expectation(
        deadline_seconds=36_000.0,
        steps={"load": StepExpectation(deadline_seconds=600.0), "other": StepExpectation(deadline_seconds=60.0)},
    )
    writer.apply([_end_of(other, at(0), at(0.5))])
    for minutes in (0.5, 5, 11):
        look(minutes)
        look(minutes + 0.1)
        assert [kind for kind, *_ in told(writer.database)] == (["overdue"] if minutes > 10 else [])
    writer.apply([_end_of(load, at(0), at(12))])
    look(12.5)
    # The next one takes too long, and nobody looked while it did.
    second = make_execution("nightly")
    late = make_step(second, "load")
    writer.apply([
        ExecutionStarted(execution=second, time_ns=at(20), expects=code), StepStarted(step=late, time_ns=at(20)),
        _end_of(late, at(20), at(35)),
        ExecutionFinished(execution=second, time_ns=at(36), status=ExecutionStatus.COMPLETED, started_ns=at(20),
                          step_count=1),
    ])  # fmt: skip
    for _ in range(2):
        look(40)
        watch = watch_of(writer, clock)
    both = "opened recovered"
    assert told(writer.database) == [
        ("overdue", "24 03:10", "24 03:12", both), ("overdue", "24 03:30", "24 03:35", both),
    ]  # fmt: skip
    texts = [row.text for row, _ in writer.database.look(lambda c: notices.listed(c, None))]
    assert texts[0].startswith("Its step “load” took 15 m 00 s; its deadline is 10 m 00 s.")


def _end_of(step: StepRef, start_ns: int, end_ns: int) -> Event:
    return StepFinished(step=step, time_ns=end_ns, status=StepStatus.COMPLETED, attempt=1, started_ns=start_ns,
                        attempt_started_ns=start_ns, run_ns=end_ns - start_ns)  # fmt: skip


def test_a_step_that_hangs_is_told_and_shown_until_it_ends_though_that_makes_it_usual(writer: StoreWriter) -> None:
    start = datetime(2026, 3, 24, 3, tzinfo=BERLIN)
    clock = Clock(start)
    watch = watch_of(writer, clock)

    def at(minutes: float) -> int:
        return round((start + timedelta(minutes=minutes)).timestamp()) * NS

    def execute(minutes: float, load_minutes: float | None) -> tuple[StepRef, int]:
        run = make_execution("etl")
        load = make_step(run, "load")
        begin = at(minutes)
        writer.apply([ExecutionStarted(execution=run, time_ns=begin), StepStarted(step=load, time_ns=begin)])
        if load_minutes is not None:
            finish(load, begin, at(minutes + load_minutes))
        return load, begin

    def finish(load: StepRef, begin: int, end: int) -> None:
        writer.apply([_end_of(load, begin, end)])
        run = load.execution
        writer.apply([
            ExecutionFinished(execution=run, time_ns=end + 3600 * NS, status=ExecutionStatus.COMPLETED,
                              started_ns=begin, step_count=1),
        ])  # fmt: skip

    def look(minutes: float) -> str:
        clock.move(start + timedelta(minutes=minutes))
        watch.look()
        registry = CollectorRegistry()
        registry.register(ExpectationMetrics(watch, 100))
        return render(registry).decode()

    for n in range(5):
        execute(200 * n, 10)
    load, begin = execute(1000, None)
    shown = {minutes: "workflow_step_overdue{" in look(minutes) for minutes in (1001, 1010, 1029, 1031, 1032)}
    assert shown == {1001: False, 1010: False, 1029: False, 1031: True, 1032: True}
    assert [row[0] for row in told(writer.database)] == ["stuck"]
    # Another service goes on, and shows it as well.
    watch = watch_of(writer, clock)
    assert 'workflow_step_overdue{step="load",workflow="etl",workspace="default"} 1.0' in look(1033)
    finish(load, begin, at(1040))
    assert "workflow_step_overdue{" not in look(1041)
    ((row, messages),) = writer.database.look(lambda c: notices.listed(c, None))
    assert (row.kind, row.key, row.opened_ns, row.resolved_ns) == (
        "stuck", f"{load.execution.execution_id}/load", at(1030), at(1040),
    )  # fmt: skip
    assert row.recovery.startswith("Its step “load” ended after 40 m 00 s.")
    assert sorted(message.phase for message in messages) == ["opened", "recovered"]


def test_names_that_are_cut_to_the_same_are_one_series() -> None:
    class Found:
        slugs: ClassVar[dict[str, str]] = {"w": "default"}

        def __init__(self, names: list[str], steps: list[str]) -> None:
            limits = limits_of(Expectation(steps={step: StepExpectation(deadline_seconds=1.0) for step in steps}))
            evaluation = Evaluation(long_steps=steps[-1:])
            self.watched = {
                ("w", name): Watched(Expected("w", name, {}, limits, 0), evaluation, None, 0, (), 0, {}, 0)
                for name in names
            }

    long, hostile = "x" * 5_000, 'a"b\\c\nd{e="f"}'
    registry = CollectorRegistry()
    registry.register(ExpectationMetrics(Found([long + "1", long + "2", hostile], [long + "3", long + "4", "s"]), 3))  # type: ignore[arg-type]
    families = {f.name: f.samples for f in text_string_to_metric_families(render(registry).decode())}
    steps = families["workflow_step_overdue"]
    assert len({tuple(sample.labels.items()) for sample in steps}) == len(steps) == 3
    # Of more than fit, those that run for too long are shown.
    assert [sample.value for sample in steps] == [1.0, 1.0, 0.0]
    assert {sample.labels["workflow"] for sample in families["workflow_flapping"]} >= {hostile}
