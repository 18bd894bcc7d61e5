"""Executions that begin and end in one batch are counted from it; those of which something is stored, from the rows."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import pytest
from tests.conftest import make_execution, make_step
from tests.store.test_rollups import KEY, a_run, differing, plain

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Resources,
    StepEvent,
    StepFinished,
    StepStatus,
)
from tachograph.identity import step_id
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import counting, fresh, grouping, read
from tachograph_exporter.store.rollups.rebuild import workflows_with_executions
from tachograph_exporter.store.series.counting import Counted
from tachograph_exporter.store.series.recount import recount_one
from tachograph_exporter.store.totals import PackedTotals
from tachograph_exporter.store.writer import StoreWriter


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    opened = Database(any_database_url)
    yield opened
    opened.close()


def used(rng: random.Random, run: list[Event]) -> list[Event]:
    """The run, with what its steps used of the machine."""
    return [
        msgspec.structs.replace(event, resources=Resources(cpu_seconds=rng.random(), peak_memory_bytes=1 << 20))
        if isinstance(event, StepFinished)
        else event
        for event in run
    ]


def shifted(run: list[Event]) -> list[Event]:
    """The run, with a clock that was set back while its steps ran."""
    return [
        msgspec.structs.replace(event, started_ns=event.time_ns + 7, queue_ns=5, dependency_ns=3, last_queue_ns=5)
        if isinstance(event, StepFinished)
        else event
        for event in run
    ]


def off_path(run: list[Event]) -> list[Event]:
    """The run, of whose steps only the last is on the critical path."""
    return [
        msgspec.structs.replace(event, critical_path=event.critical_path[-1:])
        if isinstance(event, ExecutionFinished)
        else event
        for event in plain(run)
    ]


def check(database: Database) -> None:
    """What was counted is what comes out when the rows are counted again, by column and one by one."""
    for least in (grouping.MIN_GROUPED, sys.maxsize):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grouping, "MIN_GROUPED", least)
            assert differing(database) == 0
            for key in database.look(workflows_with_executions):
                assert database.look(partial(recount_one, key=key, write=False)) == 0


def test_what_is_in_a_batch_alone_is_counted_as_if_it_were_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(11)
    writer, other = StoreWriter(database), StoreWriter(database)

    def runs(count: int) -> list[list[Event]]:
        statuses = (ExecutionStatus.COMPLETED, ExecutionStatus.COMPLETED, ExecutionStatus.FAILED)
        made = [a_run(rng, time.time() - rng.random() * 40_000, rng.choice(statuses)) for _ in range(count)]
        kinds: tuple[Callable[[list[Event]], list[Event]], ...]
        kinds = (lambda run: run, lambda run: used(rng, plain(run)), lambda run: shifted(plain(run)), plain, off_path)
        return [kinds[number % len(kinds)](run) for number, run in enumerate(made)]

    for each in (writer, other):
        each.apply(runs(1)[0])
    counted, by_column = list[int](), list[int]()
    whole = fresh.fresh

    def noting(*arguments: object) -> fresh.Fresh:
        found: fresh.Fresh = whole(*arguments)  # type: ignore[arg-type]
        counted.append(len(found.executions))
        by_column.append(sum(map(len, found.plain)))
        return found

    monkeypatch.setattr(fresh, "fresh", noting)
    many = runs(80)
    writer.apply([event for run in many for event in run])
    assert sum(counted) > 10
    assert sum(by_column) > 20
    check(database)

    # Of some, steps and what they reported came first, from another process; and the whole batch comes twice.
    late = runs(40)
    ahead = [[event for event in run if isinstance(event, StepEvent)][:4] for run in late[::3]]
    other.apply([event for events in ahead for event in events])
    for _ in range(2):
        writer.apply([event for run in late for event in run])
        check(database)
    # One that was begun before, by another; one that ends twice; and one whose parts are in two batches.
    begun = runs(30)
    other.apply([event for run in begun for event in run if isinstance(event, ExecutionQueued | ExecutionStarted)])
    other.apply(begun[0])
    writer.apply([event for run in begun for event in run])
    split = runs(30)
    writer.apply([event for run in split for event in run[: len(run) // 2]])
    writer.apply([event for run in split for event in run[len(run) // 2 :]])
    check(database)
    # An end that is told anew is another one.
    changed = runs(1)[0]
    writer.apply(changed)
    writer.apply([msgspec.structs.replace(changed[-1], time_ns=changed[-1].time_ns + 5_000_000_000)])
    check(database)


def test_a_run_of_very_many_steps_is_counted_part_by_part(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that a few hundred steps are as many as tens of thousands, read and packed in several parts.
    monkeypatch.setattr(counting, "MAX_STEPS", 70)
    monkeypatch.setattr(PackedTotals, "MAX_UNPACKED", 50)
    monkeypatch.setattr(Counted, "MAX_UNPACKED", 50)
    rng = random.Random(5)
    writer = StoreWriter(database)
    # Several executions of one name each, and names that come again in a later part and in a later run.
    for names in (300, 90, 3):
        run = a_wide_run(rng, 300, names)
        writer.apply(run[:100])
        writer.apply(run[100:])
    check(database)
    stored = database.look(lambda c: read.read(c, KEY))
    assert len(stored.steps) == 300
    assert sum(totals.count for step in stored.steps.values() for totals in step.by_status.values()) == 900


def a_wide_run(rng: random.Random, steps: int, names: int) -> list[Event]:
    """A run of steps beside each other that used something of the machine, some of them of one name."""
    run = make_execution("etl")
    start = time.time_ns()
    events: list[Event] = [ExecutionStarted(execution=run, time_ns=start, step_count=steps)]
    for number in range(steps):
        name = f"part {number % names}"
        step = msgspec.structs.replace(make_step(run, name), step_id=step_id(run.workflow_id, name, number))
        end = start + rng.randrange(1, 10**10)
        failed = rng.random() < 0.1
        events.append(
            StepFinished(step=step, time_ns=end, status=StepStatus.FAILED if failed else StepStatus.COMPLETED,
                         attempt=rng.choice([1, 1, 1, 2]), started_ns=start, attempt_started_ns=start,
                         run_ns=end - start, resources=Resources(cpu_seconds=rng.random()))
        )  # fmt: skip
    return [
        *events,
        ExecutionFinished(execution=run, time_ns=start + 10**10, status=ExecutionStatus.COMPLETED, started_ns=start,
                          step_count=steps, completed_step_count=steps),
    ]  # fmt: skip
