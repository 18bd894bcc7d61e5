"""The HTTP API: routes, fields and errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, Counter
from tests.conftest import Api, serve

import tachograph
from tachograph.metrics.exposition import render_gzip
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import executions as executions_module
from tachograph_exporter.api import scrape as scrape_module
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.config import Config, ConfigError, parse_listen
from tachograph_exporter.views.schemas import timeline as schemas

SLOW = {
    "name": "slow",
    "steps": [
        {"name": "first"},
        {"name": "long", "depends_on_steps": ["first"], "config": {"handler": "sleep", "seconds": 30}},
        {"name": "flaky", "config": {"handler": "fail"}, "max_retries": 9,
         "retry_backoff": {"initial_seconds": 20, "jitter": 0}},
        {"name": "after", "depends_on_steps": ["long"]},
    ],
}  # fmt: skip
RETRY = {
    "name": "retry",
    "variables": [{"name": "n", "data_type": "int", "default_value": 1}],
    "steps": [
        {"name": "flaky", "config": {"handler": "fail", "times": 1, "message": "x"}, "max_retries": 2,
         "retry_backoff": {"initial_seconds": 0.02, "jitter": 0}},
        {"name": "skipped", "depends_on_steps": ["flaky"], "condition_expression": "n > 1"},
        {"name": "last", "depends_on_steps": ["flaky", "skipped"], "trigger_rule": "all_done"},
        {"name": "bad", "depends_on_steps": ["last"], "config": {"handler": "fail", "message": "token=hunter2"}},
    ],
}  # fmt: skip


async def register(api: Api, document: dict[str, Any]) -> str:
    status, body = await api.call("POST", "/api/workflows", document)
    assert status == 201, body
    return str(body["id"])


async def test_workflows_are_registered_listed_read_changed_and_deleted(api: Api) -> None:
    identifier = await register(api, RETRY)
    page = await api.get("/api/workflows")
    assert {key: page[key] for key in ("total", "skip", "limit")} == {"total": 1, "skip": 0, "limit": 50}
    assert page["items"][0]["id"] == identifier
    detail = await api.get(f"/api/workflows/{identifier}/")
    assert [step["name"] for step in detail["steps"]] == ["flaky", "skipped", "last", "bad"]
    assert all(step["id"] for step in detail["steps"])
    assert page["items"][0].items() <= detail.items()
    assert detail == await api.get("/api/workflows/retry")
    status, changed = await api.call("PATCH", f"/api/workflows/{identifier}", {"version": "2", "description": "new"})
    assert (status, changed["version"], changed["description"]) == (200, "2", "new")
    assert [{**step, "updated_at": None} for step in changed["steps"]] == [
        {**step, "updated_at": None} for step in detail["steps"]
    ]
    status, refused = await api.call("PATCH", f"/api/workflows/{identifier}", {"steps": []})
    assert (status, refused["code"], refused["errors"][0]["code"]) == (422, "invalid_workflow", "no_steps")
    status, exists = await api.call("POST", "/api/workflows", RETRY)
    assert (status, exists["code"]) == (409, "workflow_exists")
    await api.run(identifier)
    assert (await api.call("DELETE", f"/api/workflows/{identifier}"))[0] == 204
    assert (await api.call("GET", f"/api/workflows/{identifier}"))[0] == 404
    assert (await api.get("/api/workflows"))["total"] == 0


async def test_validation_names_everything_and_saves_nothing(api: Api) -> None:
    status, body = await api.call(
        "POST", "/api/workflows/validate", {"name": "w", "steps": [{"name": "a", "depends_on_steps": ["b"]}], "x": 1}
    )
    assert status == 200
    assert body["is_valid"] is False
    assert [fault["code"] for fault in body["errors"]] == ["unknown_key", "unknown_dependency"]
    assert body["warnings"][0]["code"] == "no_handler"
    status, body = await api.call("POST", "/api/workflows/validate", RETRY)
    assert body == {"is_valid": True, "errors": [], "warnings": body["warnings"]}
    assert (await api.get("/api/workflows"))["total"] == 0


async def test_templates_can_be_posted_as_they_are(api: Api) -> None:
    templates = await api.get("/api/workflows/templates")
    assert len(templates) >= 6
    for template in templates:
        await register(api, template)


async def test_execute_responds_with_202_once_the_execution_is_stored(api: Api) -> None:
    identifier = await register(api, SLOW)
    async with api.session.post(
        f"{api.address}/api/workflows/{identifier}/execute/", json={"input_variables": {}}
    ) as r:
        body = await r.json()
        assert r.status == 202
        assert r.headers["Location"] == f"/api/workflows/executions/{body['execution_id']}"
    assert body["status"] == "submitted"
    assert {"execution_id", "workflow_id", "message", "trace_id"} <= body.keys()
    # Without waiting: an acknowledged execution is stored.
    assert (await api.get(f"/api/workflows/executions/{body['execution_id']}/status"))["status"] in (
        "pending",
        "running",
    )


async def test_a_running_execution_has_a_timeline_with_open_steps_and_can_be_cancelled(api: Api) -> None:
    identifier = await register(api, SLOW)
    _, body = await api.call("POST", f"/api/workflows/{identifier}/execute")
    execution = body["execution_id"]
    while True:
        timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
        steps = {step["step_name"]: step for step in timeline["step_timeline"]}
        if steps.get("long", {}).get("status") == "running" and steps.get("flaky", {}).get("status") == "retrying":
            break
        await asyncio.sleep(0.01)
    assert timeline["status"] == "running"
    assert timeline["completed_at"] is None
    assert timeline["elapsed_seconds"] > 0
    assert steps["long"]["completed_at"] is None
    assert steps["long"]["duration_seconds"] is None
    assert steps["long"]["elapsed_seconds"] >= 0
    assert steps["flaky"]["attempts"][0]["status"] == "failed"
    assert [part["step_name"] for part in timeline["critical_path"]] == ["first", "long"]
    state = await api.get(f"/api/workflows/executions/{execution}/status")
    assert set(state["running_steps"]) == {"long", "flaky"}
    assert await state_without_steps(api, execution) == known_of(state)
    status, busy = await api.call("DELETE", f"/api/workflows/{identifier}")
    assert (status, busy["code"]) == (409, "workflow_busy")
    status, body = await api.call("POST", f"/api/workflows/executions/{execution}/cancel")
    assert (status, body["status"]) == (202, "cancelling")
    assert (await api.finished(execution))["status"] == "cancelled"
    status, body = await api.call("POST", f"/api/workflows/executions/{execution}/cancel")
    assert (status, body["code"]) == (409, "not_cancellable")


async def state_without_steps(api: Api, execution: str) -> dict[str, Any]:
    """The state of a run whose steps are too many to be read for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executions_module, "MAX_RESULT_STEPS", 1)
        return known_of(await api.get(f"/api/workflows/executions/{execution}/status"))


