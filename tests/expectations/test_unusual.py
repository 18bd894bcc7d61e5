"""Cost, a step's time and the share that succeeds, beside what is usual: told from a real database, with recoveries."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tachograph.clock import NS
from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    StepCost,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.expectation import Expectation
from tachograph_exporter.expectations.watch import Watch
from tachograph_exporter.store import expectations, notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tests.conftest import make_execution, make_step
from tests.expectations.test_watch import Clock, watch_of

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


class World:
    """A workflow, and a service that looks after every run of it."""

    def __init__(self, url: str, success_target: float | None = None) -> None:
        self.clock = Clock(NOON)
        self.writer = StoreWriter(Database(url))
        self.database = self.writer.database
        said = Expectation(success_target=success_target)
        self.database.run(
            lambda c: expectations.say(c, expectations.ANY, "etl", expectations.FILE, said, self.clock.ns())
        )
        self.watch: Watch = watch_of(self.writer, self.clock)

    def execute(self, minutes: float, load_seconds: int, usd: float, *, fails: bool = False) -> None:
        """A run that begins so many minutes after noon; the service looks when it has ended, and a while later."""
        at = NOON + timedelta(minutes=minutes)
        begin, end = (round(moment.timestamp()) * NS for moment in (at, at + timedelta(seconds=load_seconds)))
        run = make_execution("etl")
        load = make_step(run, "load")
        status = ExecutionStatus.FAILED if fails else ExecutionStatus.COMPLETED
        self.writer.apply([
            ExecutionStarted(execution=run, time_ns=begin), StepStarted(step=load, time_ns=begin),
            StepCost(step=load, time_ns=begin, sequence=1, usd=usd, model="m"),
            StepFinished(step=load, time_ns=end, status=StepStatus(status), attempt=1, started_ns=begin,
                         attempt_started_ns=begin, run_ns=end - begin),
            ExecutionFinished(execution=run, time_ns=end, status=status, started_ns=begin, step_count=1),
        ])  # fmt: skip
        self.look(minutes + 1)

    def look(self, minutes: float) -> None:
        self.clock.move(NOON + timedelta(minutes=minutes))
        self.watch.look()

    @property
    def told(self) -> dict[str, tuple[str, str]]:
        """(text, recovery) by kind."""
        rows = self.database.look(lambda c: notices.listed(c, None))
        assert len({row.kind for row, _ in rows}) == len(rows)
        return {row.kind: (row.text, row.recovery or "") for row, _ in rows}


@pytest.fixture
def world(any_database_url: str) -> Iterator[World]:
    world = World(any_database_url)
    yield world
    world.database.close()


def test_an_hour_that_costs_more_and_a_step_that_takes_longer_are_told_until_an_hour_is_usual_again(
    world: World,
) -> None:
    for hour in range(8):
        world.execute(60 * hour, 10, 2.0)
    assert world.told == {}
    world.execute(60 * 8, 40, 9.0)
    world.look(60 * 8 + 10)
    told = world.told
    assert told["cost"] == ("It cost $9.00 in the last hour it ran; such an hour usually costs $2.00.", "")
    slower = "Its step “load” took 40 s on average in the last hour it ran; it usually takes 10 s."
    assert told["regression"] == (slower, "")
    # A service that is started meanwhile tells nothing twice, and what it was not there to see.
    world.watch = watch_of(world.writer, world.clock)
    world.look(60 * 8 + 30)
    assert world.told == told
    world.execute(60 * 9, 10, 2.0)
    world.look(60 * 9 + 10)
    assert set(world.told) == {"cost", "regression"}
    rows = world.database.look(lambda c: notices.listed(c, None))
    assert all(row.resolved_ns is not None for row, _ in rows)


def test_a_share_of_successes_below_its_target_is_told_until_it_is_met(database_url: str) -> None:
    world = World(database_url, success_target=0.9)
    # Each failure is mended within ten minutes, so none is told on its own.
    for n in range(24):
        world.execute(5 * n, 10, 0.0, fails=n % 2 == 0)
    told = world.told
    assert set(told) == {"success_rate"}
    text, recovery = told["success_rate"]
    assert (text.endswith("and the target is 90 %."), "executions failed: " in text, recovery) == (True, True, "")
    for n in range(1, 9):
        world.execute(120 + 60 * n, 10, 0.0)
    rows = world.database.look(lambda c: notices.listed(c, None))
    assert [(row.kind, row.resolved_ns is not None) for row, _ in rows] == [("success_rate", True)]
    world.database.close()
