"""Lines of steps in the store and the service: the last ones of each attempt, found again, and gone with their run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select
from tests.conftest import Api, make_execution, make_step, serve

from tachograph import event_batch
from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepFinished,
    StepLine,
    StepLines,
    StepLogged,
    StepStarted,
    StepStatus,
)
from tachograph.identity import StepRef, new_id, workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import archiving, removal, step_lines
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.schema import workflow_step_lines
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.logs import LineFilter, read_lines, read_newest_lines
from tachograph_exporter.views.logs import dropped_count as dropped_of_run

DEFAULT = workspace_id("default")


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    database = Database(any_database_url)
    yield database
    database.close()


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def lines(step: StepRef, numbers: Sequence[int], at: int, writer: str = "w1", attempt: int = 1, **of: Any) -> StepLines:
    """Lines with these numbers, a microsecond apart, from a moment on."""
    told = [
        StepLine(**{"number": n, "time_ns": at + n * 1_000, "severity": 9, "message": f"{writer} {n}", "logger": "app",
                   **of})
        for n in numbers
    ]  # fmt: skip
    return StepLines(step=step, time_ns=at, lines=tuple(told), writer=writer, attempt=attempt)


def run_with(step: StepRef, at: int, *between: Event, attempt: int = 1) -> list[Event]:
    execution = step.execution
    end = at + 10 * NS
    return [
        ExecutionStarted(execution=execution, time_ns=at),
        StepStarted(step=step, time_ns=at),
        *between,
        StepFinished(step=step, time_ns=end, status=StepStatus.COMPLETED, attempt=attempt, started_ns=at,
                     attempt_started_ns=at, run_ns=10 * NS),
        ExecutionFinished(execution=execution, time_ns=end, status=ExecutionStatus.COMPLETED, started_ns=at,
                          step_count=1, completed_step_count=1),
    ]  # fmt: skip


def stored(database: Database) -> int:
    return database.look(lambda c: c.execute(select(func.count()).select_from(workflow_step_lines)).scalar_one())


def test_the_last_lines_of_an_attempt_are_kept_and_the_others_counted(database: Database) -> None:
    writer, at = StoreWriter(database), time.time_ns()
    step = make_step(make_execution(), "load")
    writer.apply(run_with(step, at)[:2])
    first = lines(step, range(1, 151), at)
    for event in (first, lines(step, range(301, 501), at), first, lines(step, [1], at, attempt=2)):
        writer.apply([event])
    # Another process of the attempt, whose lines are older.
    writer.apply([lines(step, [1, 2, 3], at - NS, "w2")])
    writer.apply(run_with(step, at, attempt=2)[2:])

    def read(choice: LineFilter, limit: int = 1_000) -> tuple[list[Any], bool, int]:
        def look(connection: Any) -> Any:
            run = find_run(connection, DEFAULT, step.execution.execution_id)
            newest, has_older = read_newest_lines(connection, DEFAULT, run, choice, limit)
            return newest, has_older, dropped_of_run(connection, DEFAULT, run)

        result: tuple[list[Any], bool, int] = database.look(look)
        return result

    entries, has_older, dropped = read(LineFilter())
    assert [entry.message for entry in entries] == [
        "w2 3", "w1 1", *[f"w1 {n}" for n in range(301, 501)],
    ]  # fmt: skip
    # 150 were written before 301, which never arrived but for their numbers; and two of the other process.
    assert (dropped, has_older) == (300 + 2, False)
    assert [entry.message for entry in read(LineFilter(attempt=2))[0]] == ["w1 1"]
    assert [entry.message for entry in read(LineFilter(text="W1 49"), 3)[0]] == ["w1 497", "w1 498", "w1 499"]
    assert read(LineFilter(text="W1 49"), 3)[1]
    assert read(LineFilter(severity=13))[0] == []
    assert read(LineFilter(names=frozenset({"other"})))[0] == []
    assert len(read(LineFilter(names=frozenset({"load"})))[0]) == 202


def test_pages_go_through_lines_of_all_sources_once_and_in_order(database: Database) -> None:
    writer, at = StoreWriter(database), time.time_ns()
    execution = make_execution()
    steps = [make_step(execution, name) for name in ("a", "b")]
    events: list[Event] = [ExecutionStarted(execution=execution, time_ns=at)]
    for step in steps:
        events += [
            StepStarted(step=step, time_ns=at),
            *[StepLogged(step=step, time_ns=at + n, sequence=n, message=f"own {n}") for n in range(1, 4)],
            # All of one moment.
            *[StepLines(step=step, time_ns=at, writer=w, lines=tuple(
                StepLine(number=n, time_ns=at + 2, severity=9, message=f"{w} {n}") for n in range(1, 6)
            )) for w in ("v", "w")],
        ]  # fmt: skip
    writer.apply(events)

    def read(connection: Any) -> list[Any]:
        run = find_run(connection, DEFAULT, execution.execution_id)
        everything = read_lines(connection, DEFAULT, run, LineFilter(), 1_000)
        for size in (1, 3, 7):
            after, paged = None, []
            while page := read_lines(connection, DEFAULT, run, LineFilter(), size, after):
                paged += page
                after = page[-1].position
            assert paged == everything
        return everything

    everything = database.look(read)
    assert len(everything) == 2 * (3 + 10)
    assert [line.position for line in everything] == sorted(line.position for line in everything)


def test_lines_are_archived_with_their_run_and_deleted_with_it(database: Database, tmp_path: Path) -> None:
    writer, at = StoreWriter(database), time.time_ns() - 40 * 86_400 * NS
    kept, failure = [], Failure("ValueError", "no", "in load")
    for name in ("etl", "other"):
        step = make_step(make_execution(name, execution_id=new_id(at)), "load", step_type="command")
        failing = lines(step, [1, 2, 5], at, failure=failure, severity=17)
        output = lines(step, [1, 2], at, "output")
        writer.apply(run_with(step, at, failing, output))
        kept.append(step)
    assert stored(database) == 10

    def read(step: StepRef) -> tuple[list[Any], int]:
        def look(connection: Any) -> Any:
            run = find_run(connection, DEFAULT, step.execution.execution_id)
            newest, _ = read_newest_lines(connection, DEFAULT, run, LineFilter(), 100)
            return newest, dropped_of_run(connection, DEFAULT, run)

        result: tuple[list[Any], int] = database.look(look)
        return result

    before, dropped = read(kept[0])
    assert dropped == 2
    assert [entry.error_stack for entry in before if entry.logger] == ["in load"] * 3
    assert len(before) == 5
    archiving.archive(database, time.time_ns() - 30 * 86_400 * NS, tmp_path / "archive")
    assert stored(database) == 0
    assert read(kept[0])[0] == before
    assert read(kept[0])[1] == 2
    # Late lines of an archived run are left out.
    writer._watermark_at = 0.0
    writer.apply([lines(kept[0], [9], at)])
    assert stored(database) == 0
    writer.apply(run_with(step := make_step(make_execution("third"), "load"), at, lines(step, [1], at)))
    archiving.archive(database, time.time_ns() - 30 * 86_400 * NS, None)
    assert stored(database) == 0
    writer.apply(run_with(step := make_step(make_execution("fourth"), "load"), time.time_ns(), lines(step, [1], at)))
    database.run(lambda c: removal.remove_workflow(c, DEFAULT, step.execution.workflow_id))
    assert stored(database) == 0


async def post(api: Api, events: Sequence[Any], **headers: str) -> Any:
    body = {"version": 1, "sender": "s1", "sequence": 1, "events": events}
    async with api.session.post(f"{api.address}{event_batch.PATH}", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def as_json(event: Event) -> Any:
    return msgspec.json.decode(event_batch.encode(event))


async def test_the_door_masks_bounds_and_refuses_and_the_route_filters(api: Api) -> None:
    at = time.time_ns()
    step = make_step(make_execution(), "load")
    good = lines(step, [1, 2], at, message="password=hunter2 😀 " + "x" * 9_000, severity=99)
    many = lines(step, range(1, 1_001), at, "w2", severity=17, message="Disk <b>full</b>")
    bad = [
        lines(step, [1], at, "no writer!"), lines(step, [0], at), lines(step, [1], at, time_ns=-5),
        lines(step, [1], at, attempt=-1), lines(step, [1 << 60], at),
    ]  # fmt: skip
    events = [as_json(event) for event in [*run_with(step, at, good, many), *bad]]
    answer = await post(api, events)
    assert {refused["index"] for refused in answer["refused"]} == set(range(6, 11)), answer
    path = f"/api/workflows/executions/{step.execution.execution_id}/logs"
    page = await api.get(path, params={"limit": "1000"})
    # The newest 200 in time, and the last one of the other process.
    assert len(page["items"]) == 201
    first = page["items"][0]
    assert (first["level"], first["severity"], first["logger"], first["attempt"]) == ("fatal", 24, "app", 1)
    assert "hunter2" not in str(page)
    assert len(first["message"]) <= 4_096
    assert page["dropped_count"] == 1 + 800
    newest = await api.get(path, params={"last": "3", "text": "disk", "level": "error", "step": "load"})
    assert [item["message"] for item in newest["items"]] == ["Disk <b>full</b>"] * 3
    assert (newest["has_older"], newest["next"]) == (True, None)
    assert (await api.get(path, params={"attempt": "2"}))["items"] == []
    status, problem = await api.call("GET", path, params={"last": "1001", "attempt": "0"})
    assert status == 422, problem
    # Another workspace sees nothing, and writes nothing.
    status, _ = await api.call("POST", "/api/workspaces", {"slug": "team", "name": "Team"})
    assert status == 201
    other = {"X-Workspace-Slug": "team"}
    assert (await api.call("GET", path, headers=other))[0] == 404
    refused = (await post(api, [as_json(lines(step, [7], at, "w9"))], **other))["refused"]
    assert len(refused) == 1


PROGRAM = """
    import logging, os, signal, sys, time
    import tachograph

    tachograph.configure(logs="INFO", {where})
    log = logging.getLogger("app")

    @tachograph.workflow
    def nightly():
        with tachograph.step("load"):
            log.info("before the kill: token=%s", "hunter2")
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)

    nightly()