def known_of(state: dict[str, Any]) -> dict[str, Any]:
    """What does not change from one moment to the next, and is told of runs of any size."""
    return {**state, "elapsed_seconds": None, "results": None, "expected_end_at": None}


async def test_the_state_of_a_run_of_very_many_steps_is_told_without_reading_them(api: Api) -> None:
    execution = await api.run(await register(api, RETRY))
    state = await api.get(f"/api/workflows/executions/{execution}/status")
    assert (state["step_count"], state["running_steps"], len(state["results"]["step_statuses"])) == (4, [], 4)
    assert await state_without_steps(api, execution) == known_of(state)


async def test_a_timeline_has_every_field(api: Api) -> None:
    execution = await api.run(await register(api, RETRY))
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    fields = set(schemas.WorkflowExecutionTimeline.__struct_fields__)
    assert set(timeline) == fields
    counts = [timeline[f"{kind}step_count"] for kind in ("", "completed_", "failed_", "skipped_")]
    assert counts == [4, 2, 1, 1]
    steps = {step["step_name"]: step for step in timeline["step_timeline"]}
    assert all(set(step) == set(schemas.WorkflowStepTimelineEntry.__struct_fields__) for step in steps.values())
    flaky = steps["flaky"]
    assert (flaky["retry_count"], flaky["status"]) == (1, "completed")
    first, second = flaky["attempts"]
    assert (first["status"], first["error_message"], second["status"]) == ("failed", "x", "completed")
    assert second["backoff_seconds"] >= 0.02
    assert flaky["wait"]["backoff"] == pytest.approx(second["backoff_seconds"])
    assert flaky["duration_seconds"] > flaky["run_seconds"]
    assert steps["skipped"]["skip_reason"] == "condition"
    assert steps["skipped"]["started_at"] is None
    assert steps["last"]["depends_on"] == [flaky["step_id"], steps["skipped"]["step_id"]]
    assert [part["step_name"] for part in timeline["critical_path"]] == ["flaky", "last", "bad"]
    assert timeline["critical_path_seconds"] == pytest.approx(
        sum(steps[name]["duration_seconds"] for name in ("flaky", "last", "bad"))
    )
    assert flaky["on_critical_path"]
    assert flaky["slack_seconds"] == 0
    assert steps["bad"]["error_message"] == "token=[masked]"
    assert "Traceback" in steps["bad"]["error_stack"]
    assert "hunter2" not in json.dumps(timeline)
    assert timeline["trace_id"] == flaky["trace_id"]
    assert timeline["started_at"].endswith("Z")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("status=completed", {"flaky", "last"}),
        ("status=failed,skipped", {"skipped", "bad"}),
        ("status=failed&status=skipped", {"skipped", "bad"}),
        ("min_duration=20ms", {"flaky"}),
        ("max_duration=0.015", {"last", "bad"}),
        ("step=last", {"last"}),
        ("step=last,bad&status=failed", {"bad"}),
        ("status=running", set()),
    ],
)
async def test_timelines_are_filtered(api: Api, query: str, names: set[str]) -> None:
    execution = await api.run(await register(api, RETRY))
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline?{query}")
    assert {step["step_name"] for step in timeline["step_timeline"]} == names
    assert timeline["step_count"] == 4


