"""Executions are numbered per workflow: without gaps, whoever stores them, and for good."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace
from sqlalchemy import select, text
from tests.conftest import make_execution, running

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionQueued, ExecutionStarted, ExecutionStatus
from tachograph.identity import ExecutionRef
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import archiving, numbers, removal, runs
from tachograph_exporter.store.database import Database, prepare
from tachograph_exporter.store.migrations import downgrade
from tachograph_exporter.store.schema import archived_executions, workflow_executions
from tachograph_exporter.store.writer import StoreWriter

DAY_NS = 24 * 3600 * NS


def a_run(workflow: str = "etl", at: int = 0) -> list[Event]:
    execution, at = make_execution(workflow), at or time.time_ns()
    return [
        ExecutionQueued(execution=execution, time_ns=at),
        ExecutionStarted(execution=execution, time_ns=at + 1),
        ended(execution, at + 2),
    ]


def ended(execution: ExecutionRef, at: int) -> ExecutionFinished:
    return ExecutionFinished(
        execution=execution, time_ns=at, status=ExecutionStatus.COMPLETED, started_ns=at - 1, step_count=0
    )


def stored_numbers(database: Database, workflow: str = "etl") -> dict[str, int]:
    """The number of every execution of a workflow, by id, archived ones included."""
    return {
        row.execution_id: row.number
        for table in (workflow_executions, archived_executions)
        for row in database.look(
            lambda c, t=table: c.execute(select(t.c.execution_id, t.c.number).where(t.c.workflow == workflow)).all()  # type: ignore[misc]
        )
    }


def ids(run_events: Sequence[Sequence[Event]]) -> list[str]:
    return [events[0].execution.execution_id for events in run_events]


def test_a_number_is_given_once_and_stays_whatever_arrives_again(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    stored = [a_run(), a_run(), a_run()]
    other = a_run("other")
    writer.apply([*stored[0], *stored[1][:1], *other[:1]])
    writer.apply(stored[2][:2])
    for events in (*stored, other):
        for event in events:
            writer.apply([event])
    assert stored_numbers(database) == dict(zip(ids(stored), (1, 2, 3), strict=True))
    assert stored_numbers(database, "other") == {other[0].execution.execution_id: 1}
    # Spans of a trace arrived again: everything stored of its execution is replaced.
    known = set(ids(stored))
    new = a_run()
    writer.run(lambda c: writer.replace(c, [*stored[1], *new], known=known))
    assert stored_numbers(database) == dict(zip([*ids(stored), *ids([new])], (1, 2, 3, 4), strict=True))
    # The root of a trace arrived late, and its execution belongs to another workflow: it is the next one there.
    first, elsewhere = stored[0][0].execution, other[0].execution
    moved = ended(replace(first, workflow="other", workflow_id=elsewhere.workflow_id), 9)
    writer.run(lambda c: writer.replace(c, [moved], known=known))
    assert stored_numbers(database, "other") == {elsewhere.execution_id: 1, first.execution_id: 2}
    database.close()


def test_many_writers_give_every_number_once(any_database_url: str) -> None:
    Database(any_database_url).close()

    def record(seed: int) -> None:
        rng = random.Random(seed)
        database = Database(any_database_url)
        writer = StoreWriter(database)
        pending = [a_run(rng.choice(("etl", "etl", "report"))) for _ in range(25)]
        while pending:
            batch = [pending.pop() for _ in range(min(len(pending), rng.randint(1, 4)))]
            writer.apply([events[0] for events in batch])
            writer.apply([event for events in batch for event in events[1:]])
        database.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record, range(4)))
    database = Database(any_database_url)
    by_workflow = [stored_numbers(database, name) for name in ("etl", "report")]
    assert sum(map(len, by_workflow)) == 100
    for given in by_workflow:
        assert sorted(given.values()) == list(range(1, len(given) + 1))
    database.close()


def test_archiving_and_deleting_change_no_number(any_database_url: str, tmp_path: Path) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    now = time.time_ns()
    stored = [a_run(at=now - (9 - i) * DAY_NS) for i in range(4)]
    for events in stored:
        writer.apply(events)
    expected = dict(zip(ids(stored), (1, 2, 3, 4), strict=True))
    assert archiving.archive(database, now - 6 * DAY_NS, tmp_path / "archive").executions == 3
    assert stored_numbers(database) == expected
    workspace = database.look(lambda c: c.execute(select(archived_executions.c.workspace_id)).scalars().first())
    for execution_id, number in expected.items():
        run = database.look(lambda c, key=execution_id: runs.find_run(c, str(workspace), key))  # type: ignore[misc]
        assert run.execution.number == number
    # Deleted executions leave a gap: their numbers are not given again.
    assert archiving.archive(database, now, None).executions == 1
    writer.apply(events := a_run())
    assert stored_numbers(database)[ids([events])[0]] == 5
    # A workflow that was deleted begins again.
    workflow_id = events[0].execution.workflow_id
    database.run(lambda c: removal.remove_workflow(c, str(workspace), workflow_id))
    writer.apply(events := a_run())
    assert stored_numbers(database) == {ids([events])[0]: 1}
    database.close()


def test_executions_of_an_earlier_version_are_numbered_as_they_were_created(
    any_database_url: str, tmp_path: Path
) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    now = time.time_ns()
    stored = [a_run(at=now - (9 - i) * DAY_NS) for i in range(5)]
    shuffled = [*stored]
    random.Random(1).shuffle(shuffled)
    for events in (*shuffled, a_run("other")):
        writer.apply(events)
    archiving.archive(database, now - 7 * DAY_NS, tmp_path / "archive")
    database.run(lambda c: downgrade(c, "0011"))
    database.run(prepare)
    assert list(stored_numbers(database, "other").values()) == [1]
    assert stored_numbers(database) == dict(zip(ids(stored), (1, 2, 3, 4, 5), strict=True))
    StoreWriter(database).apply(events := a_run())
    assert stored_numbers(database)[ids([events])[0]] == 6
    # A process of the earlier version still writes: its executions get a number with their next event, or from the
    # service.
    StoreWriter(database).apply(others := [*a_run("other"), *a_run("other")])
    database.run(lambda c: c.execute(text("UPDATE workflow_executions SET number = NULL WHERE number IN (2, 3, 6)")))
    assert database.look(lambda c: numbers.of_stored(c, ids([events, others]))) == {}
    StoreWriter(database).apply(events[-1:])
    assert stored_numbers(database)[ids([events])[0]] == 7
    assert database.run(numbers.fill) == 3
    assert database.run(numbers.fill) == 0
    assert sorted(stored_numbers(database).values()) == [1, 2, 4, 5, 7, 8]
    assert sorted(stored_numbers(database, "other").values()) == [1, 4, 5]
    StoreWriter(database).apply(a_run())
    assert max(stored_numbers(database).values()) == 9
    database.close()


async def test_a_service_numbers_what_an_earlier_version_stored(database_url: str, handlers: HandlerRegistry) -> None:
    database = Database(database_url)
    StoreWriter(database).apply(events := a_run())
    database.run(lambda c: c.execute(text("UPDATE workflow_executions SET number = NULL")))
    database.close()
    path = f"/api/workflows/executions/{events[0].execution.execution_id}"
    async with running(Config(database=database_url, grace_seconds=0.1), handlers) as api, asyncio.timeout(60):
        while True:
            if (await api.get(path))["execution_number"] == 2:
                break
            await asyncio.sleep(0.01)
