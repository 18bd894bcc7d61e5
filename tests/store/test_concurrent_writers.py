"""Writers on one PostgreSQL: those of different workflows commit at the same time, and everything stays exact."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, func, select
from sqlalchemy.util import await_only
from tests.conftest import make_execution
from tests.store.test_rollups import a_run, differing

from tachograph.clock import NS
from tachograph.events import Event, ExecutionStatus, Failure, StepEvent, StepFinished, StepStatus
from tachograph.identity import workflow_id, workspace_id
from tachograph_exporter.store import engines, event_log, locking
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.locking import Claim, NotAlone
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.rollups.rebuild import workflows_with_executions
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions
from tachograph_exporter.store.series import rows as series_rows
from tachograph_exporter.store.series.recount import recount_one
from tachograph_exporter.store.writer import StoreWriter

pytestmark = pytest.mark.e2e
SECONDS = 60


@pytest.fixture
def databases(postgres: Callable[..., str]) -> Iterator[Callable[[], Database]]:
    """Opens the same database again and again, as several processes do."""
    url = postgres()
    opened: list[Database] = []

    def another() -> Database:
        opened.append(Database(url))
        return opened[-1]

    yield another
    for database in opened:
        database.close()


def moved(events: Sequence[Event], workflow: str, execution_id: str = "") -> list[Event]:
    """The events as those of another workflow (and execution)."""
    result: list[Event] = []
    for event in events:
        ref = msgspec.structs.replace(
            event.execution, workflow=workflow, workflow_id=workflow_id("default", workflow),
            execution_id=execution_id or event.execution.execution_id,
        )  # fmt: skip
        if isinstance(event, StepEvent):
            result.append(msgspec.structs.replace(event, step=msgspec.structs.replace(event.step, execution=ref)))
        else:
            result.append(msgspec.structs.replace(event, execution=ref))
    return result


def runs_of(workflow: str, count: int = 1) -> list[Event]:
    """New runs, alike each time: what their spans are called is new only once."""
    rng = random.Random(workflow)
    return [event for _ in range(count) for event in moved(a_run(rng, time.time()), workflow)]


class Held:
    """A transaction of a writer that has done everything but commit."""

    def __init__(self, writer: StoreWriter, events: Sequence[Event]) -> None:
        self._done, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(writer, events), daemon=True)
        self._thread.start()
        assert self._done.wait(SECONDS)

    def _work(self, writer: StoreWriter, events: Sequence[Event]) -> None:
        async def wait() -> None:
            while not self._go.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        def hold(connection: Connection) -> Any:
            batch = writer.put(connection, events)
            self._done.set()
            await_only(wait())
            return batch

        writer.stored(writer.run(hold))

    def commit(self) -> None:
        self._go.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


def waiting(database: Database) -> int:
    """How many transactions wait for an advisory lock."""
    query = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database " \
            "WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"  # fmt: skip
    return int(database.look(lambda c: c.exec_driver_sql(query).scalar_one()))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def listen(database: Database) -> int:
    return database.run(event_log.listen)


def test_writers_of_different_workflows_commit_at_once_and_of_one_in_turn(databases: Callable[[], Database]) -> None:
    first, second = StoreWriter(databases()), StoreWriter(databases())
    looker = databases()
    for writer, name in ((first, "a"), (second, "b"), (second, "a")):
        writer.apply(runs_of(name))  # Workflows are registered alone, and what they are called noted.
    with ThreadPoolExecutor(2) as pool:
        # Its steps go on: nothing that is numbered.
        held = Held(first, runs_of("a")[:-1])
        second.apply(runs_of("b"))
        same: Future[None] = pool.submit(second.apply, runs_of("a"))
        until(lambda: waiting(looker) == 1)
        held.commit()
        same.result(SECONDS)

        # Whoever needs everything waits for all others, and they for it.
        held = Held(first, runs_of("a"))
        alone = pool.submit(looker.run, locking.lock)
        watching = databases()
        until(lambda: waiting(watching) == 1)
        other = pool.submit(second.apply, runs_of("b"))
        until(lambda: waiting(watching) == 2)
        held.commit()
        alone.result(SECONDS)
        other.result(SECONDS)
    first.apply(runs_of("a"))
    check(looker)
    assert {name: ended(looker, name) for name in "ab"} == {"a": 5, "b": 3}


def test_a_reader_that_has_seen_a_number_has_seen_all_lower_ones(databases: Callable[[], Database]) -> None:
    first, second = StoreWriter(databases()), StoreWriter(databases())
    looker = databases()
    for writer, name in ((first, "a"), (second, "b")):
        writer.apply(runs_of(name))
    position = listen(looker)
    deltas = max(number for number, _, _ in looker.look(lambda c: series_rows.news(c, -1)).deltas)
    with ThreadPoolExecutor(1) as pool:
        held = Held(first, runs_of("a"))
        later = pool.submit(second.apply, runs_of("b"))
        # It has written everything but what is numbered.
        until(lambda: waiting(looker) == 1)
        assert looker.look(lambda c: event_log.read(c, position)) == []
        assert looker.look(lambda c: series_rows.news(c, deltas)).deltas == []
        held.commit()
        later.result(SECONDS)
    names = [entry.event.execution.workflow for entry in looker.look(lambda c: event_log.read(c, position))]
    assert names == sorted(names)
    assert set(names) == {"a", "b"}
    assert len(looker.look(lambda c: series_rows.news(c, deltas)).deltas) == 2


def test_under_load_totals_are_exact_and_followers_miss_nothing(databases: Callable[[], Database]) -> None:
    looker = databases()
    position = start = listen(looker)
    rng = random.Random(7)
    expected: dict[str, list[Event]] = {}
    batches: list[list[list[Event]]] = []
    for number in range(4):
        events: list[Event] = []
        for i in range(30):
            status = rng.choice([ExecutionStatus.COMPLETED, ExecutionStatus.FAILED])
            # Each has a workflow of its own, and all of them one in common; some runs fail for a new reason.
            run = moved(a_run(rng, time.time() - rng.random() * 8_000, status), rng.choice([f"own{number}", "common"]))
            run = [
                msgspec.structs.replace(event, failure=Failure(f"Error{'abcdefgh'[i % 8]}", "boom", None))
                if isinstance(event, StepFinished) and event.status is StepStatus.FAILED
                else event
                for event in run
            ]
            expected[run[0].execution.execution_id] = run
            events += run
        sizes = iter(lambda: rng.randrange(5, 60), 0)
        own: list[list[Event]] = []
        while events:
            size = next(sizes)
            own.append(events[:size])
            events = events[size:]
        batches.append(own)
    stop = threading.Event()
    followed: list[event_log.Logged] = []
    shown: list[int] = []

    def follow() -> None:
        nonlocal position
        last = -1
        while True:
            is_last = stop.is_set()
            while logged := looker.look(partial(event_log.read, after=position)):
                followed.extend(logged)
                position = logged[-1].sequence
            for number, _, _ in looker.look(partial(series_rows.news, after=last)).deltas:
                shown.append(number)
                last = number
            if is_last:
                return

    def write_all(writer: StoreWriter, own: Sequence[Sequence[Event]]) -> None:
        for events in own:
            writer.apply(events)

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        writing = [pool.submit(write_all, StoreWriter(databases()), own) for own in batches]
        for each in writing:
            each.result(SECONDS)
        stop.set()
        following.result(SECONDS)
    check(looker)
    stored = looker.look(lambda c: c.execute(select(func.count()).select_from(workflow_executions)).scalar_one())
    assert stored == len(expected)
    # Each event once, those of an execution in their order.
    by_execution: dict[str, list[Event]] = {}
    for entry in followed:
        by_execution.setdefault(entry.event.execution.execution_id, []).append(entry.event)
    assert {key: list(map(type, own)) for key, own in by_execution.items()} == {
        key: list(map(type, own)) for key, own in expected.items()
    }
    assert [entry.sequence for entry in followed] == sorted({entry.sequence for entry in followed})
    assert followed[0].sequence > start
    assert looker.look(lambda c: series_rows.waiting_deltas(c)) == len(shown)
    # Numbers of executions are given once, without gaps.
    columns = workflow_executions.c
    for name in ("own0", "common"):
        of_workflow = columns.workflow_id == workflow_id("default", name)
        numbers = looker.look(lambda c, w=of_workflow: c.execute(select(columns.number).where(w)).scalars().all())  # type: ignore[misc]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_a_writer_that_stands_still_in_its_transaction_keeps_others_for_a_while_only(
    databases: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process does that is stopped, or whose machine is suspended; it goes on later."""
    other, looker = StoreWriter(databases()), databases()
    with monkeypatch.context() as patch:
        patch.setattr(engines, "IDLE_IN_TRANSACTION_SECONDS", 3.0)
        writer = StoreWriter(databases())
        writer.apply(runs_of("a"))
    held = Held(writer, [*runs_of("a"), *runs_of("new")])
    with ThreadPoolExecutor(2) as pool:
        # Of the same workflow, and what only one may do: both wait for it.
        same, alone = pool.submit(other.apply, runs_of("a")), pool.submit(StoreWriter(databases()).apply, runs_of("b"))
        same.result(SECONDS)
        alone.result(SECONDS)
    assert (ended(looker, "a"), ended(looker, "b"), ended(looker, "new")) == (2, 1, 0)
    held.commit()
    assert (ended(looker, "a"), ended(looker, "b"), ended(looker, "new")) == (3, 1, 1)
    check(looker)