async def test_measures_costs_and_log_lines_are_in_the_timeline(api: Api, handlers: HandlerRegistry) -> None:
    templates = await api.get("/api/workflows/templates")
    (chain,) = [item for item in templates if item["name"] == "agent_chain"]
    execution = await api.run(await register(api, chain))
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    review = timeline["step_timeline"][-1]
    assert review["measures"][0]["name"] == "distinct_words"
    assert review["cost"]["models"] == ["extractive-1"]
    total = sum(step["cost"]["usd"] for step in timeline["step_timeline"])
    assert timeline["cost_usd"] == pytest.approx(total)
    assert total > 0


async def test_the_chrome_format_is_what_trace_viewers_read(api: Api) -> None:
    execution = await api.run(await register(api, RETRY))
    trace = await api.get(f"/api/workflows/executions/{execution}/timeline?format=chrome")
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in complete] == [
        "run retry", "flaky", "flaky attempt 1", "backoff", "flaky attempt 2", "last", "bad",
    ]  # fmt: skip
    for event in complete:
        assert event["dur"] >= 0
        assert event["ts"] >= 0
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    (flaky, *inner) = complete[1:5]
    assert flaky["ts"] <= inner[0]["ts"]
    assert inner[1]["ts"] == pytest.approx(inner[0]["ts"] + inner[0]["dur"], abs=0.01)
    assert inner[1]["dur"] >= 20_000
    assert {event["tid"] for event in inner} == {flaky["tid"]}
    # An arrow begins and ends within the slices that it joins.
    slices = {event["name"]: event for event in complete}
    starts = {event["id"]: event for event in trace["traceEvents"] if event["ph"] == "s"}
    ends = {event["id"]: event for event in trace["traceEvents"] if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    joined = set()
    for flow, start in starts.items():
        (before, after) = [
            [e["name"] for e in (slices["flaky"], slices["last"], slices["bad"])
             if e["tid"] == event["tid"] and e["ts"] <= event["ts"] < e["ts"] + max(e["dur"], 0.001)]
            for event in (start, ends[flow])
        ]  # fmt: skip
        joined.add((before[0], after[-1]))
    assert joined == {("flaky", "last"), ("last", "bad")}


async def test_what_runs_reaches_to_now_in_the_chrome_format(api: Api) -> None:
    again = {"initial_seconds": 600, "max_seconds": 600, "jitter": 0}
    document = {
        "name": "long",
        "steps": [
            {"name": "sleep", "config": {"handler": "sleep", "seconds": 600}},
            {"name": "again", "config": {"handler": "fail"}, "max_retries": 2, "retry_backoff": again},
        ],
    }
    identifier = await register(api, document)
    _, body = await api.call("POST", f"/api/workflows/{identifier}/execute")
    path = f"/api/workflows/executions/{body['execution_id']}/timeline?format=chrome"

    async def durations() -> dict[str, float]:
        trace = await api.get(path)
        return {e["name"]: e["dur"] for e in trace["traceEvents"] if e["ph"] == "X" and e["args"].get("open")}

    async with asyncio.timeout(60):
        while not {"sleep", "backoff"} <= (first := await durations()).keys():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    second = await durations()
    # No heartbeat is due so soon: it is the clock that moves.
    for name in ("run long", "sleep", "again", "backoff"):
        assert second[name] >= first[name] + 300_000
    await api.call("POST", f"/api/workflows/executions/{body['execution_id']}/cancel")
    await api.finished(body["execution_id"])
    assert await durations() == {}


async def test_executions_are_listed_newest_first_and_filtered(api: Api) -> None:
    identifier = await register(api, RETRY)
    ids = [await api.run(identifier, {"n": n}) for n in range(3)]
    base = f"/api/workflows/{identifier}/executions"
    page = await api.get(f"{base}?limit=2")
    assert (page["total"], [item["execution_id"] for item in page["items"]]) == (3, [ids[2], ids[1]])
    assert [item["execution_id"] for item in (await api.get(f"{base}?skip=2&limit=2"))["items"]] == [ids[0]]
    assert (await api.get(f"{base}?status=completed"))["total"] == 0
    assert (await api.get(f"{base}?status=failed&from=1h"))["total"] == 3
    assert (await api.get(f"{base}?to=1h"))["total"] == 0
    assert (await api.get(f"{base}?min_duration=10m"))["total"] == 0
    moment = page["items"][0]["created_at"]
    assert (await api.get(f"{base}?from={moment}"))["total"] == 1
    item = page["items"][0]
    assert (item["step_count"], item["completed_step_count"], item["failed_step_count"]) == (4, 3, 1)
    detail = await api.get(f"/api/workflows/executions/{ids[0]}")
    assert detail["input_summary"] == {"n": 0}
    assert detail["timeline"]["execution_id"] == ids[0]


async def test_metrics_and_statistics_count_and_time(api: Api) -> None:
    good = {"name": "good", "steps": [{"name": "a", "config": {"handler": "sleep", "seconds": "${n}"}}],
            "variables": [{"name": "n", "data_type": "float"}]}  # fmt: skip
    identifier = await register(api, good)
    empty = await api.get(f"/api/workflows/{identifier}/metrics")
    assert (empty["total_executions"], empty["success_rate"], empty["average_duration_seconds"]) == (0, 0.0, 0.0)
    assert (empty["min_duration_seconds"], empty["p50"]) == (None, None)
    for seconds in (0.01, 0.03):
        await api.run(identifier, {"n": seconds})
    await api.run(await register(api, RETRY))
    metrics = await api.get(f"/api/workflows/{identifier}/metrics")
    assert (metrics["total_executions"], metrics["successful_executions"], metrics["success_rate"]) == (2, 2, 100.0)
    assert (
        0.01
        <= metrics["min_duration_seconds"]
        <= metrics["average_duration_seconds"]
        <= metrics["max_duration_seconds"]
    )
    assert metrics["max_duration_seconds"] >= 0.03
    assert metrics["average_duration_seconds"] == pytest.approx(metrics["total_duration_seconds"] / 2)
    assert (await api.get(f"/api/workflows/{identifier}/metrics?to=1h"))["total_executions"] == 0
    stats = await api.get("/api/workflows/executions/stats")
    assert (stats["total_executions"], stats["failed_executions"]) == (3, 1)
    assert stats["success_rate"] == pytest.approx(200 / 3)
    assert {w["workflow_name"]: w["total_executions"] for w in stats["workflows"]} == {"good": 2, "retry": 1}


async def test_health_and_readiness(api: Api) -> None:
    assert (await api.get("/-/healthy"))["status"] == "healthy"
    assert (await api.get("/-/ready"))["status"] == "ready"
    await api.service.stop_work()
    status, body = await api.call("GET", "/-/ready")
    assert (status, body["faults"]) == (503, ["the service is shutting down"])
    await register(api, RETRY)
    status, body = await api.call("POST", "/api/workflows/retry/execute")
    assert (status, body["code"]) == (503, "shutting_down")


BAD: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/api/workflows/nope", None, 404, "workflow_not_found"),
    ("GET", "/api/workflows/nope/metrics", None, 404, "workflow_not_found"),
    ("GET", "/api/workflows/nope/executions", None, 404, "workflow_not_found"),
    ("POST", "/api/workflows/nope/execute", {}, 404, "workflow_not_found"),
    ("GET", "/api/workflows/executions/nope", None, 404, "execution_not_found"),
    ("GET", "/api/workflows/executions/nope/timeline", None, 404, "execution_not_found"),
    ("GET", "/api/workflows/executions/nope/status", None, 404, "execution_not_found"),
    ("GET", "/api/workflows/executions/nope/reconcile", None, 404, "execution_not_found"),
    ("POST", "/api/workflows/executions/nope/cancel", None, 404, "execution_not_found"),
    ("GET", "/api/workflows?workspace_id=nope", None, 404, "workspace_not_found"),
    ("GET", "/api/workflows?workspace_slug=nope", None, 404, "workspace_not_found"),
    ("GET", "/api/workflows?project_id=nope", None, 404, "project_not_found"),
    ("GET", "/api/workflows?limit=0", None, 422, "invalid_parameters"),
    ("GET", "/api/workflows?limit=ten", None, 422, "invalid_parameters"),
    ("GET", "/api/workflows?limti=10", None, 422, "invalid_parameters"),
    ("GET", "/api/workflows/retry/executions?status=faild", None, 422, "invalid_parameters"),
    ("GET", "/api/workflows/retry/executions?from=yesterday", None, 422, "invalid_parameters"),
    ("GET", "/api/workflows/executions/x/timeline?format=svg", None, 422, "invalid_parameters"),
    ("POST", "/api/workflows/retry/execute", {"input_variables": {"n": "1"}}, 422, "invalid_inputs"),
    ("POST", "/api/workflows/retry/execute", {"input_variables": []}, 422, "invalid_body"),
    ("POST", "/api/workflows/retry/execute", {"inputs": {}}, 422, "invalid_body"),
    ("POST", "/api/workflows", [], 422, "invalid_body"),
    ("POST", "/api/workflows", {"name": "x"}, 422, "invalid_workflow"),
    ("GET", "/api/nothing/here", None, 404, "no_such_route"),
    ("DELETE", "/api/workflows", None, 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), BAD)
