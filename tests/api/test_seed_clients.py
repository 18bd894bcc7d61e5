"""Clients written for the system that this API is compatible with: their requests, and the fields that they read.

The tables say what that system's documents, schemas and tests expect: method, path, body, status, every field and its
type. A check fails only if `STAYS` names it, and `docs/compatibility.md` says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from tests.conftest import ROOT, Api, running

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.stream import hub

Shape = Mapping[str, Any]
"""The type of each field: a type, a tuple of them (None: null), a list of one shape, or a shape."""

TEXT, TIME, ID = str, str, str
NUMBER: Final = (int, float)
MAYBE_TEXT: Final = (str, None)
MAYBE_NUMBER: Final = (int, float, None)
MAYBE_OBJECT: Final = (dict, None)

STEP: Final[Shape] = {
    "id": ID, "workflow_id": ID, "name": TEXT, "step_type": TEXT, "step_order": int, "config": dict,
    "timeout_seconds": MAYBE_NUMBER, "max_retries": MAYBE_NUMBER, "depends_on_steps": list,
    "agent_definition_id": MAYBE_TEXT, "agent_instance_id": MAYBE_TEXT,
    "condition_expression": MAYBE_TEXT, "metadata": dict, "created_at": TIME, "updated_at": TIME,
}  # fmt: skip
VARIABLE: Final[Shape] = {
    "id": ID, "workflow_id": ID, "name": TEXT, "data_type": TEXT, "is_required": bool, "default_value": object,
    "description": MAYBE_TEXT, "metadata": dict, "created_at": TIME, "updated_at": TIME,
}  # fmt: skip
WORKFLOW: Final[Shape] = {
    "id": ID, "workspace_id": ID, "project_id": ID, "name": TEXT, "description": MAYBE_TEXT, "version": int,
    "is_active": bool, "config": dict, "timeout_seconds": NUMBER, "max_retries": int, "metadata": dict,
    "created_at": TIME, "updated_at": TIME, "steps": [STEP], "variables": [VARIABLE],
}  # fmt: skip
EXECUTION: Final[Shape] = {
    "id": ID, "workflow_id": ID, "workspace_id": ID, "project_id": ID, "execution_number": int, "status": TEXT,
    "input_variables": MAYBE_OBJECT, "results": MAYBE_OBJECT, "started_at": MAYBE_TEXT, "completed_at": MAYBE_TEXT,
    "duration": MAYBE_NUMBER, "error_message": MAYBE_TEXT, "error_details": MAYBE_OBJECT, "metadata": dict,
    "created_at": TIME, "updated_at": TIME,
}  # fmt: skip
STEP_EXECUTION: Final[Shape] = {
    "id": ID, "execution_id": ID, "step_id": ID, "status": TEXT, "input_data": MAYBE_OBJECT,
    "output_data": MAYBE_OBJECT, "started_at": MAYBE_TEXT, "completed_at": MAYBE_TEXT, "duration": MAYBE_NUMBER,
    "retry_count": int, "error_message": MAYBE_TEXT, "error_details": MAYBE_OBJECT, "metadata": dict,
    "created_at": TIME, "updated_at": TIME,
}  # fmt: skip
TIMELINE_STEP: Final[Shape] = {
    "step_id": ID, "step_name": TEXT, "step_order": int, "status": TEXT, "started_at": MAYBE_TEXT,
    "completed_at": MAYBE_TEXT, "duration_seconds": MAYBE_NUMBER, "retry_count": int, "error_message": MAYBE_TEXT,
    "input_summary": MAYBE_OBJECT, "output_summary": MAYBE_OBJECT,
}  # fmt: skip
TIMELINE: Final[Shape] = {
    "execution_id": ID, "workflow_id": ID, "status": TEXT, "started_at": MAYBE_TEXT, "completed_at": MAYBE_TEXT,
    "total_duration_seconds": MAYBE_NUMBER, "step_count": int, "completed_step_count": int, "failed_step_count": int,
    "skipped_step_count": int, "error_message": MAYBE_TEXT, "step_timeline": [TIMELINE_STEP],
}  # fmt: skip
METRICS: Final[Shape] = {
    "total_duration_seconds": float, "success_rate": float, "total_executions": int, "successful_executions": int,
    "failed_executions": int, "average_duration_seconds": float, "min_duration_seconds": MAYBE_NUMBER,
    "max_duration_seconds": MAYBE_NUMBER,
}  # fmt: skip
STATUS: Final[Shape] = {
    "execution_id": ID, "workflow_id": ID, "status": TEXT, "started_at": MAYBE_TEXT, "completed_at": MAYBE_TEXT,
    "duration": MAYBE_NUMBER, "error_message": MAYBE_TEXT, "results": MAYBE_OBJECT,
}  # fmt: skip
STATS: Final[Shape] = {
    "total_executions": int, "recent_executions_24h": int, "status_counts": dict, "workflow_engine_stats": dict,
}  # fmt: skip
TEMPLATE: Final[Shape] = {"id": ID, "name": TEXT, "description": TEXT, "steps": list, "variables": list}
FAULT: Final[Shape] = {"error_type": TEXT, "message": TEXT, "step_name": MAYBE_TEXT}
VALIDATION: Final[Shape] = {"is_valid": bool, "errors": [FAULT], "warnings": [str]}
SUBMITTED: Final[Shape] = {"status": "submitted", "execution_id": ID, "workflow_id": ID, "message": TEXT}
ERROR: Final[Shape] = {"detail": TEXT}


def page_of(item: Shape) -> Shape:
    return {"items": [item], "total": int, "skip": int, "limit": int}


ETL: Final = {
    "name": "Sequential Task",
    "description": "A simple 3-step workflow",
    "timeout_seconds": 3600,
    "max_retries": 0,
    "config": {},
    "variables": [
        {"name": "input", "data_type": "json", "is_required": True, "description": "Input payload", "metadata": {}}
    ],
    "steps": [
        {"name": "prepare", "step_type": "task", "step_order": 1, "timeout_seconds": 120, "max_retries": 1,
         "description": "Read it",
         "depends_on_steps": [], "config": {"handler": "fail", "times": 1}, "metadata": {}},
        {"name": "process", "step_type": "agent", "step_order": 2, "depends_on_steps": ["prepare"],
         "config": {"assignment_strategy": "round_robin", "required_capabilities": ["x"]},
         "agent_definition_id": None, "meta_data": {}},
        {"name": "optional", "step_type": "condition", "step_order": 2, "depends_on_steps": ["prepare"],
         "condition_expression": "false", "config": {}},
        {"name": "finalize", "step_type": "task", "step_order": 3, "depends_on_steps": ["process"], "config": {}},
    ],
    "metadata": {"source": "docs/API.md"},
}  # fmt: skip
BROKEN: Final = {
    "name": "Broken", "timeout_seconds": 60, "steps": [
        {"name": "bad", "step_type": "task", "step_order": 1, "config": {"handler": "fail", "message": "no data"}},
        {"name": "after", "step_type": "task", "step_order": 2, "depends_on_steps": ["bad"]},
    ],
}  # fmt: skip
SLOW: Final = {
    "name": "Slow", "timeout_seconds": 60, "steps": [
        {"name": "wait", "step_type": "task", "step_order": 1, "config": {"handler": "sleep", "seconds": "${n}"}},
    ], "variables": [{"name": "n", "data_type": "float", "default_value": 50.0}],
}  # fmt: skip


def steps(*given: tuple[str, Sequence[str]], orders: Sequence[int] = ()) -> dict[str, Any]:
    return {
        "name": "checked",
        "steps": [
            {"name": name, "step_type": "task", "step_order": orders[i] if orders else i + 1, "depends_on_steps": needs}
            for i, (name, needs) in enumerate(given)
        ],
    }


VALIDATED: Final[Sequence[tuple[str, dict[str, Any], str | None]]] = (
    # What is checked, the definition, the error type.
    ("valid", steps(("a", ()), ("b", ("a",)), ("c", ("b",))), None),
    ("diamond", steps(("a", ()), ("b", ("a",)), ("c", ("a",)), ("d", ("b", "c")), orders=(1, 2, 2, 3)), None),
    ("no steps", {"name": "checked", "steps": []}, "MISSING_STEPS"),
    ("cycle", steps(("a", ("c",)), ("b", ("a",)), ("c", ("b",))), "CIRCULAR_DEPENDENCY"),
    ("self", steps(("a", ("a",))), "SELF_DEPENDENCY"),
    ("unknown", steps(("a", ("nothing",))), "MISSING_DEPENDENCY"),
    ("twice", steps(("a", ()), ("a", ())), "DUPLICATE_STEP_NAME"),
    ("gap", steps(("a", ()), ("b", ()), orders=(1, 3)), "NON_SEQUENTIAL"),
)

EVENT: Final[Shape] = {
    "event_type": TEXT, "timestamp": TIME, "workspace_id": ID, "task_id": None, "run_id": None, "workflow_id": ID,
    "workflow_execution_id": ID, "workflow_step_id": MAYBE_TEXT, "agent_id": None, "data": dict, "message": TEXT,
    "event": TEXT,
}  # fmt: skip
_OF_RUN: Final[Shape] = {"execution_id": ID, "workflow_id": ID, "timestamp": TIME, "step_count": int}
_OF_ENDED: Final[Shape] = {**_OF_RUN, "completed_steps": int, "failed_steps": int, "skipped_steps": int}
_OF_STEP: Final[Shape] = {"execution_id": ID, "step_id": ID, "step_name": TEXT, "timestamp": TIME}
EVENT_DATA: Final[Mapping[str, Shape]] = {
    "workflow_started": {**_OF_RUN, "workflow_name": TEXT, "input_variables": dict},
    "workflow_completed": {**_OF_ENDED, "status": "completed", "duration_seconds": float},
    "workflow_failed": {**_OF_ENDED, "error": TEXT, "error_message": TEXT, "error_type": TEXT},
    "workflow_cancelled": _OF_RUN,
    "step_started": {**_OF_STEP, "step_type": TEXT, "step_order": int, "config": dict},
    "step_completed": {**_OF_STEP, "duration_seconds": float, "duration": float, "output": dict, "output_data": dict},
    "step_failed": {**_OF_STEP, "error": TEXT, "error_message": TEXT, "duration": float, "retry_count": int},
    "step_skipped": _OF_STEP,
}

STAYS: Final[Mapping[str, str]] = {
    # The check: what the documentation says about it.
    "create: a name that exists: status": "`workflow_exists`",
    "create: invalid: status": "`invalid_workflow`",
    "create: invalid: detail": "`detail` is a sentence",
    "create: unknown project: status": "`project_not_found`",
    "execute: status": "202",
    "execute: an unknown input: status": "`invalid_inputs`",
    "cancel: status": "202",
    "cancel: status field": "`cancelling`",
    "cancel: ended: status": "`not_cancellable`",
    "delete: status": "204",
    "delete: body": "204",
    "list executions: unknown status: status": "`invalid_parameters`",
    "list: default limit": "`limit`",
    "workflow.version": "`version`",
    "workflow.timeout_seconds by default": "`timeout_seconds`",
    "workflow.max_retries by default": "`max_retries`",
    "workflow.steps[].agent_definition_id": "`agent_definition_id`",
    "workflow.steps[].agent_instance_id": "`agent_instance_id`",
    "execution.metadata": "`metadata`",
    "execution.step_executions[].metadata": "`metadata`",
    "metrics.success_rate: cancelled executions": "`success_rate`",
    "validate: gap: error type": "`step_order`",
    "validate.warnings": "`warnings`",
    "workflow_started.input_variables": "inputs and outputs",
    "step_started.config": "`config`",
    "step_completed.output": "inputs and outputs",
    "step_completed.output_data": "inputs and outputs",
}


class Checks:
    """Collects what holds and what does not."""

    def __init__(self) -> None:
        self.count = 0
        self.failed: dict[str, Any] = {}

    def check(self, name: str, holds: bool, actual: Any = None) -> None:
        self.count += 1
        if not holds:
            self.failed[name] = actual

    def equal(self, name: str, actual: Any, expected: Any) -> None:
        self.check(name, actual == expected, actual)

    def shape(self, name: str, value: Any, shape: Shape) -> None:
        """Check every field of ``value``."""
        for field, kind in shape.items():
            self.check(f"{name}.{field}", field in value and _fits(value[field], kind), value.get(field, "is missing"))
            if isinstance(kind, list) and isinstance(kind[0], Mapping):
                for item in value.get(field, ()):
                    self.shape(f"{name}.{field}[]", item, kind[0])

    def done(self, prefixes: Sequence[str]) -> None:
        """Exactly what `STAYS` names under these prefixes has failed."""
        stays = {name for name in STAYS if name.startswith(tuple(prefixes))}
        assert {name: self.failed[name] for name in self.failed if name not in stays} == {}
        assert stays - self.failed.keys() == set(), "no difference any more"


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(_fits(value, other) for other in kind)
    if kind is None or isinstance(kind, str):
        return bool(value == kind)
    if isinstance(kind, list):
        return isinstance(value, list) and (isinstance(kind[0], Mapping) or all(_fits(v, kind[0]) for v in value))
    if kind is int or kind is float:
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, kind)


async def created(api: Api, document: Mapping[str, Any]) -> str:
    status, body = await api.call("POST", "/api/workflows/", document)
    assert status == 201, body
    return str(body["id"])


async def executed(api: Api, workflow: str, **inputs: Any) -> str:
    status, body = await api.call("POST", f"/api/workflows/{workflow}/execute", {"input_variables": inputs})
    assert status in (200, 202), body
    return str(body["execution_id"])


async def test_definitions(api: Api) -> None:
    checks = Checks()
    status, workflow = await api.call("POST", "/api/workflows/", {**ETL, "project_id": "default"})
    checks.equal("create: status", status, 201)
    checks.shape("workflow", workflow, WORKFLOW)
    # Whatever a definition may say is kept.
    assert [step["description"] for step in workflow["steps"]] == ["Read it", "", "", ""]
    _, plain = await api.call("POST", "/api/workflows/", {"name": "plain", "steps": BROKEN["steps"]})
    checks.equal("workflow.timeout_seconds by default", plain["timeout_seconds"], 3600)
    checks.equal("workflow.max_retries by default", plain["max_retries"], 3)
    checks.equal("create: a name that exists: status", (await api.call("POST", "/api/workflows/", ETL))[0], 400)
    status, body = await api.call("POST", "/api/workflows/", VALIDATED[3][1])
    checks.equal("create: invalid: status", status, 400)
    checks.check("create: invalid: detail", isinstance(body["detail"], dict), body["detail"])
    status, body = await api.call("POST", "/api/workflows/", {**BROKEN, "project_id": "nothing"})
    checks.equal("create: unknown project: status", status, 400)
    checks.shape("create: unknown project", body, ERROR)

    page = await api.get("/api/workflows/?skip=0&limit=10&project_id=default&is_active=true")
    checks.shape("list", page, page_of({}))
    for item in page["items"]:
        checks.shape("list.items[]", item, {**WORKFLOW, "version": object, "timeout_seconds": object, "steps": list})
    listed = {item["id"]: item for item in page["items"]}
    checks.equal("list: as it was created", {**listed[workflow["id"]], "warnings": []}, {**workflow, "warnings": []})
    checks.equal("list: default limit", (await api.get("/api/workflows"))["limit"], 10)
    path = f"/api/workflows/{workflow['id']}"
    checks.equal("get: as it was created", await api.get(path), {**workflow, "warnings": []})
    checks.equal("get: without steps", (await api.get(f"{path}?include_steps=false"))["steps"], [])
    for method, known in (("GET", "workflow"), ("PATCH", "workflow"), ("DELETE", "workflow")):
        status, body = await api.call(method, "/api/workflows/nothing", {} if method == "PATCH" else None)
        checks.equal(f"{method} an unknown {known}: status", status, 404)
        checks.shape(f"{method} an unknown {known}", body, ERROR)
    change = {"description": "new", "config": {"a": 1}, "timeout_seconds": 60, "max_retries": 2, "meta_data": {"b": 2}}
    status, changed = await api.call("PATCH", path, change)
    checks.equal("change: status", status, 200)
    expected = {**change, "metadata": change["meta_data"]}
    for name in ("description", "config", "timeout_seconds", "max_retries", "metadata"):
        checks.equal(f"change: {name}", changed[name], expected[name])
    for headers in ({"X-Workspace-Id": "nothing"}, {"X-Workspace-Slug": "nothing"}):
        checks.equal("unknown workspace: status", (await api.call("GET", "/api/workflows/", headers=headers))[0], 404)

    templates = await api.get("/api/workflows/templates")
    checks.check("templates: a list", isinstance(templates, list) and len(templates) > 0)
    for template in templates:
        checks.shape("templates[]", template, TEMPLATE)
    for name, document, error_type in VALIDATED:
        status, body = await api.call("POST", "/api/workflows/validate", document)
        checks.equal(f"validate: {name}: status", status, 200)
        checks.shape("validate", body, VALIDATION)
        checks.equal(f"validate: {name}: error type", body["is_valid"], error_type is None)
        if error_type is not None:
            given = [fault["error_type"] for fault in body["errors"]]
            checks.check(f"validate: {name}: error type", any(error_type in text for text in given), given)
    checks.done(("create", "workflow.", "list: ", "validate"))
    assert checks.count > 200


async def test_an_inactive_workflow_is_listed_and_not_executed(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    async with running(Config(database=any_database_url, grace_seconds=0.2), handlers) as api:
        identifier = await created(api, {**BROKEN, "is_active": False})
        await created(api, SLOW)
        path = f"/api/workflows/{identifier}"
        assert (await api.get(path))["is_active"] is False
        for query, names in (("", ["Broken", "Slow"]), ("?is_active=false", ["Broken"]), ("?is_active=True", ["Slow"])):
            page = await api.get(f"/api/workflows/{query}")
            assert ([item["name"] for item in page["items"]], page["total"]) == (names, len(names))
        status, body = await api.call("POST", f"{path}/execute", {"input_variables": {}})
        assert (status, body["code"]) == (400, "workflow_inactive")
        assert "inactive" in body["detail"]
        assert (await api.get(f"{path}/executions"))["total"] == 0
        # Other changes leave it inactive; a program may still record runs of it.
        assert (await api.call("PATCH", path, {"description": "new"}))[1]["is_active"] is False
        status, body = await api.call("PATCH", path, {"is_active": True})
        assert (status, body["is_active"], body["description"]) == (200, True, "new")
        key = {"Idempotency-Key": "once"}
        status, body = await api.call("POST", f"{path}/execute", {}, headers=key)
        assert status == 202
        await api.finished(body["execution_id"])
        assert (await api.call("PATCH", path, {"is_active": False}))[1]["is_active"] is False
        # What was accepted before is answered again; nothing else starts.
        assert (await api.call("POST", f"{path}/execute", {}, headers=key))[1] == body
        assert (await api.call("POST", f"{path}/execute", {}))[0] == 400
        assert (await api.get(f"{path}/executions"))["total"] == 1
        for wrong in ("no", 1, "true"):
            status, body = await api.call("PATCH", path, {"is_active": wrong})
            assert (status, body["errors"][0]["at"]) == (422, "is_active")
        assert (await api.call("GET", "/api/workflows?is_active=perhaps"))[0] == 422


async def test_executions(api: Api) -> None:
    checks = Checks()
    workflow, broken, slow = [await created(api, document) for document in (ETL, BROKEN, SLOW)]
    body = {"input_variables": {"input": {"hello": "world"}}, "metadata": {"requested_by": "ui"}}
    status, submitted = await api.call("POST", f"/api/workflows/{workflow}/execute", body)
    checks.equal("execute: status", status, 200)
    checks.shape("execute", submitted, SUBMITTED)
    checks.equal("execute: unknown: status", (await api.call("POST", "/api/workflows/nothing/execute", body))[0], 404)
    empty = await api.get(f"/api/workflows/{broken}/metrics")
    checks.shape("metrics", empty, METRICS)
    checks.equal("metrics: without executions", [empty["success_rate"], empty["average_duration_seconds"]], [0.0, 0.0])
    first = submitted["execution_id"]
    await api.finished(first)
    second = await executed(api, workflow, input={})
    failing, waiting = await executed(api, broken), await executed(api, slow)
    for execution_id in (second, failing):
        await api.finished(execution_id)

    for query in ("", "?skip=0&limit=10&status=completed", "?limit=100"):
        page = await api.get(f"/api/workflows/{workflow}/executions{query}")
        checks.shape("executions", page, page_of({}))
        for item in page["items"]:
            checks.shape("execution", item, EXECUTION)
    checks.equal("execution_number", {i["id"]: i["execution_number"] for i in page["items"]}, {first: 1, second: 2})
    detail: dict[str, Any] = {}
    for execution_id, workflow_id in ((first, workflow), (failing, broken), (waiting, slow)):
        path = f"/api/workflows/executions/{execution_id}"
        detail = await api.get(path)
        checks.shape("execution", detail, {**EXECUTION, "step_executions": [STEP_EXECUTION]})
        status_body, timeline = await api.get(f"{path}/status"), await api.get(f"{path}/timeline")
        checks.shape("status", status_body, STATUS)
        checks.shape("timeline", timeline, TIMELINE)
        checks.shape("metrics", await api.get(f"/api/workflows/{workflow_id}/metrics"), METRICS)
        checks.equal("execution: execution number", detail["execution_number"], 1)
        if execution_id != waiting:
            same = [detail["duration"], detail["duration_seconds"], timeline["total_duration_seconds"]]
            checks.equal("one duration", {*same, status_body["duration"]}, {same[0]})
            checks.equal("one result", status_body["results"], detail["results"])
            entries = {entry["step_id"]: entry for entry in timeline["step_timeline"]}
            checks.equal("one list of steps", [s["step_id"] for s in detail["step_executions"]], list(entries))
            statuses = {key: entry["status"] for key, entry in entries.items()}
            checks.equal("results: statuses", detail["results"]["step_statuses"], statuses)
    checks.equal("status of a running execution", [detail["results"], detail["duration"]], [None, None])
    first_detail = await api.get(f"/api/workflows/executions/{first}")
    checks.equal("inputs", first_detail["input_variables"], body["input_variables"])
    checks.equal("retries", [s["retry_count"] for s in first_detail["step_executions"]], [1, 0, 0, 0])
    failed = await api.get(f"/api/workflows/executions/{failing}")
    checks.equal("error type", failed["error_details"]["error_type"], failed["error_type"])
    stats = await api.get("/api/workflows/executions/stats")
    checks.shape("stats", stats, STATS)
    checks.equal("stats: recent", stats["recent_executions_24h"], 4)
    checks.equal("stats: counts", stats["status_counts"], {"completed": 2, "failed": 1, "running": 1})
    checks.equal("stats: engine", stats["workflow_engine_stats"]["engine_stats"]["active_executions"], 1)

    for path in ("", "/status", "/timeline"):
        status, answer = await api.call("GET", f"/api/workflows/executions/nothing{path}")
        checks.equal(f"unknown execution{path}: status", status, 404)
        checks.shape(f"unknown execution{path}", answer, ERROR)
    for path in ("/executions", "/metrics"):
        checks.equal(f"unknown{path}: status", (await api.call("GET", f"/api/workflows/nothing{path}"))[0], 404)
    status, _ = await api.call("GET", f"/api/workflows/{workflow}/executions?status=finished")
    checks.equal("list executions: unknown status: status", status, 400)

    status, nothing = await api.call("POST", f"/api/workflows/{broken}/execute", {"input_variables": None})
    checks.check("execute: no inputs: status", status in (200, 202), nothing)
    await api.finished(nothing["execution_id"])
    checks.check("delete: running: status", (await api.call("DELETE", f"/api/workflows/{slow}"))[0] in (400, 409))
    status, cancelled = await api.call("POST", f"/api/workflows/executions/{waiting}/cancel")
    checks.equal("cancel: status", status, 200)
    checks.equal("cancel: status field", cancelled["status"], "cancelled")
    checks.shape("cancel", cancelled, {"execution_id": ID, "message": TEXT})
    await api.finished(waiting)
    status, _ = await api.call("POST", f"/api/workflows/executions/{waiting}/cancel")
    checks.equal("cancel: ended: status", status, 404)
    status, _ = await api.call("POST", "/api/workflows/executions/nothing/cancel")
    checks.equal("cancel: unknown: status", status, 404)
    await api.finished(await executed(api, slow, n=0))
    ended = await api.get(f"/api/workflows/{slow}/metrics")
    checks.equal("metrics: a cancelled execution", [ended["total_executions"], ended["failed_executions"]], [2, 0])
    # That system divides by all executions.
    checks.equal("metrics.success_rate: cancelled executions", ended["success_rate"], 50.0)
    status, _ = await api.call("POST", f"/api/workflows/{slow}/execute", {"input_variables": {"unknown": 1}})
    checks.equal("execute: an unknown input: status", status, 200)
    status, answer = await api.call("DELETE", f"/api/workflows/{slow}")
    checks.equal("delete: status", status, 200)
    checks.equal("delete: body", answer, {"status": "deleted", "workflow_id": slow})
    checks.done(("execut", "cancel", "delete", "list executions", "metrics"))
    assert checks.count > 200


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HEARTBEAT_SECONDS", 0.3)


async def test_streams(quick_heartbeats: None, api: Api) -> None:
    checks = Checks()
    workflow, broken, slow = [await created(api, document) for document in (ETL, BROKEN, SLOW)]
    waiting = await executed(api, slow)
    process = (await api.get(f"/api/workflows/{workflow}"))["steps"][1]["id"]
    followed = {
        "/ws/stream": [("workflow_cancelled", slow), ("workflow_completed", workflow), ("workflow_failed", broken)],
        "/ws/workflows/stream": [("workflow_cancelled", slow), ("workflow_failed", broken)],
        f"/ws/workflows/{workflow}": [("workflow_started", workflow), ("workflow_completed", workflow)],
        f"/ws/workflows/executions/{waiting}": [("workflow_cancelled", slow)],
        f"/ws/workflows/steps/{process}": [("step_started", workflow), ("step_completed", workflow)],
        f"/ws/workflows/{workflow}/step/{process}": [("step_started", workflow), ("step_completed", workflow)],
    }
    without_greeting = ("/ws/stream", f"/ws/workflows/{workflow}/step/{process}")
    sockets = {path: await api.session.ws_connect(api.address + path) for path in followed}
    for document in (workflow, broken):
        await api.finished(await executed(api, document, **({"input": {}} if document == workflow else {})))
    await api.call("POST", f"/api/workflows/executions/{waiting}/cancel")
    seen: set[str] = set()
    for path, expected in followed.items():
        messages = await received(sockets[path], set(expected))
        first = next(message["event_type"] for message in messages if message["event_type"] != "heartbeat")
        checks.check(f"{path}: first message", (first != "connected") == (path in without_greeting), first)
        for message in messages:
            if message["event_type"] == "heartbeat":
                checks.equal("heartbeat.type", message["type"], "heartbeat")
                checks.check("heartbeat.timestamp", bool(message["timestamp"]))
            elif message["event_type"] in EVENT_DATA:
                checks.check("type: in heartbeats only", "type" not in message)
                checks.equal("event", message["event"], message["event_type"])
                checks.shape("message", message, EVENT)
                checks.shape(message["event_type"], message["data"], EVENT_DATA[message["event_type"]])
                seen.add(message["event_type"])
        if "/step" in path:
            checks.equal(f"{path}: one step", {m["workflow_step_id"] for m in messages} - {None}, {process})
        elif path.startswith("/ws/workflows/") and not path.endswith("stream"):
            checks.equal(f"{path}: one workflow", len({m["workflow_id"] for m in messages} - {None}), 1)
        await sockets[path].close()
    assert seen == EVENT_DATA.keys()
    status, answer = await api.call("GET", f"/ws/workflows/nothing/step/{process}")
    assert (status, answer["code"]) == (404, "workflow_not_found")
    checks.done(("workflow_", "step_"))
    assert checks.count > 200


async def received(socket: Any, expected: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """The messages until each of the expected (event type, workflow) has arrived, and a heartbeat after them."""
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while expected or messages[-1]["event_type"] != "heartbeat":
            message = await socket.receive_json()
            expected.discard((message["event_type"], message["workflow_id"]))
            messages.append(message)
    return messages


def test_every_difference_that_stays_is_explained() -> None:
    text = Path(ROOT / "docs" / "compatibility.md").read_text()
    assert [name for name, words in STAYS.items() if words not in text] == []