def test_services_whose_clocks_are_an_hour_apart_keep_the_events_of_each_other(
    databases: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    looker = databases()
    position = listen(looker)
    for hours in (-1, 1, 0):
        clock = SimpleNamespace(time_ns=lambda hours=hours: time.time_ns() + hours * 3_600 * NS)
        monkeypatch.setattr(event_log, "time", clock)
        StoreWriter(databases()).apply(runs_of("a"))
        looker.run(event_log.prune)
    followed = {entry.event.execution.execution_id for entry in looker.look(lambda c: event_log.read(c, position))}
    assert len(followed) == 3


def test_one_execution_in_two_workflows_is_one_and_counted_once(databases: Callable[[], Database]) -> None:
    """Ids come from outside: whoever says that an execution is another workflow's does not break its totals."""
    first, second = StoreWriter(databases()), StoreWriter(databases())
    looker = databases()
    for writer, name in ((first, "a"), (second, "b")):
        writer.apply(runs_of(name))
    run = runs_of("a")
    held = Held(first, run)
    with ThreadPoolExecutor(1) as pool:
        stranger = moved(run, "b")
        late = pool.submit(second.apply, stranger)
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: looker.look(lambda c: c.exec_driver_sql(query).scalar_one()) > 0)
        held.commit()
        late.result(SECONDS)
    # Steps alone of an execution that is another's, and both in one batch.
    second.apply([event for event in stranger if isinstance(event, StepEvent)])
    other = make_execution("a").execution_id
    second.apply([*moved(run[:3], "a", other), *moved(run[3:], "b", other)])
    check(looker)
    assert ended(looker, "a") + ended(looker, "b") == 4


