"""Whole runs on Temporal: they end as they end here, and outlive whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tools.local_service import LocalService, eventually

from tachograph.identity import workspace_id
from tachograph.recording.setup import build_recorder
from tachograph.runners import runner_of
from tachograph.workflow import ExecutionResult, Executor, LocalRunner, Runner, Workflow
from tachograph_exporter import handler_sources
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.timeline import build_timeline
from tests.engines import processes
from tests.runners import definitions

HANDLERS = Path(__file__).with_name("elsewhere.py")
TACHOGRAPH = str(Path(sys.executable).with_name("tachograph"))
STEP = definitions.step

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("temporal")]


class Place(NamedTuple):
    """A Temporal server, a worker of it, and where that records."""

    url: str
    database: str
    directory: Path


@pytest.fixture(scope="module")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    pytest.importorskip("temporalio", reason="needs temporalio")
    handler_sources.load(str(HANDLERS))
    directory = tmp_path_factory.mktemp("temporal")
    with processes.temporal(directory, sys.executable) as address:
        yield Place(f"temporal://{address}", f"sqlite:///{directory}/runs.db", directory)


def worker(place: Place, **variables: str) -> Any:
    command = [TACHOGRAPH, "worker", place.url, "--handlers", str(HANDLERS), "--concurrency", "4"]
    where = variables or {"TACHOGRAPH_DATABASE_URL": place.database}
    return processes.running(command, place.directory / "worker.log", where)


def told(database: Database, execution_id: str) -> dict[str, Any]:
    """A run as its timeline tells of it, without what differs from run to run."""
    run = database.look(lambda c: execution_rows.run(c, workspace_id("default"), execution_id))
    assert run is not None
    timeline = build_timeline(run, now_ns=time.time_ns())
    names = {step.step_id: step.step_name for step in timeline.step_timeline}
    return {
        "status": timeline.status,
        "error": (timeline.error_type, timeline.error_message),
        "steps": [
            {
                "name": step.step_name,
                "status": step.status,
                "retries": step.retry_count,
                "error": (step.error_type, step.error_message),
                "skipped": step.skip_reason,
                "output": bytes(step.output_summary or b""),
                "after": sorted(names[each] for each in step.depends_on),
                # Here a handler that cannot be stopped is told of.
                "logs": [line.message for line in step.logs if "cannot be stopped" not in line.message],
                "measures": [(measure.name, measure.value) for measure in step.measures],
            }
            for step in timeline.step_timeline
        ],
    }


async def play(runner: Runner, workflow: Workflow, inputs: dict[str, Any], database: Database) -> ExecutionResult:
    recorder = build_recorder(store=StoreWriter(database))
    try:
        return await Executor(recorder, runner=runner).run(workflow, inputs)
    finally:
        recorder.close()


async def test_definitions_end_alike_as_workflows_of_temporal(temporal: Place) -> None:
    database = Database(temporal.database)
    runner = runner_of(temporal.url)
    try:
        with worker(temporal):
            for case in definitions.cases(20):
                here = await play(LocalRunner(), case.workflow, case.inputs, database)
                there = await asyncio.wait_for(play(runner, case.workflow, case.inputs, database), 60)
                assert (there.status, there.steps, there.outputs) == (here.status, here.steps, here.outputs), case.name
                ids = here.execution.execution_id, there.execution.execution_id
                assert told(database, ids[1]) == told(database, ids[0]), case.name
    finally:
        await runner.close()
        database.close()


def restarted(service: LocalService) -> None:
    assert service.process is not None
    service.process.kill()
    service.process.wait()
    service.__enter__()


def test_a_run_outlives_the_service_that_started_it(temporal: Place, tmp_path: Path) -> None:
    steps = [STEP("a", "long", config={"seconds": 4}), STEP("b", "parts", "a"), STEP("c", "add", "b")]
    options = ["--runner", temporal.url, "--handlers", str(HANDLERS)]
    with LocalService(tmp_path, *options) as service, worker(temporal, TACHOGRAPH_URL=service.address):

        def begun(name: str, *steps: dict[str, Any]) -> str:
            service.post("/api/workflows", {"name": name, "steps": list(steps)})
            execution_id = str(service.post(f"/api/workflows/{name}/execute")["execution_id"])
            path = f"/api/workflows/executions/{execution_id}"
            eventually(lambda: service.get(f"{path}/timeline")["running_step_count"] == 1)
            return path

        path = begun("nightly", *steps)
        restarted(service)
        eventually(lambda: service.get(path)["status"] == "completed")
        timeline = service.get(f"{path}/timeline")["step_timeline"]
        outer = {step["step_name"]: step["status"] for step in timeline if step["parent_step_id"] is None}
        assert outer == dict.fromkeys("abc", "completed")
        assert len(timeline) == 7
        path = begun("long", STEP("a", "long", config={"seconds": 60}))
        # The worker is asked in the answers to its signs of life.
        told = eventually(lambda: (seen := service.get(f"{path}/stacks"))["answer"] == "answered" and seen)
        frames = [frame.partition(" (")[0] for frame in told["items"][0]["now"]["stacks"][0]["frames"]]
        assert frames[0].endswith(".long")
        assert frames[-1] in ("time.sleep", frames[0])
        restarted(service)  # It has not started the run that it cancels.
        service.post(f"{path}/cancel")
        eventually(lambda: service.get(path)["status"] == "cancelled")


@pytest.mark.slow
async def test_a_killed_worker_is_a_failed_attempt_and_the_run_goes_on(temporal: Place, tmp_path: Path) -> None:
    begun, database, runner = tmp_path / "begun", Database(temporal.database), runner_of(temporal.url)
    config = {"file": str(begun), "seconds": 120}
    step = STEP("a", "waits_once", max_retries=1, retry_backoff=definitions.FAST, config=config)
    workflow = definitions.case("killed", step, STEP("b", "add", "a", config={"reads": []})).workflow
    try:
        first = worker(temporal)
        process = first.__enter__()
        task = asyncio.ensure_future(play(runner, workflow, {}, database))
        await asyncio.to_thread(eventually, begun.exists, 60)
        os.killpg(process.pid, signal.SIGKILL)
        first.__exit__(None, None, None)
        with worker(temporal):
            result = await asyncio.wait_for(task, 120)
        assert (str(result.status), result.outputs["a"]) == ("completed", 2)
        first_step, _ = told(database, result.execution.execution_id)["steps"]
        assert (first_step["status"], first_step["retries"]) == ("completed", 1)
    finally:
        await runner.close()
        database.close()


async def test_a_server_that_is_not_there_is_a_failed_run(tmp_path: Path) -> None:
    pytest.importorskip("temporalio", reason="needs temporalio")
    database = Database(f"sqlite:///{tmp_path}/runs.db")
    try:
        result = await play(
            runner_of("temporal://127.0.0.1:9"), definitions.case("w", STEP("a")).workflow, {}, database
        )
        assert str(result.status) == "failed"
        assert "no Temporal server answers at 127.0.0.1:9" in str(
            told(database, result.execution.execution_id)["error"]
        )
    finally:
        database.close()


def test_a_worker_says_that_it_has_to_record_somewhere(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TACHOGRAPH_")}
    answer = subprocess.run(
        [TACHOGRAPH, "worker", "temporal://127.0.0.1:9"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode != 0
    assert "TACHOGRAPH_URL or TACHOGRAPH_DATABASE_URL" in " ".join(answer.stderr.split())