async def test_errors_are_problems_with_a_stable_code(
    api: Api, method: str, path: str, body: Any, status: int, code: str
) -> None:
    await register(api, RETRY)
    async with api.session.request(method, api.address + path, json=body) as response:
        problem = await response.json(content_type=None)
        assert (response.status, problem["code"]) == (status, code)
        assert response.content_type == "application/problem+json"
        assert problem["status"] == status
        assert problem["detail"]


async def test_all_faults_of_a_query_are_listed_with_their_places(api: Api) -> None:
    _, body = await api.call("GET", "/api/workflows?limit=x&skip=-1&workspce_id=1")
    assert [fault["at"] for fault in body["errors"]] == ["skip", "limit", "workspce_id"]
    assert 'did you mean "workspace_id"' in body["errors"][2]["message"]


async def test_hostile_bodies_are_refused(api: Api) -> None:
    async def post(data: Any, content_type: str = "application/json", **headers: str) -> tuple[int, str]:
        async with api.session.post(
            f"{api.address}/api/workflows", data=data, headers={"Content-Type": content_type, **headers}
        ) as response:
            return response.status, (await response.json(content_type=None))["code"]

    assert await post(b"{") == (400, "invalid_json")
    assert await post(b"\xff\xfe") == (400, "invalid_json")
    assert await post(b'{"name":' * 100_000) == (400, "invalid_json")
    assert await post(b"[" * 100_000) == (422, "invalid_body")
    assert await post(b"{}", "text/plain") == (415, "unsupported_media_type")
    assert await post(b'{"name": "\\ud800", "steps": []}') in [(400, "invalid_json"), (422, "invalid_workflow")]

    async def chunks() -> Any:
        for _ in range(50):
            yield b" " * 1_000_000

    # The server may also close the connection before the whole body is sent.
    with contextlib.suppress(aiohttp.ClientOSError):
        assert await post(chunks()) == (413, "body_too_large")
    assert (await api.get("/-/healthy"))["status"] == "healthy"


