"""A workflow that is deleted while other processes go on running it: no execution is ever without its workflow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.api.test_handshake import Script, following
from tests.conftest import Api, make_execution, make_run, running, serve
from tests.store.test_rollups import differing

from tachograph.events import ExecutionFinished, ExecutionStarted, ExecutionStatus
from tachograph.identity import workflow_id
from tachograph.recording.recorder import Recorder
from tachograph.workflow import Executor, HandlerRegistry
from tachograph.workflow.document import parse
from tachograph_exporter.config import Config
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter, open_writer

pytestmark = pytest.mark.every_database


@pytest.fixture
def script(any_database_url: str, tmp_path: Path) -> Iterator[Script]:
    script = Script(any_database_url, tmp_path)
    yield script
    script.close()


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        yield api


async def counted(api: Api, name: str) -> tuple[int, int]:
    """(executions in the list, in the metrics) of a workflow that is there."""
    listed = await api.get(f"/api/workflows/{name}/executions")
    metrics = await api.get(f"/api/workflows/{name}/metrics")
    return listed["total"], metrics["total_executions"]


async def test_a_run_of_another_process_registers_a_deleted_workflow_again(
    api: Api, script: Script, any_database_url: str, handlers: HandlerRegistry
) -> None:
    async with running(Config(database=any_database_url, grace_seconds=0.2), handlers) as other:
        for _ in range(3):
            for number in (1, 2):
                await asyncio.to_thread(script.record, "nightly")
                # Both services know the workflow, and keep its metrics for the next request.
                assert await counted(api, "nightly") == (number, number)
                assert (await other.get("/api/workflows/nightly/metrics"))["total_executions"] == number
            assert (await api.call("DELETE", "/api/workflows/nightly"))[0] == 204
            for service in (api, other):
                assert (await service.call("GET", "/api/workflows/nightly"))[0] == 404
                assert (await service.get("/api/workflows/executions"))["total"] == 0
    await asyncio.to_thread(script.record, "nightly")
    assert await counted(api, "nightly") == (1, 1)
    assert differing(api.service.database) == 0


async def test_a_run_of_the_service_registers_a_workflow_that_another_service_deleted(
    api: Api, any_database_url: str, handlers: HandlerRegistry
) -> None:
    writer = api.service.writer
    writer.apply(make_run(make_execution("nightly")))
    async with running(Config(database=any_database_url, grace_seconds=0.2), handlers) as other:
        assert (await other.call("DELETE", "/api/workflows/nightly"))[0] == 204
        writer.apply(make_run(make_execution("nightly")))
        for service in (api, other):
            assert (await service.get("/api/workflows/nightly/executions"))["total"] == 1


@pytest.mark.parametrize("is_scraped_between", [True, False])
async def test_the_series_of_a_workflow_that_is_back_begin_again(api: Api, is_scraped_between: bool) -> None:
    async def started() -> list[str]:
        prefix = 'workflow_executions_started_total{workflow="nightly",workspace="default"} '
        text = await api.get("/metrics")
        return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]

    writer = api.service.writer
    for _ in range(2):
        writer.apply(make_run(make_execution("nightly")))
    assert [await started() for _ in range(3)] == [["0.0"], ["2.0"], ["2.0"]]
    assert (await api.call("DELETE", "/api/workflows/nightly"))[0] == 204
    if is_scraped_between:
        assert await started() == []
    for _ in range(3):
        writer.apply(make_run(make_execution("nightly")))
    # A reset that Prometheus sees, also when the new value is higher than the old one.
    assert [await started() for _ in range(3)] == [["0.0"], ["3.0"], ["3.0"]]


async def test_runs_belong_to_the_workflow_that_has_their_name(api: Api, script: Script) -> None:
    # A program derives an id from the name; the definition has another one.
    status, defined = await api.call("POST", "/api/workflows", {"name": "nightly", "steps": [{"name": "a"}]})
    assert status == 201
    assert defined["id"] != workflow_id("default", "nightly")
    async with following(api, "sse") as next_message:
        await next_message()
        await asyncio.to_thread(script.record, "nightly")
        assert {(await next_message())["workflow_id"] for _ in range(4)} == {defined["id"]}
    assert await counted(api, "nightly") == (1, 1)
    assert (await api.get("/api/workflows"))["total"] == 1
    # In the first scrape a new series is 0.
    await api.get("/metrics")
    series = 'workflow_executions_started_total{workflow="nightly",workspace="default"} 1.0\n'
    assert series in await api.get("/metrics")
    (item,) = (await api.get("/api/workflows/nightly/executions"))["items"]
    assert item["workflow_id"] == defined["id"]
    # Deleted and defined again, it has a new id; the program goes on with the one it knows.
    assert (await api.call("DELETE", "/api/workflows/nightly"))[0] == 204
    status, again = await api.call("POST", "/api/workflows", {"name": "nightly", "steps": [{"name": "a"}]})
    assert (status, again["id"] != defined["id"]) == (201, True)
    await asyncio.to_thread(script.record, "nightly")
    assert await counted(api, "nightly") == (1, 1)
    # Renamed, it is another workflow, and the program's is a new one.
    assert (await api.call("PATCH", "/api/workflows/nightly", {"name": "weekly"}))[0] == 200
    await asyncio.to_thread(script.record, "nightly")
    assert {name: (await counted(api, name))[0] for name in ("nightly", "weekly")} == {"nightly": 1, "weekly": 1}
    assert differing(api.service.database) == 0


async def test_the_views_of_a_run_agree_whatever_id_its_program_knew(
    api: Api, any_database_url: str, handlers: HandlerRegistry
) -> None:
    document = {"name": "nightly", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]}
    status, defined = await api.call("POST", "/api/workflows", document)
    assert status == 201
    async with following(api, "websocket") as next_message:
        await next_message()
        script = Recorder()
        script.add("store", open_writer(any_database_url))
        run = await Executor(script, handlers=handlers).run(parse(msgspec.json.encode(document)))
        assert run.execution.workflow_id != defined["id"]
        await asyncio.to_thread(script.close)
        report = await api.get(f"/api/workflows/executions/{run.execution.execution_id}/reconcile")
    assert report["agrees"], report
    assert report["views"]["events"] == 2


async def test_a_workflow_with_open_executions_is_not_deleted_and_they_are_named(
    api: Api, any_database_url: str
) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    open_executions = [make_execution("nightly") for _ in range(25)]
    try:
        now = time.time_ns()
        writer.apply([ExecutionStarted(execution=e, time_ns=now, process="elsewhere") for e in open_executions])
        status, problem = await api.call("DELETE", "/api/workflows/nightly")
        assert (status, problem["code"]) == (409, "workflow_busy")
        ids = sorted(e.execution_id for e in open_executions)
        assert [fault["at"] for fault in problem["errors"]] == [f"/api/workflows/executions/{i}" for i in ids[:20]]
        assert "25 open executions" in problem["detail"]
        assert "and 5 more" in problem["detail"]
        assert ids[0] in problem["detail"]
        assert (await api.get("/api/workflows/nightly/executions"))["total"] == 25
        writer.apply([ended(e, now) for e in open_executions[1:]])
        status, problem = await api.call("DELETE", "/api/workflows/nightly")
        assert (status, len(problem["errors"])) == (409, 1)
        writer.apply([ended(open_executions[0], now)])
        assert (await api.call("DELETE", "/api/workflows/nightly"))[0] == 204
        # What an execution says after its workflow was deleted brings the workflow back, not a row without one.
        writer.apply([ended(open_executions[0], now)])
        assert await counted(api, "nightly") == (1, 1)
    finally:
        database.close()


def ended(execution: Any, started_ns: int) -> ExecutionFinished:
    return ExecutionFinished(
        execution=execution, time_ns=started_ns + 1, status=ExecutionStatus.COMPLETED, started_ns=started_ns,
        step_count=0,
    )  # fmt: skip