"""


@pytest.mark.parametrize("way", ["database", "service"])
async def test_lines_before_a_kill_are_there_and_seen_while_the_step_runs(
    database_url: str, handlers: HandlerRegistry, tmp_path: Path, way: str
) -> None:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        where = f"database={database_url!r}" if way == "database" else f"url={api.address!r}"
        code = textwrap.dedent(PROGRAM.format(where=where))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(tmp_path / "go"), stderr=subprocess.DEVNULL
        )
        items: list[Any] = []
        async with asyncio.timeout(60):
            while not items:
                await asyncio.sleep(0.05)
                for run in (await api.get("/api/workflows/executions"))["items"]:
                    path = f"/api/workflows/executions/{run['execution_id']}/logs"
                    items = (await api.get(path))["items"]
                    assert run["status"] == "running"
            (tmp_path / "go").touch()
            await process.wait()
        (line,) = (await api.get(path, params={"level": "info", "text": "KILL"}))["items"]
        assert (line["message"], line["step_name"]) == ("before the kill: token=[masked]", "load")


def test_a_run_of_many_steps_with_lines_is_pruned_by_attempt(database: Database) -> None:
    writer, at = StoreWriter(database), time.time_ns()
    execution = make_execution()
    steps = [make_step(execution, f"s{n}") for n in range(600)]
    writer.apply([ExecutionStarted(execution=execution, time_ns=at)])
    writer.apply([lines(step, [1, 2], at) for step in steps])
    writer.apply([lines(steps[0], range(3, 300), at)])
    assert stored(database) == 2 * 599 + step_lines.MAX_LINES
