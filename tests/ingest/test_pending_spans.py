"""What logfire sent, request by request as it arrived, is what ran at that moment and what happened in the end."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.conftest import Api, serve
from tests.ingest.test_open_spans import Clock, eventually
from tests.store.test_rollups import differing

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store.workspaces import add_workspace

RECORDINGS: Final = Path(__file__).parent / "recordings" / "live"
NAMES: Final = sorted(path.name.removesuffix(".truth.json") for path in RECORDINGS.glob("*.truth.json"))


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def requests_of(name: str) -> list[Any]:
    return [json.loads(line)["request"] for line in (RECORDINGS / f"{name}.jsonl").read_text().splitlines()]


def one_at_a_time(requests: list[Any]) -> list[Any]:
    """A request for each span."""
    return [
        {"resourceSpans": [{**group, "scopeSpans": [{**scope, "spans": [span]}]}]}
        for request in requests
        for group in request["resourceSpans"]
        for scope in group["scopeSpans"]
        for span in scope["spans"]
    ]


async def deliver(api: Api, workspace: str, request: Any) -> None:
    status, answer = await api.call("POST", f"/v1/traces?workspace_slug={workspace}", request)
    assert (status, answer) == (200, {})


async def timeline(api: Api, workspace: str) -> Any:
    page = await api.get(f"/api/workflows/executions?workspace_slug={workspace}")
    (item,) = page["items"]
    return await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline?workspace_slug={workspace}")


async def states(api: Api, workspace: str) -> dict[str, str]:
    shown = await timeline(api, workspace)
    return {"": shown["status"]} | {step["step_name"]: step["status"] for step in shown["step_timeline"]}


@pytest.mark.parametrize("name", NAMES)
async def test_a_recording_becomes_what_happened_in_any_order(name: str, api: Api) -> None:
    truth = json.loads((RECORDINGS / f"{name}.truth.json").read_text())
    requests, clock = requests_of(name), Clock(api.service)
    for workspace in ("arrived", "backwards", "single", "shuffled"):
        api.service.database.run(lambda c, slug=workspace: add_workspace(c, slug, 1))  # type: ignore[misc]
    for request, expected in zip(requests, truth["after_each_request"], strict=True):
        await deliver(api, "arrived", request)
        assert await states(api, "arrived") == expected
    for request in reversed(requests):
        await deliver(api, "backwards", request)
    spans = one_at_a_time(requests)
    assert len(spans) == truth["spans"]
    for request in reversed(spans):
        await deliver(api, "single", request)
    for request in random.Random(5).sample(spans, len(spans)) + spans:
        await deliver(api, "shuffled", request)
    (execution,) = truth["executions"]
    await clock.pass_(40)
    for workspace in ("arrived", "backwards", "single", "shuffled"):

        async def has_ended(workspace: str = workspace) -> bool:
            return (await states(api, workspace))[""] != "running"

        await eventually(has_ended)
        shown = await timeline(api, workspace)
        assert (shown["workflow_name"], shown["status"]) == (execution["workflow"], execution["status"])
        steps = {step["step_name"]: step for step in shown["step_timeline"]}
        assert [*steps] == [step["name"] for step in execution["steps"]]
        names = {step["step_id"]: step["step_name"] for step in steps.values()}
        for step in execution["steps"]:
            entry = steps[step["name"]]
            assert (entry["status"], len(entry["attempts"])) == (step["status"], step["attempts"])
            assert [names[other] for other in entry["depends_on"]] == step["depends_on"]
            if "duration_seconds" in step:
                assert entry["duration_seconds"] == pytest.approx(step["duration_seconds"], abs=0.1)
            if "error" in step:
                assert entry["error_message"] == step["error"]
        if "duration_seconds" in execution:
            assert shown["total_duration_seconds"] == pytest.approx(execution["duration_seconds"], abs=0.1)
        # In viewers each span is there once, under its own id.
        found = await api.get(f"/jaeger/api/traces/{shown['trace_id']}?workspace_slug={workspace}")
        ids = [span["spanID"] for span in found["data"][0]["spans"]]
        assert len(ids) == len(set(ids)) == len({*_real_ids(spans)})
        assert {*ids} == {*_real_ids(spans)}
    assert differing(api.service.database) == 0


def _real_ids(requests: list[Any]) -> list[str]:
    ids = []
    for request in requests:
        span = request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        kinds = [a["value"]["stringValue"] for a in span["attributes"] if a["key"] == "logfire.span_type"]
        ids.append(span["parentSpanId"] if kinds == ["pending_span"] else span["spanId"])
    return ids
