"""Metrics, trends and comparison over HTTP, on both databases, checked against the executions themselves."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator

import pytest
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    PathStep,
    StepCost,
    StepFinished,
    StepMeasured,
    StepStatus,
)
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

HOUR = 3_600


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        yield api


def a_run(
    ended_s: float, load: float, extract: float = 1.0, status: ExecutionStatus = ExecutionStatus.COMPLETED
) -> list[Event]:
    """An execution of extract, then load, with watch in parallel."""
    end, start = round(ended_s * NS), round((ended_s - load - extract) * NS)
    middle = start + round(extract * NS)
    run = make_execution("etl")
    extract_step = make_step(run, "extract", step_order=1)
    watch_step = make_step(run, "watch", step_order=3)
    load_step = make_step(run, "load", step_order=2, depends_on=(extract_step.step_id,))
    is_completed = status is ExecutionStatus.COMPLETED
    failure = None if is_completed else Failure("ValueError", "bad row")
    load_status = StepStatus.COMPLETED if is_completed else StepStatus.FAILED
    return [
        ExecutionStarted(execution=run, time_ns=start, step_count=3),
        StepCost(step=extract_step, time_ns=middle, sequence=1, usd=0.25, tokens_in=10, model="m"),
        StepMeasured(step=extract_step, time_ns=middle, sequence=2, name="rows", value=100 * load, unit="rows"),
        StepFinished(step=extract_step, time_ns=middle, status=StepStatus.COMPLETED, attempt=1, started_ns=start,
                     attempt_started_ns=start, run_ns=middle - start),
        StepFinished(step=watch_step, time_ns=start + 5, status=StepStatus.COMPLETED, attempt=1, started_ns=start,
                     attempt_started_ns=start, run_ns=5),
        StepFinished(step=load_step, time_ns=end, status=load_status, attempt=1, started_ns=middle,
                     attempt_started_ns=middle, run_ns=end - middle, dependency_ns=middle - start,
                     failure=failure),
        ExecutionFinished(execution=run, time_ns=end, status=status, started_ns=start, step_count=3,
                          work_ns=end - start, completed_step_count=3, failure=failure,
                          critical_path=(PathStep(extract_step.step_id, "extract", middle - start),
                                         PathStep(load_step.step_id, "load", end - middle))),
    ]  # fmt: skip


async def record(api: Api, *runs: list[Event]) -> list[str]:
    for run in runs:
        for event in run:
            api.service.recorder(event)
    assert api.service.recorder.queues["store"].flush(60)
    return [run[0].execution.execution_id for run in runs]


async def test_metrics_agree_with_the_executions(api: Api) -> None:
    rng = random.Random(4)
    now = time.time()
    loads = [rng.lognormvariate(0, 0.6) for _ in range(120)]
    ends = [now - rng.random() * 90 * 86_400 - 60 for _ in loads]
    runs = [a_run(end, load) for end, load in zip(ends, loads, strict=True)]
    runs += [a_run(now - 2 * HOUR, 0.5, status=ExecutionStatus.FAILED) for _ in range(30)]
    await record(api, *runs)
    whole = await api.get("/api/workflows/etl/metrics")
    assert (whole["total_executions"], whole["successful_executions"], whole["failed_executions"]) == (150, 120, 30)
    assert whole["success_rate"] == 80.0
    assert whole["by_status"]["completed"]["count"] == 120
    durations = sorted([load + 1 for load in loads] + [1.5] * 30)
    assert whole["total_duration_seconds"] == pytest.approx(sum(durations))
    assert whole["p95"] == pytest.approx(durations[round(150 * 0.95 + 0.5) - 1], rel=whole["percentile_error"] * 1.01)
    assert whole["cost_usd"] == 150 * 0.25
    assert whole["critical_path_seconds"] == pytest.approx(sum(durations))
    steps = {step["step_name"]: step for step in whole["steps"]}
    assert steps["load"]["by_status"] == {"completed": 120, "failed": 30}
    assert steps["load"]["wait"]["dependency"] == pytest.approx(1)
    assert steps["watch"]["critical_path_share"] == 0
    assert sum(step["critical_path_share"] for step in whole["steps"]) == pytest.approx(1)
    (rows,) = steps["extract"]["measures"]
    assert (rows["name"], rows["unit"], rows["count"]) == ("rows", "rows", 150)
    assert rows["sum"] == pytest.approx(100 * (sum(loads) + 15))
    lately = await api.get("/api/workflows/etl/metrics?from=30d&to=1d")
    assert lately["total_executions"] == sum(now - 30 * 86_400 <= end < now - 86_400 for end in ends)
    stats = await api.get("/api/workflows/executions/stats")
    assert stats["by_status"] == {"completed": 120, "failed": 30}
    assert stats["workflows"][0]["total_executions"] == 150


async def test_trends_have_the_time_since_when_a_step_is_slower(api: Api) -> None:
    rng = random.Random(5)
    now = int(time.time()) // HOUR * HOUR
    changed = now - 30 * HOUR
    runs = []
    for hour in range(now - 72 * HOUR, now, HOUR):
        load = 2.0 if hour < changed else 5.0
        runs += [a_run(hour + rng.random() * HOUR, load * rng.lognormvariate(0, 0.05)) for _ in range(4)]
    await record(api, *runs)
    trend = await api.get("/api/workflows/etl/trends?bucket=1h&from=80h")
    assert [bucket["total_executions"] for bucket in trend["buckets"]] == [4] * 72
    assert trend["buckets"][0]["cost_usd"] == 1.0
    assert trend["buckets"][0]["measures"][0]["count"] == 4
    changes = {change["step_name"]: change for change in trend["change_points"]}
    assert changes.keys() == {None, "load"}
    assert changes["load"]["direction"] == "slower"
    assert changes["load"]["since"] == time.strftime("%Y-%m-%dT%H:00:00.000000Z", time.gmtime(changed))
    assert changes["load"]["ratio"] == pytest.approx(2.5, rel=0.05)
    assert "Step “load” takes 2." in changes["load"]["sentence"]
    step = await api.get("/api/workflows/etl/trends?bucket=1h&from=80h&step=load")
    assert step["buckets"][-1]["p50"] == pytest.approx(5, rel=0.15)
    days = await api.get("/api/workflows/etl/trends?bucket=1d")
    assert sum(bucket["total_executions"] for bucket in days["buckets"]) == len(runs)
    fine = await api.get("/api/workflows/etl/trends?bucket=5m&from=24h")
    assert sum(bucket["total_executions"] for bucket in fine["buckets"]) == pytest.approx(96, abs=4)
    status, body = await api.call("GET", "/api/workflows/etl/trends?bucket=5m&from=90d")
    assert (status, "at most" in body["detail"]) == (422, True)


async def test_the_culprit_of_a_slow_run_is_named(api: Api) -> None:
    rng = random.Random(6)
    now = time.time()
    usual = [a_run(now - 3 * 86_400 + i * 600, rng.lognormvariate(0.7, 0.1)) for i in range(200)]
    await record(api, *usual)
    (slow, failed) = await record(api, a_run(now, 30.0), a_run(now, 0.1, status=ExecutionStatus.FAILED))
    comparison = await api.get(f"/api/workflows/executions/compare?execution={slow}&baseline=7d")
    assert (comparison["culprit"], comparison["steps"][0]["step_name"]) == ("load", "load")
    assert comparison["steps"][0]["percentile"] == 100
    assert comparison["steps"][0]["ratio"] == pytest.approx(15, rel=0.1)
    assert comparison["steps"][0]["blame"] == pytest.approx(1, rel=0.02)
    assert comparison["baseline"]["execution_count"] == 200
    assert comparison["sentence"].startswith("Step “load” took 30 s instead of 2")
    broken = await api.get(f"/api/workflows/executions/compare?execution={failed}")
    assert (broken["culprit"], "in step “load”: bad row" in broken["sentence"]) == ("load", True)
    normal = usual[50][0].execution.execution_id
    calm = await api.get(f"/api/workflows/executions/compare?execution={normal}&baseline=7d")
    assert calm["culprit"] is None or calm["percentile"] > 50
    pair = await api.get(f"/api/workflows/executions/compare?a={normal}&b={slow}")
    assert (pair["culprit"], pair["baseline"], pair["reference"]["execution_id"]) == ("load", None, normal)
    back = await api.get(f"/api/workflows/executions/compare?a={slow}&b={normal}")
    assert back["culprit"] is None
    assert "Nothing stands out" in back["sentence"]
    for query in ("", f"?a={slow}", f"?a={slow}&execution={slow}", f"?execution={slow}&baseline=never"):
        status, body = await api.call("GET", f"/api/workflows/executions/compare{query}")
        assert (status, body["code"]) == (422, "invalid_parameters")


async def test_the_sentence_and_the_table_show_the_same_share(api: Api) -> None:
    now = time.time()
    (usual,) = await record(api, a_run(now - 60, 2.0, extract=1.0))
    (slow,) = await record(api, a_run(now, 6.444, extract=1.35))
    pair = await api.get(f"/api/workflows/executions/compare?a={usual}&b={slow}")
    shares = {step["step_name"]: step["blame"] for step in pair["steps"]}
    assert shares["load"] + shares["extract"] == pytest.approx(1, abs=0.011)
    assert f"{100 * shares['load']:.0f} % of the slowdown" in pair["sentence"]
    # One step got faster, so the other explains more than the difference: still no more than all of it.
    (mixed,) = await record(api, a_run(now + 60, 6.0, extract=0.2))
    pair = await api.get(f"/api/workflows/executions/compare?a={usual}&b={mixed}")
    assert {step["step_name"]: step["blame"] for step in pair["steps"]} == {"load": 1.0, "extract": 0.0, "watch": 0.0}
    assert "100 % of the slowdown" in pair["sentence"]


BRANCHES = {
    "name": "branches",
    "variables": [{"name": "all", "data_type": "bool", "default_value": False}],
    "steps": [
        {"name": "read"},
        {"name": "everything", "step_type": "condition", "depends_on_steps": ["read"], "condition_expression": "all",
         "config": {"handler": "sleep", "seconds": 0.5}},
        {"name": "changes", "step_type": "condition", "depends_on_steps": ["read"], "condition_expression": "!all"},
    ],
}  # fmt: skip


async def test_a_step_of_the_branch_that_was_not_taken_before_is_not_blamed(api: Api) -> None:
    await api.call("POST", "/api/workflows", BRANCHES)
    few = [await api.run("branches", {"all": False}) for _ in range(3)]
    everything = await api.run("branches", {"all": True})
    for query in (f"a={few[0]}&b={everything}", f"execution={everything}"):
        comparison = await api.get(f"/api/workflows/executions/compare?{query}")
        steps = {step["step_name"]: step for step in comparison["steps"]}
        assert comparison["culprit"] is None, comparison["sentence"]
        assert (steps["everything"]["not_in_reference"], steps["everything"]["blame"]) == (True, 0.0)
        assert not steps["read"]["not_in_reference"]
        assert "It took another path: “everything” (" in comparison["sentence"]
        assert "% of the slowdown" not in comparison["sentence"]
    back = await api.get(f"/api/workflows/executions/compare?a={everything}&b={few[0]}")
    assert (back["culprit"], "another path" in back["sentence"]) == (None, False)
