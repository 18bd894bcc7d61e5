"""Runs whose end no process reports: in whatever order and how often it is heard, they end once, and as they ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import select
from tests.report.test_report import at, told
from tests.store.test_rollups import differing

import tachograph
from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStarted
from tachograph.report import Run, runs
from tachograph_exporter.store import event_log, reported
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.recovery import Silences
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions
from tachograph_exporter.store.writer import StoreWriter

__all__ = ["told"]


def chain(run_id: str) -> Iterator[str]:
    """A chain of three tasks, of which the second is tried twice; after each part, who has reported it."""

    def process() -> Run:
        """The run as a process sees it that has heard nothing of it."""
        runs._runs.clear()
        return tachograph.report.run("shop", run_id=run_id, engine="celery", queue_lease=3600)

    sender = process()
    sender.queued(at=at(0))
    sender.step("fetch").queued(at=at(0))
    yield "sender"
    first = process()
    fetch = first.step("fetch").started(attempt=1, queued_at=at(0), at=at(1))
    price = first.step("price", depends_on=[fetch])
    price.planned(at=at(1))
    first.step("store", depends_on=[price]).planned(at=at(1))
    yield "first worker"
    price.queued(at=at(2))
    fetch.finished(at=at(2))
    yield "first worker"
    second = process()
    price = second.step("price").started(attempt=1, queued_at=at(2), at=at(3))
    second.step("store", depends_on=[price]).planned(at=at(3))
    yield "second worker"
    price.retrying(ValueError("no price yet"), delay=1, at=at(4))
    yield "second worker"
    third = process()
    price = third.step("price").started(attempt=2, queued_at=at(5), at=at(6))
    store = third.step("store", depends_on=[price])
    store.planned(at=at(6))
    yield "third worker"
    store.queued(at=at(7))
    price.finished(at=at(7))
    yield "third worker"
    fourth = process()
    store = fourth.step("store").started(attempt=1, queued_at=at(7), at=at(8))
    yield "fourth worker"
    store.finished(at=at(9))
    yield "fourth worker"


class Store:
    """A store, and the service that looks for runs that are over, on a clock of the test."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.writer = StoreWriter(self.database)
        self.now = 0.0
        self._silences = Silences(lambda: self.now)

    def quiet(self) -> list[Event]:
        """Look until every run that is over has been quiet for long enough; the ends of those."""
        ends: list[Event] = []
        for _ in range(2):
            self.now += reported.QUIET_SECONDS
            for run in self.database.run(lambda c: reported.find_quiet(c, self._silences)):
                ends += reported.quiet_events(run)
        return ends

    def shown(self, execution_id: str) -> tuple[Any, ...]:
        """What is stored of a run, and of its steps."""
        run, step = workflow_executions.c, workflow_step_executions.c

        def read(connection: Any) -> tuple[Any, ...]:
            columns = select(run.status, run.finished_ns, run.completed_step_count)
            (execution,) = connection.execute(columns.where(run.execution_id == execution_id))
            states = select(step.name, step.status, step.attempt).where(step.execution_id == execution_id)
            steps = connection.execute(states.order_by(step.name))
            return (*execution, *[tuple(row) for row in steps])

        return self.database.run(read)


def interleaved(parts: Sequence[tuple[str, list[Event]]], rng: random.Random) -> list[list[Event]]:
    """The parts in an order in which a service may get them: those of a process as it sent them, some twice."""
    by_process: dict[str, list[list[Event]]] = {}
    for who, events in parts:
        by_process.setdefault(who, []).append(events)
    result = []
    while waiting := [own for own in by_process.values() if own]:
        part = rng.choice(waiting).pop(0)
        result.append(part)
        if rng.random() < 0.2:
            # The answer was lost: it is sent again.
            result.append(part)
    return result


END = (3, ("fetch", "completed", 1), ("price", "completed", 2), ("store", "completed", 1))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_chain_ends_in_every_order(
    told: Callable[[], list[Event]], request: pytest.FixtureRequest, kind: str
) -> None:
    """The service looks after each part, so the end of the run may be stored while a step is on its way."""
    is_sqlite = kind == "sqlite"
    store = Store(request.getfixturevalue("database_url") if is_sqlite else request.getfixturevalue("postgres")())
    for seed in range(20, 40) if is_sqlite else (29, 37):
        rng, parts = random.Random(seed), [(who, told()) for who in chain(str(seed))]
        held: list[Event] = []
        for part in interleaved(parts, rng):
            store.writer.apply(part)
            # What the service says waits in its own queue: until after the next part, or the one after it.
            late, held = held, store.quiet()
            if rng.random() < 0.5:
                late, held = late + held, []
            if late:
                store.writer.apply(late)
        for _ in range(3):
            if ends := [*held, *store.quiet()]:
                store.writer.apply(ends)
            held = []
        execution_id = parts[0][1][0].execution.execution_id
        assert store.shown(execution_id) == ("completed", round(at(9).timestamp()) * NS, *END), seed
    assert differing(store.database) == 0
    store.database.close()


def test_a_run_that_goes_on_is_open_again_and_is_told_of_so(told: Callable[[], list[Event]], database_url: str) -> None:
    """A task is sent late, by somebody who told of nothing before; what was planned after it waits again, too."""
    store = Store(database_url)
    position = store.database.run(event_log.listen)

    def process() -> Run:
        runs._runs.clear()
        return tachograph.report.run("shop", run_id="1", engine="celery", queue_lease=3600)

    def shown() -> tuple[Any, ...]:
        store.writer.apply(told())
        if ends := store.quiet():
            store.writer.apply(ends)
        return store.shown(process().execution_id)

    process().queued(at=at(0)).step("fetch").queued(at=at(0)).started(at=at(1)).finished(at=at(2))
    process().step("price", depends_on=["fetch"]).planned(at=at(1))
    process().step("store", depends_on=["price"]).planned(at=at(1))
    end = round(at(2).timestamp()) * NS
    fetched = ("fetch", "completed", 1)
    assert shown() == ("completed", end, 1, fetched, ("price", "skipped", 0), ("store", "skipped", 0))
    price = process().step("price").started(attempt=1, queued_at=at(20), at=at(21))
    for _ in range(2):
        assert shown() == ("running", None, 0, fetched, ("price", "running", 1), ("store", "pending", 0))
    assert differing(store.database) == 0
    price.failed("no price", at=at(22))
    end = round(at(22).timestamp()) * NS
    assert shown() == ("failed", end, 1, fetched, ("price", "failed", 1), ("store", "skipped", 0))
    assert differing(store.database) == 0
    # Somebody asks for a task that nobody had planned.
    process().step("extra").queued(at=at(40))
    assert shown()[:2] == ("running", None)
    process().step("extra").cancelled(at=at(41))
    assert shown()[0] == "failed"
    logged = store.database.run(lambda c: event_log.read(c, position, 1_000))
    told_of = []
    for entry in logged:
        if isinstance(entry.event, ExecutionFinished):
            told_of.append(entry.event.status.value)
        elif isinstance(entry.event, ExecutionStarted) and entry.event.is_resumed:
            told_of.append("resumed")
    assert told_of == ["completed", "resumed", "failed", "resumed", "failed"]
    store.database.close()