async def test_a_too_large_content_length_is_413_before_the_body_is_read(api: Api) -> None:
    host, port = api.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 52428800\r\n\r\n"
    )
    answer = await reader.read(400)
    assert b" 413 " in answer.splitlines()[0]
    writer.close()


async def test_unicode_names_are_preserved(api: Api) -> None:
    name = "<img src=x onerror=alert(1)> ☃ Ünï"
    identifier = await register(api, {"name": name, "steps": [{"name": "schritt ☃"}]})
    execution = await api.run(identifier)
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    assert timeline["workflow_name"] == name
    assert timeline["step_timeline"][0]["step_name"] == "schritt ☃"
    assert "schritt ☃" in await api.metrics()


async def test_rows_of_another_workspace_are_not_found(api: Api) -> None:
    from tachograph_exporter.store.workspaces import add_project, add_workspace

    other = await api.service.database.write(lambda c: add_workspace(c, "other", 1))
    await api.service.database.write(lambda c: add_project(c, "other", "default", 1))
    identifier = await register(api, RETRY)
    execution = await api.run(identifier)
    for headers in ({"X-Workspace-Id": other}, {"X-Workspace-Slug": "other"}):
        for method, path in ((route.method, route.path) for route in ROUTES):
            filled = path.replace("{workflow_id}", identifier).replace("{execution_id}", execution)
            filled = filled.replace("{step_id}", "x") if filled != path else filled
            if "{" not in path or path == filled:
                continue
            status, body = await api.call(method, filled, {} if method != "GET" else None, headers=headers)
            assert (status, body["code"]) in [(404, "workflow_not_found"), (404, "execution_not_found")], path
        assert (await api.get("/api/workflows", headers=headers))["total"] == 0
        assert (await api.get("/api/workflows/executions/stats", headers=headers))["total_executions"] == 0
    # Another workspace may use the same name.
    status, _ = await api.call("POST", "/api/workflows?workspace_slug=other", RETRY)
    assert status == 201
    status, body = await api.call("GET", "/api/workflows?workspace_slug=other", headers={"X-Workspace-Slug": "default"})
    assert (status, body["errors"][0]["code"]) == (422, "conflict")


