"""The overview over HTTP, on both databases, of runs as they were recorded."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert
from tests.api.test_metrics import a_run, record
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepFinished,
    StepStarted,
    StepStatus,
)
from tachograph.identity import workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.expectations.findings import KINDS
from tachograph_exporter.store.overview import LATE_KINDS
from tachograph_exporter.store.schema import notices

HOUR, DAY = 3_600, 86_400


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        yield api


def load_run(ended_s: float, seconds: float, workflow: str, error: str | None = None) -> list[Event]:
    """A run of one step."""
    run = make_execution(workflow)
    step = make_step(run, "load", step_order=1)
    end, start = round(ended_s * NS), round((ended_s - seconds) * NS)
    failure = None if error is None else Failure("ValueError", error)
    of_step = StepStatus.COMPLETED if error is None else StepStatus.FAILED
    of_run = ExecutionStatus.COMPLETED if error is None else ExecutionStatus.FAILED
    return [
        ExecutionStarted(execution=run, time_ns=start, step_count=1),
        StepFinished(step=step, time_ns=end, status=of_step, attempt=1, started_ns=start, attempt_started_ns=start,
                     failure=failure),
        ExecutionFinished(execution=run, time_ns=end, status=of_run, started_ns=start, step_count=1,
                          completed_step_count=int(error is None), failed_step_count=int(error is not None),
                          failure=failure),
    ]  # fmt: skip


def open_run(started_s: float, workflow: str) -> list[Event]:
    """A run whose first of two steps completed, while the second runs."""
    run = make_execution(workflow)
    first, second = (make_step(run, name, step_order=order) for order, name in enumerate(("first", "second")))
    start = round(started_s * NS)
    return [
        ExecutionStarted(execution=run, time_ns=start, step_count=2),
        StepFinished(step=first, time_ns=start + NS, status=StepStatus.COMPLETED, attempt=1, started_ns=start,
                     attempt_started_ns=start),
        StepStarted(step=second, time_ns=start + NS),
    ]  # fmt: skip


async def test_the_overview_says_what_someone_on_call_asks(api: Api) -> None:
    now = time.time()
    nightly = [load_run(now - day * DAY - HOUR, 60, "nightly") for day in range(1, 12)]
    await record(api, *nightly, load_run(now - 600, 200, "nightly"))
    await record(
        api,
        load_run(now - 2 * HOUR, 5, "import", "row 1 is bad"),
        load_run(now - HOUR, 5, "import", "row 2 is bad"),
        load_run(now - 3 * HOUR, 5, "export", "row 7 is bad"),
        load_run(now - 2 * HOUR, 5, "export"),
        load_run(now - 30 * HOUR, 5, "export", "long ago"),
    )
    (running,) = await record(api, open_run(now - 400, "nightly"))
    overview = await api.get("/api/overview")
    assert (overview["failure_count"], overview["ended_count"], overview["open_count"]) == (3, 5, 1)
    (group,) = overview["failures"]
    assert (group["count"], group["is_failing"], group["error_type"]) == (3, True, "ValueError")
    assert [
        (item["workflow_name"], item["state"], item["step_name"], item["count"]) for item in group["workflows"]
    ] == [
        ("import", "failing", "load", 2),
        ("export", "recovered", "load", 1),
    ]
    (slower,) = overview["slower"]
    assert (slower["workflow_name"], slower["count"], slower["of"]) == ("nightly", 1, 1)
    assert slower["ratio"] == pytest.approx(200 / 60, rel=0.05)
    (long,) = overview["running_too_long"]
    assert (long["run"]["execution_id"], long["run"]["duration_seconds"] > 399) == (running, True)
    assert [item["workflow_name"] for item in overview["workflows"]] == ["export", "import", "nightly"]
    usual = {item["workflow_name"]: item["usual"] for item in overview["workflows"]}
    assert (usual["import"], usual["nightly"]["count"]) == (None, 12)
    # The list and the overview count the steps of open runs, too.
    assert overview["runs"]["total"] == 18
    newest = overview["runs"]["items"][0]
    listed = await api.get("/api/workflows/executions")
    item = next(item for item in listed["items"] if item["execution_id"] == running)
    for run in (newest, item):
        if run["execution_id"] == running:
            assert (run["step_count"], run["completed_step_count"]) == (2, 1)
    shorter = await api.get("/api/overview?since=90m&limit=2")
    assert (shorter["failure_count"], len(shorter["runs"]["items"])) == (1, 2)
    rest = await api.get(f"/api/workflows/executions?limit=50&after={shorter['runs']['next']}")
    assert len(rest["items"]) == 16
    longer = await api.get("/api/overview?since=48h")
    assert {group["error_message"] for group in longer["failures"]} == {"row 2 is bad", "long ago"}
    assert (await api.call("GET", "/api/overview?since=40d"))[0] == 422


async def test_workflows_have_their_last_runs_and_a_trend(api: Api) -> None:
    now = time.time()
    await record(api, *[load_run(now - (day + 0.5) * DAY, 10 if day > 6 else 15, "daily") for day in range(14)])
    await record(api, *[load_run(now - 60 - i, 5, "etl", "bad row" if i == 3 else None) for i in range(30)])
    await record(api, a_run(now - 40 * DAY, 1.0))
    (running,) = await record(api, open_run(now, "etl"))
    rows = await api.get("/api/overview/workflows")
    items = {item["workflow_name"]: item for item in rows["items"]}
    assert rows["total"] == 2
    assert [item["workflow_name"] for item in rows["items"]] == ["etl", "daily"]
    daily, etl = items["daily"], items["etl"]
    assert daily["trend"] == pytest.approx(1.5, rel=0.05)
    assert (daily["recent_executions"], daily["success_rate"], len(daily["strip"])) == (7, 100.0, 14)
    assert [round(run["duration_seconds"]) for run in daily["strip"]] == [10] * 7 + [15] * 7
    assert (etl["open_executions"], etl["total_executions"]) == (1, 32)
    assert etl["trend"] == pytest.approx(1, rel=0.05)
    assert (etl["last"]["execution_id"], etl["last"]["status"]) == (running, "running")
    assert [run["status"] for run in etl["strip"]].count("failed") == 1
    assert len(etl["strip"]) == 20


async def test_another_workspace_sees_nothing(api: Api) -> None:
    await record(api, load_run(time.time() - 60, 5, "import", "bad"), open_run(time.time() - 60, "import"))
    assert (await api.call("POST", "/api/workspaces", {"slug": "theirs"}))[0] == 201
    theirs = await api.get("/api/overview?workspace_slug=theirs")
    assert (theirs["failure_count"], theirs["open_count"], theirs["workflows"]) == (0, 0, [])
    assert (theirs["failures"], theirs["runs"]["total"]) == ([], 0)
    assert (await api.get("/api/overview/workflows?workspace_slug=theirs"))["items"] == []


async def test_one_search_finds_ids_workflows_and_errors(api: Api) -> None:
    now = time.time()
    first, second = await record(
        api, load_run(now - 60, 5, "import_%", "Row 7 is bad"), load_run(now - 30, 5, "export")
    )
    for text, ids in (
        (first, {first}), (f"…{second[-6:]}", {second}), ("IMPORT", {first}), ("row 7", {first}),
        ("valueerror", {first}), ("%", {first}), ("port", {first, second}), ("nothing", set()),
    ):  # fmt: skip
        listed = await api.get("/api/workflows/executions", params={"q": text})
        assert {item["execution_id"] for item in listed["items"]} == ids, text
        assert listed["total"] == len(ids)


async def test_what_is_late_is_in_the_overview_until_it_is_over(api: Api) -> None:
    assert set(LATE_KINDS) < set(KINDS)
    workspace = workspace_id("default")
    rows = [
        {"id": str(number), "workspace_id": workspace, "workflow": "nightly", "kind": kind, "key": str(number),
         "severity": "warning", "opened_ns": number * NS, "told_ns": number * NS, "resolved_ns": resolved,
         "text": f"text {number}"}
        for number, (kind, resolved) in enumerate([("late", None), ("overdue", 9), ("cost", None), ("stale", None)])
    ]  # fmt: skip
    await record(api, load_run(time.time() - 60, 5, "nightly"))
    await api.service.database.write(lambda c: c.execute(insert(notices), rows))
    late = (await api.get("/api/overview"))["late"]
    assert [(item["kind"], item["text"], item["workflow_name"]) for item in late] == [
        ("stale", "text 3", "nightly"),
        ("late", "text 0", "nightly"),
    ]
    assert late[0]["workflow_id"] == (await api.get("/api/workflows"))["items"][0]["id"]