def test_who_meets_something_that_only_one_may_do_starts_again_alone(databases: Callable[[], Database]) -> None:
    database = databases()
    calls: list[bool] = []

    def work(connection: Connection) -> None:
        locking.share(connection)
        calls.append(locking.is_shared(connection))
        locking.claim(connection, Claim.WORKFLOW, ("w",))
        locking.claim(connection, Claim.WORKFLOW, ("w",))
        # Claimed already, or later in the order: neither can make two wait for each other.
        locking.claim(connection, Claim.ORDER)
        locking.claim(connection, Claim.TRACE, ("t",))

    locking.retried_alone(database.run, work)
    assert calls == [True, False]
    for claims in ([Claim.ORDER, Claim.NAMES], [Claim.TRACE, Claim.TRACE]):

        def badly(connection: Connection, claims: Sequence[Claim] = claims) -> None:
            locking.share(connection)
            for number, kind in enumerate(claims):
                locking.claim(connection, kind, (str(number),))

        with pytest.raises(NotAlone):
            database.run(badly)

    def shared_then(step: Callable[[Connection], None]) -> Callable[[Connection], None]:
        def both(connection: Connection) -> None:
            locking.share(connection)
            step(connection)

        return both

    with pytest.raises(NotAlone):
        database.run(shared_then(locking.lock))
    many = [str(number) for number in range(1_000)]
    with pytest.raises(NotAlone):
        database.run(shared_then(partial(locking.claim, kind=Claim.TRACE, keys=many)))
    # What a transaction held is not taken for the next one's on the same connection.
    database.run(shared_then(partial(locking.claim, kind=Claim.GROUPS)))
    database.run(locking.lock)
    # Two that find so at the same time do not wait for each other.
    writers = [StoreWriter(databases()) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(writer.apply, runs_of(f"new{i % 2}", 5)) for i, writer in enumerate(writers)]:
            each.result(SECONDS)
    check(database)


def ended(database: Database, name: str) -> int:
    key = (workspace_id("default"), workflow_id("default", name))
    totals = database.look(lambda c: read.read(c, key))
    return sum(status.count for status in totals.executions.values())


def check(database: Database) -> None:
    """Totals and series are what the executions add up to, and what is stored is whole."""
    assert differing(database) == 0
    for key in database.look(workflows_with_executions):
        assert database.look(partial(recount_one, key=key, write=False)) == 0
    steps, executions = workflow_step_executions.c, workflow_executions.c
    counted = select(steps.execution_id, func.count()).group_by(steps.execution_id)
    per_run: dict[str, int] = database.look(lambda c: {row[0]: row[1] for row in c.execute(counted)})
    counts = database.look(
        lambda c: c.execute(
            select(executions.execution_id, executions.step_count).where(executions.finished_ns.is_not(None))
        ).all()
    )
    assert all(per_run[execution_id] == count for execution_id, count in counts)