async def test_the_callers_trace_is_continued(api: Api) -> None:
    identifier = await register(api, RETRY)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _, body = await api.call("POST", f"/api/workflows/{identifier}/execute", {}, headers={"traceparent": parent})
    assert body["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    await api.finished(body["execution_id"])


async def test_beyond_loopback_a_token_is_required(database_url: str, handlers: HandlerRegistry) -> None:
    with pytest.raises(ConfigError, match="token"):
        Config(host="0.0.0.0").check()
    with pytest.raises(ConfigError, match="at least 16"):
        Config(token="short").check()
    token = "x" * 20
    async for api in serve(Config(database=database_url, token=token), handlers):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            status, body = await api.call("GET", "/api/workflows", headers=headers)
            assert (status, body["code"]) == (401, "unauthorized")
            assert (await api.call("GET", "/metrics", headers=headers))[0] == 401
        good = {"Authorization": f"Bearer {token}"}
        assert (await api.get("/api/workflows", headers=good))["total"] == 0
        assert (await api.get("/-/healthy"))["status"] == "healthy"


async def test_without_a_token_a_foreign_host_name_is_refused(api: Api) -> None:
    status, body = await api.call("GET", "/api/workflows", headers={"Host": "evil.example:9923"})
    assert (status, body["code"]) == (421, "wrong_host")
    for host in ("localhost:1", "127.0.0.1", "[::1]:9923"):
        assert (await api.call("GET", "/-/healthy", headers={"Host": host}))[0] == 200


def test_listen_addresses_are_parsed() -> None:
    assert parse_listen("127.0.0.1:9923") == ("127.0.0.1", 9923)
    assert parse_listen("[::1]:80") == ("::1", 80)
    assert parse_listen("9923") == ("127.0.0.1", 9923)
    assert parse_listen(":9923") == ("0.0.0.0", 9923)
    for bad in ("x", "host:", "host:70000", "host:-1"):
        with pytest.raises(ConfigError):
            parse_listen(bad)


async def test_scrapes_are_negotiated_filtered_and_compressed(api: Api) -> None:
    await api.run(await register(api, RETRY))

    async def scrape(query: str = "", **headers: str) -> tuple[str, bytes]:
        async with api.session.get(f"{api.address}/metrics{query}", headers=headers) as response:
            assert response.status == 200
            return response.headers["Content-Type"], await response.read()

    kind, text = await scrape(Accept="text/plain")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert b"workflow_step_duration_seconds_bucket{" in text
    assert b"process_cpu_seconds_total" in text
    assert b"tachograph_events_delivered_total" in text
    kind, text = await scrape(Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")
    assert b' # {span_id="' in text
    protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
    kind, text = await scrape(Accept=protobuf)
    assert kind.startswith("application/vnd.google.protobuf")
    assert b"workflow_step_duration_seconds" in text
    _, text = await scrape("?name[]=workflow_steps_skipped_total&name[]=tachograph_build_info", Accept="text/plain")
    names = {line.split("{")[0].split(" ")[0] for line in text.decode().splitlines() if not line.startswith("#")}
    assert names == {"workflow_steps_skipped_total", "workflow_steps_skipped_created", "tachograph_build_info"}
    async with api.session.get(f"{api.address}/metrics", headers={"Accept-Encoding": "identity"}) as response:
        assert "Content-Encoding" not in response.headers


async def test_steps_and_metrics_of_handlers_themselves_are_recorded_and_exposed(api: Api) -> None:
    seen = Counter("handlers_seen", "A metric of a handler.", registry=REGISTRY)

    @tachograph.step
    def inner() -> None:
        seen.inc()

    @api.service.executor.handlers.register("test.outer")
    def outer(_context: Any) -> None:
        inner()

    @tachograph.workflow
    def beside() -> None:
        inner()

    try:
        await register(api, {"name": "w", "steps": [{"name": "a", "config": {"handler": "test.outer"}}]})
        timeline = await api.get(f"/api/workflows/executions/{await api.run('w')}/timeline")
        assert [step["step_name"] for step in timeline["step_timeline"]] == ["a", "inner"]
        assert timeline["step_timeline"][1]["parent_step_id"] == timeline["step_timeline"][0]["step_id"]
        await asyncio.to_thread(beside)
        await asyncio.to_thread(api.service.recorder.flush)
        stats = await api.get("/api/workflows/executions/stats")
        assert {w["workflow_name"] for w in stats["workflows"]} == {"w", "beside"}
        text = await api.metrics(headers={"Accept": "text/plain"})
        assert "handlers_seen_total 2.0" in text
        assert text.count("# TYPE workflow_step_duration_seconds histogram") == 1
    finally:
        REGISTRY.unregister(seen)


async def test_a_scrape_that_exceeds_the_scrape_timeout_is_abandoned(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_args: Any, **_options: Any) -> bytes:
        time.sleep(0.5)
        return b""

    monkeypatch.setattr(scrape_module, "render_gzip", slow)
    status, body = await api.call("GET", "/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "0.1"})
    assert (status, body["code"]) == (503, "scrape_timeout")


async def test_concurrent_scrapes_share_one_rendering(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    asked = 0
    all_have_asked = threading.Event()
    scrape = scrape_module.Scraper.scrape

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 8:
            all_have_asked.set()
        return await scrape(*args, **options)

    def slow(*args: Any, **options: Any) -> bytes:
        calls.append(1)
        assert all_have_asked.wait(60)
        return render_gzip(*args, **options)

    monkeypatch.setattr(scrape_module.Scraper, "scrape", counted)
    monkeypatch.setattr(scrape_module, "render_gzip", slow)
    bodies = await asyncio.gather(*(api.get("/metrics") for _ in range(8)))
    assert len(calls) == 1
    assert len(set(bodies)) == 1


KEYS = st.sampled_from(["name", "steps", "config", "variables", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON)
async def test_no_json_body_causes_a_server_error(api: Api, body: Any) -> None:
    status, _ = await api.call("POST", "/api/workflows/validate", body)
    assert status in ((415,) if body is None else (200, 422) if isinstance(body, dict) else (422,))
    status, _ = await api.call("POST", "/api/workflows", {"name": "w", "steps": body})
    assert status in (201, 409, 422)
