"""Runs that somebody else executes: any process reports any part, in any order, and it is one run."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select
from tests.conftest import Api

import tachograph
from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, Heartbeat, StepFinished
from tachograph.recording import setup
from tachograph.recording.recorder import Recorder
from tachograph.report import Run, runs
from tachograph_exporter.store import recovery, reported
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import workflow_executions, workflow_step_attempts, workflow_step_executions
from tachograph_exporter.store.writer import StoreWriter

START = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def told(recorder: Recorder, events: list[Event]) -> Iterator[Callable[[], list[Event]]]:
    """What was reported since it was asked last."""
    setup.adopt(recorder)
    runs._runs.clear()

    def new() -> list[Event]:
        assert recorder.flush()
        taken = events[:]
        events.clear()
        return taken

    yield new
    setup.release(recorder)
    runs._runs.clear()


def in_another_process() -> Run:
    """The run as a process sees it that has heard nothing of it."""
    runs._runs.clear()
    return tachograph.report.run("nightly", run_id="2026-11-25T03:00", engine="ours")


def history(process: Callable[[], Run]) -> Iterator[None]:
    """A run with a retry, a mapped step, a failure and a step that was never asked for; pauses between its parts."""
    process().begin(at=at(0))
    yield
    extract = process().step("extract")
    extract.queued(at=at(1))
    extract.started(at=at(3))
    yield
    process().step("extract").started(attempt=1, at=at(3)).retrying(ValueError("no route"), delay=2, at=at(5))
    yield
    process().step("extract").started(attempt=2, queued_at=at(7), at=at(8)).finished({"rows": 3}, at=at(10))
    yield
    for number in range(3):
        work = process().step("work", index=number, depends_on=["extract"])
        work.queued(at=at(10.5)).started(at=at(11 + number)).finished(at=at(14 + number))
        yield
    # Each knows one thing that it waits for.
    process().step("merge", depends_on=["extract"]).planned(at=at(0))
    yield
    merge = process().step("merge", depends_on=["work"])
    merge.started(at=at(17)).failed(RuntimeError("kaboom"), at=at(19))
    yield
    process().step("load", depends_on=["merge"]).planned(at=at(0))
    yield
    # Asked for later times: who runs them may or may not know that, and the third is taken back.
    process().step("poll").queued(at=at(2), due=at(9))
    yield
    process().step("poll").started(attempt=1, at=at(9.5)).finished(at=at(10))
    yield
    send = process().step("send", depends_on=["extract"])
    send.started(attempt=1, queued_at=at(3), due=at(12), at=at(12.5)).finished(at=at(13))
    yield
    process().step("remind").queued(at=at(4), due=at(18))
    yield
    process().step("remind").cancelled(at=at(6))
    yield
    process().failed(RuntimeError("kaboom"), at=at(20))
    yield


_UNSTEADY = ("rank", "last_seen_ns", "error_stack", "number")


def rows_of(database: Database) -> dict[str, Any]:
    """All that is stored, without what depends on the moment it was stored."""

    def read(connection: Any) -> dict[str, Any]:
        return {
            table.name: sorted(
                [
                    tuple((c, v) for c, v in row._mapping.items() if c not in _UNSTEADY)
                    for row in connection.execute(select(table))
                ],
                key=str,
            )
            for table in (workflow_executions, workflow_step_executions, workflow_step_attempts)
        }

    return database.run(read)


def differences(rows: dict[str, Any], others: dict[str, Any]) -> list[Any]:
    return [
        pair
        for table, there in rows.items()
        for row, other in itertools.zip_longest(there, others[table], fillvalue=())
        for pair in itertools.zip_longest(row, other)
        if pair[0] != pair[1]
    ]


def delete_all(database: Database) -> None:
    def work(connection: Any) -> None:
        for table in (workflow_executions, workflow_step_executions, workflow_step_attempts):
            connection.execute(delete(table))

    database.run(work)


def test_any_order_and_any_processes_make_one_run(told: Callable[[], list[Event]], any_database_url: str) -> None:
    parts = []
    for _ in history(in_another_process):
        parts += [told()]
    writer = StoreWriter(Database(any_database_url))
    shuffled = random.Random(7)
    expected: dict[str, Any] = {}
    for number in range(6):
        order = parts[:]
        if number:
            shuffled.shuffle(order)
        for part in order if number % 2 else [list(itertools.chain(*order))]:
            writer.apply(part)
            writer.apply(part)
        rows = rows_of(writer.database)
        expected = expected or rows
        assert differences(rows, expected) == [], number
        delete_all(writer.database)
    (execution,) = expected["workflow_executions"]
    values = dict(execution)
    assert (values["status"], values["step_count"], values["completed_step_count"]) == ("failed", 9, 6)
    assert (values["failed_step_count"], values["skipped_step_count"]) == (1, 1)
    steps = {(dict(s)["name"], dict(s)["map_index"]): dict(s) for s in expected["workflow_step_executions"]}
    extract = steps["extract", None]
    of_extract = [
        extract[name] / 1e9 for name in ("dependency_ns", "unaccounted_ns", "queue_ns", "backoff_ns", "run_ns")
    ]
    assert of_extract == [0, 1, 2 + 1, 2, 2 + 2]
    work = steps["work", "2"]
    assert [work[n] / 1e9 for n in ("dependency_ns", "unaccounted_ns", "queue_ns", "run_ns")] == [10, 0.5, 2.5, 3]
    merge = steps["merge", None]
    assert [merge[n] / 1e9 for n in ("dependency_ns", "unaccounted_ns", "queue_ns", "run_ns")] == [16, 1, 0, 2]
    waits = ("dependency_ns", "unaccounted_ns", "scheduled_ns", "queue_ns", "run_ns")
    poll, send, remind = (steps[name, None] for name in ("poll", "send", "remind"))
    assert [poll[n] / 1e9 for n in waits] == [0, 2, 7, 0.5, 0.5]
    assert [send[n] / 1e9 for n in waits] == [10, 0, 2, 0.5, 0.5]
    assert (remind["status"], [remind[n] / 1e9 for n in waits]) == ("cancelled", [0, 4, 2, 0, 0])
    # It names the mapped step; whoever reads it finds the instances.
    run = in_another_process()
    assert sorted(json.loads(merge["depends_on"])) == sorted([run.step_id("extract"), run.step_id("work")])
    assert (steps["load", None]["status"], steps["load", None]["skip_reason"]) == ("skipped", "upstream_failed")
    writer.database.close()


def test_whoever_tells_of_the_end_of_an_attempt_need_not_know_when_it_began(
    told: Callable[[], list[Event]], database_url: str
) -> None:
    parts = []
    for number, tell in enumerate(("started", "retrying", "started", "finished")):
        step = in_another_process().step("export")
        getattr(step, tell)(attempt=1 + number // 2, at=at(4 + number + number // 3))
        parts += [told()]
    in_another_process().begin(at=at(0)).finished(at=at(9))
    end = told()
    writer = StoreWriter(Database(database_url))
    for order in itertools.permutations(parts):
        for part in (*order, end):
            writer.apply(part)
        rows = {table: [dict(row) for row in told_rows] for table, told_rows in rows_of(writer.database).items()}
        (export,) = rows["workflow_step_executions"]
        waits = ("unaccounted_ns", "queue_ns", "backoff_ns", "run_ns")
        assert [export[name] / NS for name in waits] == [4, 0, 1, 3]
        moments = [(row["attempt"], row["started_ns"], row["finished_ns"]) for row in rows["workflow_step_attempts"]]
        began = round(START.timestamp()) * NS
        assert sorted((n, (a - began) / NS, (b - began) / NS) for n, a, b in moments) == [(1, 4, 5), (2, 6, 8)]
        delete_all(writer.database)
    writer.database.close()


def test_a_process_that_reports_all_of_it_says_what_the_store_says(
    told: Callable[[], list[Event]], database_url: str
) -> None:
    runs_here = tachograph.report.run("nightly", run_id="2026-11-25T03:00", engine="ours")
    for _ in history(lambda: runs_here):
        pass
    reported = told()
    (end,) = [event for event in reported if isinstance(event, ExecutionFinished)]
    finished = {e.step.step_id: e for e in reported if isinstance(e, StepFinished)}
    writer = StoreWriter(Database(database_url))
    writer.apply(reported)
    rows = rows_of(writer.database)
    for row in map(dict, rows["workflow_step_executions"]):
        event = finished.get(row["step_id"])
        if event is not None:
            for name in (
                "dependency_ns", "unaccounted_ns", "scheduled_ns", "queue_ns", "backoff_ns", "run_ns", "time_ns",
            ):  # fmt: skip
                assert row.get(name, row["finished_ns"]) == getattr(event, name), (row["name"], name)
    assert dict(rows["workflow_executions"][0])["work_ns"] == end.work_ns
    assert [part.step for part in end.critical_path] == ["extract", "work", "merge"]
    writer.database.close()


def test_nothing_raises_and_what_is_wrong_is_named_once(
    told: Callable[[], list[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tachograph.report")

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__
        __hash__ = None  # type: ignore[assignment]

    for _ in range(3):
        run: Any = tachograph.report.run("etl", run_id="1")
        run.begin(at="yesterday").begin(at=-5).begin(at=float("nan"))
        step = run.step("load", depends_on=[Hostile()]).started(attempt=0).started(attempt="two")
        step.retrying(error=Hostile(), delay="soon").finished(Hostile()).failed(Hostile()).skipped(reason=Hostile())
        run.step("").started().finished()
        run.step(Hostile(), index=Hostile(), parent=Hostile()).queued().started().failed()
        run.finished(at=Hostile())
        name: Any = Hostile()
        nowhere: Any = tachograph.report.run(name, run_id=Hostile())
        with nowhere as inner:
            inner.step("x").started().finished()
        tachograph.report.expect("etl", "not a schedule")
        tachograph.report.expect("etl", "@daily", timezone="Nowhere/Land")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages))
    assert any("begin()" in message and "expected a datetime" in message for message in messages)
    assert any("expect()" in message for message in messages)
    secret = tachograph.report.run("etl", run_id="2")
    secret.step("x").started().failed("ValueError: password=hunter2")
    assert "hunter2" not in repr(told())


def test_a_block_ends_its_run_as_it_is_left(told: Callable[[], list[Event]]) -> None:
    report = tachograph.report
    with (
        report.run("etl", run_id="a") as run,
        run.nested(run.step("load").started(), "child", run_id="b") as child,
    ):
        child.step("inner").started().finished()
    with pytest.raises(ZeroDivisionError), report.run("etl", run_id="c") as run:
        run.step("load").started().finished(1 / 0)
    again = report.run("etl", run_id="c")
    again.finished()
    again.step("load").finished()
    ends = [e for e in told() if isinstance(e, ExecutionFinished | StepFinished)]
    told_ends = [(getattr(e, "step", e.execution), e.status.value) for e in ends]
    names = [(getattr(ref, "name", None) or ref.workflow, status) for ref, status in told_ends]
    assert names == [
        ("inner", "completed"), ("child", "completed"), ("load", "lost"), ("etl", "completed"),
        ("load", "lost"), ("etl", "failed"), ("load", "completed"),
    ]  # fmt: skip
    assert isinstance(ends[1], ExecutionFinished)
    ref = ends[1].execution
    assert ref.parent_execution_id == report.run("etl", run_id="a").execution_id
    assert ref.trace_id == report.run("etl", run_id="a").ref.trace_id


DIES = """
import os, signal, sys, tachograph
recorder = tachograph.configure(url=sys.argv[1], spans=False, registry=None)
run = tachograph.report.run("nightly", run_id="7").begin()
run.step("extract").started().finished({"rows": 3})
run.step("load", depends_on=["extract"]).queued().started()
assert recorder.flush(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_run_of_two_processes_is_lost_once_nobody_has_it_open(api: Api) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, api.address)
    assert await process.wait() == -signal.SIGKILL
    recorder = setup.build_recorder(store=await asyncio.to_thread(setup.open_store, api.address))
    setup.adopt(recorder)
    try:
        runs._runs.clear()
        here = tachograph.report.run("nightly", run_id="7")
        check = here.step("check", depends_on=["extract"]).started()
        assert await asyncio.to_thread(recorder.flush, 60)

        async def lost_after(seconds: float) -> list[recovery.LostRun]:
            now = time.time_ns() + round(seconds * NS)
            return await api.service.database.read(lambda c: recovery.find_lost(c, now))

        assert await lost_after(25) == []
        check.finished()
        assert await asyncio.to_thread(recorder.flush, 60)
        (lost,) = await lost_after(31)
        for event in recovery.lost_events(*lost):
            api.service.recorder(event)
        await asyncio.to_thread(api.service.recorder.flush, 60)
        timeline = await api.get(f"/api/workflows/executions/{here.execution_id}/timeline")
        steps = {step["step_name"]: step["status"] for step in timeline["step_timeline"]}
        assert (timeline["status"], steps) == ("lost", {"extract": "completed", "check": "completed", "load": "lost"})
        # A real end replaces it.
        here.step("load").started().finished()
        here.finished()
        assert await asyncio.to_thread(recorder.flush, 60)
        timeline = await api.get(f"/api/workflows/executions/{here.execution_id}/timeline")
        assert {step["status"] for step in timeline["step_timeline"]} == {"completed"}
        assert (timeline["status"], timeline["completed_step_count"]) == ("completed", 3)
        page = await api.get("/api/workflows/executions")
        assert page["total"] == 1
        check_views = await api.get(f"/api/workflows/executions/{here.execution_id}/reconcile")
        assert check_views["differences"] == []
    finally:
        setup.adopt(api.service.recorder)
        await asyncio.to_thread(recorder.close)


