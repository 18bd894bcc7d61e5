"""``…/stacks``: what the steps of a run do now, in whichever process they run, and what sampled ones did."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jsonschema
import msgspec
import pytest
from tests.conftest import ROOT, Api, make_execution, make_step

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Heartbeat,
    StepFinished,
    StepStacks,
    StepStarted,
    StepStatus,
)
from tachograph.folded_stacks import FoldedStack, LongAttempt, StacksKind
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.store import stacks
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

WORKER = """
import threading, sys
import tachograph
@tachograph.step
def load():
    sys.stdin.read()
@tachograph.workflow
def nightly():
    load()
nightly()
"""
WITH_A_USUAL_STEP = WORKER.replace("    load()", "    with tachograph.step('usual'):\n        load()")
SCHEMA = ROOT / "tests/node/node_modules/speedscope/dist/release/file-format-schema.json"


RELEASE = threading.Event()


@pytest.fixture
def handlers() -> HandlerRegistry:
    RELEASE.clear()
    handlers = HandlerRegistry()

    @handlers.register("wait_here")
    def wait_here(_context: Any) -> None:
        RELEASE.wait(60)

    return handlers


def published_schema() -> Any:
    if not SCHEMA.exists():
        pytest.skip("needs speedscope (npm install in tests/node)")
    return msgspec.json.decode(SCHEMA.read_bytes())


async def running(api: Api, workflow: str) -> str:
    async with asyncio.timeout(60):
        while True:
            status, page = await api.call("GET", f"/api/workflows/{workflow}/executions?status=running")
            for item in page["items"] if status == 200 else ():
                timeline = await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline")
                if any(step["status"] == "running" for step in timeline["step_timeline"]):
                    return str(item["execution_id"])
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def worker(source: str = WORKER, **environment: str) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        env={**os.environ, "OTEL_SDK_DISABLED": "true", **environment},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait(60)


async def test_a_worker_by_http_a_worker_on_the_database_and_the_service_itself_tell_their_stacks(
    api: Api, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = {"name": "here", "steps": [{"name": "hold", "config": {"handler": "wait_here"}}]}
    status, body = await api.call("POST", "/api/workflows", definition)
    assert status == 201, body
    status, body = await api.call("POST", "/api/workflows/here/execute", {"input_variables": {}})
    assert status == 202
    try:
        await running(api, "here")
        own = await api.get(f"/api/workflows/executions/{body['execution_id']}/stacks")
        assert own["answer"] == "answered"
        (item,) = own["items"]
        assert item["now"]["is_new"]
        frames = item["now"]["stacks"][0]["frames"]
        assert any("wait_here" in frame for frame in frames)
        assert frames[-1].endswith("acquire (native)")
    finally:
        RELEASE.set()
    await api.finished(body["execution_id"])
    for environment in ({"TACHOGRAPH_URL": api.address}, {"TACHOGRAPH_DATABASE_URL": database_url}):
        with worker(**environment) as process:
            execution_id = await running(api, "nightly")
            path = f"/api/workflows/executions/{execution_id}/stacks"
            told = await api.get(path)
            assert told["answer"] == "answered", told
            (item,) = told["items"]
            assert item["step_name"] == "load"
            frames = [frame.partition(" (")[0] for frame in item["now"]["stacks"][0]["frames"]]
            assert "__main__.load" in frames
            assert frames[-1].endswith("read"), frames
            # What is known is read without asking.
            again = await api.get(f"{path}?now=false")
            assert again["answer"] == "not_asked"
            assert again["items"][0]["now"]["is_new"] is False
            if "TACHOGRAPH_URL" in environment:
                process.send_signal(signal.SIGSTOP)
                monkeypatch.setattr("tachograph_exporter.reading.asking.WAIT_SECONDS", 1.0)
                silent = await api.get(path)
                assert silent["answer"] == "no_answer"
                assert "has not answered; it last gave a sign of life" in silent["message"]
                monkeypatch.undo()
        await api.finished(execution_id)
        ended = await api.get(path)
        assert ended["answer"] == "not_asked"


async def test_a_step_of_another_process_that_passes_its_usual_time_is_sampled_by_itself(api: Api) -> None:
    history = [msgspec.to_builtins(event) for _ in range(6) for event in _run("nightly", seconds=1)]
    # A step that usually takes as long is not.
    history += [msgspec.to_builtins(event) for _ in range(6) for event in _run("nightly", "usual", seconds=3600)]
    status, answer = await api.call(
        "POST", "/api/events", {"version": 1, "sender": "s", "sequence": 1, "events": history}
    )
    assert (status, answer["refused"]) == (200, [])
    with worker(WITH_A_USUAL_STEP, TACHOGRAPH_URL=api.address) as process:
        execution_id = await running(api, "nightly")
        path = f"/api/workflows/executions/{execution_id}/stacks?now=false"
        async with asyncio.timeout(60):
            # While it runs: a process that is killed leaves what is known.
            while not (view := await api.get(path))["items"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        (item,) = view["items"]
        assert (item["step_name"], item["status"], item["now"]) == ("load", "running", None)
        assert item["profile"]["top"][0]["function"].endswith("read (native)")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    await api.finished(execution_id)
    lines = (await api.get(f"{path}&format=folded")).splitlines()
    names = [[frame.partition(" (")[0] for frame in line.split(";")] for line in lines]
    assert all(frames[0] == "load" and "__main__.load" in frames for frames in names)
    document = await api.get(f"{path}&format=speedscope")
    assert [profile["name"] for profile in document["profiles"]] == ["load"]


def _history(database: Database, writer: StoreWriter) -> None:
    for _ in range(6):
        writer.apply(_run("etl"))


def _run(workflow: str, step_name: str = "load", seconds: int = 4) -> list[Event]:
    execution = make_execution(workflow)
    step, start = make_step(execution, step_name), time.time_ns() - 2 * 3600 * NS
    end = start + seconds * NS
    return [
        ExecutionStarted(execution=execution, time_ns=start, step_count=1, process="p"),
        StepFinished(step=step, time_ns=end, status=StepStatus.COMPLETED, attempt=1, started_ns=start,
                     attempt_started_ns=start, run_ns=seconds * NS),
        ExecutionFinished(execution=execution, time_ns=end, status=ExecutionStatus.COMPLETED,
                          started_ns=start, step_count=1, completed_step_count=1),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_step_that_passes_its_usual_time_is_to_be_sampled_and_the_newest_stacks_stay(
    kind: str, database_url: str, request: pytest.FixtureRequest
) -> None:
    url = database_url if kind == "sqlite" else request.getfixturevalue("postgres")()
    database = Database(url)
    writer = StoreWriter(database)
    try:
        _history(database, writer)
        execution = make_execution()
        step = make_step(execution, "load")
        writer.apply([
            ExecutionStarted(execution=execution, time_ns=1, step_count=1, process="p"),
            StepStarted(step=step, time_ns=1),
        ])  # fmt: skip

        def wishes(seconds: float, name: str = "load") -> list[Any]:
            long = (LongAttempt(step.step_id, name, round(seconds * NS)),)
            beat = Heartbeat(execution=execution, time_ns=2, long=long)
            return database.look(lambda c: writer._wishes.of(c, {execution.execution_id: beat}, {}))

        assert wishes(3) == []
        assert wishes(60, "never seen") == []
        (wish,) = wishes(60)
        assert wish.step_ids == (step.step_id,)
        assert not wish.request
        database.run(lambda c: stacks.ask(c, execution.execution_id, "r1", 10**19 // 2))
        database.run(lambda c: stacks.ask(c, execution.execution_id, "r2", 10**19 // 2))
        assert [w.request for w in wishes(3)] == ["r2"]

        def profile(at: int, count: int) -> StepStacks:
            seen = (FoldedStack("a (a.py:1);b (b.py:2)", count),)
            return StepStacks(step=step, time_ns=at, attempt=1, kind=StacksKind.PROFILE, stacks=seen)

        writer.apply([profile(10, 1), profile(30, 3)])
        writer.apply([profile(20, 2)])
        (stored,) = database.look(lambda c: stacks.stacks_of(c, execution.execution_id))
        assert stored.stacks == [FoldedStack("a (a.py:1);b (b.py:2)", 3)]
        # Of an execution that is not stored nothing is kept.
        other = msgspec.structs.replace(step, execution=make_execution())
        writer.apply([msgspec.structs.replace(profile(1, 1), step=other)])
        assert database.look(lambda c: stacks.stacks_of(c, other.execution.execution_id)) == []
        database.run(lambda c: stacks.remove(c, [execution.execution_id]))
        assert database.look(lambda c: stacks.stacks_of(c, execution.execution_id)) == []
    finally:
        database.close()


async def test_samples_are_exported_for_flame_graphs_and_hostile_ones_are_cleaned(api: Api) -> None:
    execution = make_execution()
    step = make_step(execution, "load")
    profile = StepStacks(
        step=step, time_ns=60 * NS, attempt=1, kind=StacksKind.PROFILE, started_ns=10 * NS, samples=900, dropped=2,
        interval_ns=50_000_000,
        stacks=(FoldedStack("job.main (job.py:3);time.sleep (native)", 900),
                FoldedStack("job.main (job.py:3);\x1b[2Jevil\n (x.py:1)", 100)),
    )  # fmt: skip
    open_run = make_execution()
    open_step = make_step(open_run, "load")
    events: list[Event] = [
        ExecutionStarted(execution=open_run, time_ns=1, step_count=1, process="p"),
        StepStarted(step=open_step, time_ns=2), msgspec.structs.replace(profile, step=open_step),
        ExecutionStarted(execution=execution, time_ns=1, step_count=1, process="p"),
        StepStarted(step=step, time_ns=2), profile,
        StepFinished(step=step, time_ns=60 * NS, status=StepStatus.COMPLETED, attempt=1, started_ns=2,
                     attempt_started_ns=2, run_ns=60 * NS - 2),
        ExecutionFinished(execution=execution, time_ns=60 * NS, status=ExecutionStatus.COMPLETED, started_ns=1,
                          step_count=1, completed_step_count=1),
    ]  # fmt: skip
    batch = {"version": 1, "sender": "s", "sequence": 1, "events": [msgspec.to_builtins(event) for event in events]}
    status, answer = await api.call("POST", "/api/events", batch)
    assert status == 200, answer
    assert answer["stored"] == 8, answer
    path = f"/api/workflows/executions/{execution.execution_id}/stacks"
    view = await api.get(path)
    (item,) = view["items"]
    assert item["profile"]["top"][0] == {"function": "time.sleep (native)", "share": 0.9}
    assert item["profile"]["seconds"] == 50.0
    assert item["profile"]["dropped_count"] == 2
    assert all(frame.isprintable() for seen in item["profile"]["stacks"] for frame in seen["frames"])
    folded = await api.get(f"{path}?format=folded")
    assert folded.splitlines()[0] == "load;job.main (job.py:3);time.sleep (native) 900"
    assert len(folded.splitlines()) == 2
    document = await api.get(f"{path}?format=speedscope&step=load")
    jsonschema.validate(document, published_schema())
    assert document["shared"]["frames"][0] == {"name": "job.main", "file": "job.py", "line": 3}
    assert document["profiles"][0]["weights"] == [45_000.0, 5_000.0]
    assert (await api.get(f"{path}?step=nothing"))["items"] == []
    assert (await api.call("GET", "/api/workflows/executions/nothing/stacks"))[0] == 404
    assert (await api.call("GET", f"{path}?format=pprof"))[0] == 422
    why = await api.get(f"/api/workflows/executions/{open_run.execution_id}/why")
    (claim,) = [claim for claim in why["claims"] if claim["kind"] == "stack"]
    assert claim["text"] == (
        "Step “load” was in `time.sleep (native)`, called by `job.main`, for 90 % of the 50 s in which it was sampled."
    )
    assert (await api.get(claim["evidence"]["url"]))["items"][0]["profile"]["sample_count"] == 900
    assert why["sentence"].startswith("The run has been running")