async def test_a_run_of_which_no_process_knows_the_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when all of its steps have ended; what comes late changes it."""
    monkeypatch.setattr(reported, "QUIET_SECONDS", 0.0)
    runs._runs.clear()

    def process() -> Run:
        runs._runs.clear()
        return tachograph.report.run("shop", run_id="1", engine="celery", queue_lease=3600)

    async def ended() -> Any:
        for _ in range(3):
            await asyncio.to_thread(api.service.recorder.flush, 60)
            await api.service.upkeep.end_quiet()
        await asyncio.to_thread(api.service.recorder.flush, 60)
        timeline = await api.get(f"/api/workflows/executions/{process().execution_id}/timeline")
        return timeline["status"], {step["step_name"]: step["status"] for step in timeline["step_timeline"]}

    process().queued()
    process().step("fetch").queued()
    assert await ended() == ("pending", {"fetch": "pending"})
    fetch = process().step("fetch").started(attempt=1)
    process().step("store", depends_on=["fetch"]).planned()
    assert await ended() == ("running", {"fetch": "running", "store": "pending"})
    fetch.retrying(ValueError("no price yet"), delay=5)
    assert (await ended())[0] == "running"
    process().step("fetch").started(attempt=2).finished()
    assert await ended() == ("completed", {"fetch": "completed", "store": "skipped"})
    # A message that was told of late.
    process().step("store").queued().started().failed(RuntimeError("kaboom"))
    assert await ended() == ("failed", {"fetch": "completed", "store": "failed"})
    differences_found = await api.get(f"/api/workflows/executions/{process().execution_id}/reconcile")
    assert differences_found["differences"] == []


def test_a_process_that_only_passes_on_says_what_the_engine_says(
    told: Callable[[], list[Event]], recorder: Recorder
) -> None:
    run = tachograph.report.run("nightly", run_id="1", engine="ours", lease=3600, heartbeats=False).begin(at=at(0))
    work = [run.step("work", key=f"work#{number}", repetition=number).started(at=at(1)) for number in range(2)]
    assert recorder._open == {}
    assert [type(event).__name__ for event in told()] == ["ExecutionStarted", "StepStarted", "StepStarted"]
    run.alive(at=at(30))
    (beat,) = told()
    assert (type(beat), beat.time_ns) == (Heartbeat, round(at(30).timestamp() * NS))
    run.lost("Lost: no sign of life", at=at(60)).lost(at=at(70)).alive()
    ends = told()
    assert [getattr(event, "status", None) for event in ends] == ["lost", "lost", "lost"]
    assert [event.step.index for event in ends if isinstance(event, StepFinished)] == [0, 1]
    # It was not.
    work[0].finished(at=at(80))
    run.finished(at=at(81))
    run.failed(at=at(82))
    assert [getattr(event, "status", None) for event in told()] == ["completed", "completed"]
    run.forget()
    run.forget()
    assert runs._runs == {}
    assert tachograph.report.run("nightly", run_id="1").execution_id == run.execution_id
