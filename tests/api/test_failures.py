"""Failure groups by the API: lists, one group, who muted or resolved it, and where else its id is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.conftest import Api, make_execution, running
from tests.store.test_failure_groups import DAY_NS, boom, failed_run

from tachograph.identity import workspace_id
from tachograph.workflow.handlers import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store.tokens import create_token
from tachograph_exporter.store.workspaces import add_workspace

HOUR_NS = 3600 * 10**9


async def put(api: Api, events: list[Any]) -> None:
    await asyncio.to_thread(api.service.writer.apply, events)


async def act(api: Api, group: str, action: str, note: str = "") -> Any:
    status, body = await api.call("POST", f"/api/failures/{group}", {"action": action, "note": note})
    assert status == 200, body
    return body["group"]


async def states(api: Api, query: str = "") -> dict[str, str]:
    return {item["id"]: item["state"] for item in (await api.get(f"/api/failures?{query}"))["items"]}


async def test_a_group_tells_how_often_since_when_where_and_with_which_version(api: Api) -> None:
    now = time.time_ns()
    good = make_execution("etl", version="1.7")
    await put(api, failed_run(good, boom(8), now - 5 * DAY_NS))
    bad = [make_execution("etl", version="1.8") for _ in range(3)]
    for i, run in enumerate(bad):
        await put(api, failed_run(run, boom(1, i), now - (3 - i) * HOUR_NS, retried=boom(1, "'x'")))
    await put(api, failed_run(make_execution("other", version="2"), boom(1, "/a/b"), now - 10))
    page = await api.get("/api/failures?sort=-failures")
    assert (page["total"], page["is_complete"]) == (2, True)
    often, once = page["items"]
    assert often["counts"] == {"failures": 7, "attempts": 7, "steps": 4, "executions": 4}
    assert (often["error_type"], often["message"]) == ("ValueError", "record <*> of source a is bad")
    assert (often["location"], often["state"], often["is_new"]) == ("etl.f", "open", True)
    assert often["new_since_version"] == "1.8"
    assert [(p["workflow_name"], p["step_name"], p["failures"]) for p in often["places"]] == [
        ("etl", "load", 6), ("other", "load", 1),
    ]  # fmt: skip
    assert sum(often["trend"]) == 7
    assert often["trend"][-1] == 7
    assert often["example"]["error_message"] == "record /a/b of source a is bad"
    # The first version that is known is no new one, and five days ago is not new.
    assert (once["new_since_version"], once["is_new"]) == (None, False)
    assert once["first_seen_at"] == once["last_seen_at"] < often["first_seen_at"] < often["last_seen_at"]

    detail = await api.get(f"/api/failures/{often['id']}?limit=3")
    assert detail["group"]["counts"] == often["counts"]
    assert detail["frames"] == ["etl.f"]
    assert [(v["workflow_name"], v["workflow_version"], v["failures"]) for v in detail["by_version"]] == [
        ("etl", "1.8", 6), ("other", "2", 1),
    ]  # fmt: skip
    assert detail["by_host"] == [{"host": "h1", "failures": 7}]
    assert (detail["total"], len(detail["occurrences"])) == (7, 3)
    assert detail["occurrences"][0]["workflow_name"] == "other"
    assert [o["was_retried"] for o in detail["occurrences"]] == [False, False, True]
    assert detail["group"]["example"]["error_stack"].startswith("Traceback")

    # Windows, workflows, pages and sorts.
    assert list(await states(api, "workflow=other")) == [often["id"]]
    assert list(await states(api, "to=4d")) == [once["id"]]
    assert list(await states(api, "sort=first_seen")) == [once["id"], often["id"]]
    assert list(await states(api, "sort=-failures&skip=1&limit=1")) == [once["id"]]
    assert (await api.get("/api/failures?workflow=other"))["items"][0]["counts"]["failures"] == 1
    for query, code in (("from=100d", 422), ("state=lost", 422), ("sort=x", 422), ("workflow=no", 404)):
        assert (await api.call("GET", f"/api/failures?{query}"))[0] == code, query

    # The id is on what failed, and selects executions.
    timeline = await api.get(f"/api/workflows/executions/{bad[0].execution_id}/timeline")
    (step,) = timeline["step_timeline"]
    assert timeline["failure_group"] == step["failure_group"] == often["id"]
    assert [attempt["failure_group"] for attempt in step["attempts"]] == [often["id"]] * 2
    listed = await api.get(f"/api/workflows/executions?failure={often['id']}&q=etl")
    assert {item["execution_id"] for item in listed["items"]} == {run.execution_id for run in bad}
    assert listed["total"] == 3

    # Two reads see a new series as zero first, see `Births`.
    text = await api.metrics()
    series = f'workflow_failure_group_failures_total{{group="{often["id"]}",workflow="etl",workspace="default"}}'
    assert f"{series} 6.0\n" in text


async def test_muted_and_resolved_groups_and_those_that_come_again(api: Api) -> None:
    now = time.time_ns()
    await put(api, failed_run(make_execution("etl"), boom(1), now - HOUR_NS))
    ((group, state),) = (await states(api)).items()
    assert state == "open"
    said = await act(api, group, "mute", "known: password=hunter2hunter2")
    assert (said["state"], said["state_changed_by"]) == ("muted", None)
    assert "hunter2" not in said["note"]
    assert said["state_changed_at"] is not None
    assert await states(api) == {}
    await put(api, failed_run(make_execution("etl"), boom(1), time.time_ns()))
    assert await states(api, "state=muted,resolved") == {group: "muted"}
    await act(api, group, "resolve")
    assert await states(api) == {}
    # It failed before it was resolved, and was only told later.
    await put(api, failed_run(make_execution("etl"), boom(1), now - HOUR_NS))
    assert await states(api, "state=resolved") == {group: "resolved"}
    await put(api, failed_run(make_execution("etl"), boom(1), time.time_ns() + 10**6))
    assert await states(api) == {group: "regressed"}
    assert (await act(api, group, "reopen"))["state"] == "open"
    for path, body, code in (
        (f"/api/failures/{group}", {"action": "forget"}, "invalid_body"),
        (f"/api/failures/{group}", {}, "invalid_body"),
        ("/api/failures/nothing", {"action": "mute"}, "failure_not_found"),
    ):
        assert (await api.call("POST", path, body))[1]["code"] == code
    assert (await api.call("GET", "/api/failures/nothing"))[1]["code"] == "failure_not_found"


async def test_another_workspace_sees_nothing_and_a_reader_changes_nothing(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    async with running(Config(database=any_database_url, token="t" * 20), handlers) as api:
        database = api.service.database
        await put(api, failed_run(make_execution("etl"), boom(1), time.time_ns()))
        await asyncio.to_thread(database.run, lambda c: add_workspace(c, "team", time.time_ns()))

        def token(name: str, scope: str, workspace: str) -> dict[str, str]:
            _, secret = database.run(
                lambda c: create_token(c, name=name, scopes=scope.split(), workspace_id=workspace_id(workspace))
            )
            return {"Authorization": f"Bearer {secret}"}

        reader, writer, stranger = [
            await asyncio.to_thread(token, *args)
            for args in (("r", "read", "default"), ("ann", "read write", "default"), ("s", "read write", "team"))
        ]
        (group,) = (await api.get("/api/failures", headers=reader))["items"]
        path = f"/api/failures/{group['id']}"
        assert (await api.get("/api/failures", headers=stranger))["items"] == []
        for method, body in (("GET", None), ("POST", {"action": "mute"})):
            status, answer = await api.call(method, path, body, headers=stranger)
            assert (status, answer["code"]) == (404, "failure_not_found")
        assert (await api.call("POST", path, {"action": "mute"}, headers=reader))[0] == 403
        status, answer = await api.call("POST", path, {"action": "resolve"}, headers=writer)
        assert (status, answer["group"]["state_changed_by"]) == (200, "ann")


@pytest.mark.parametrize("group", ["%00", "x" * 300, "'; DROP TABLE failure_groups", "%F0%9F%92%A5"])
async def test_hostile_ids_name_no_group(api: Api, group: str) -> None:
    assert (await api.call("GET", f"/api/failures/{group}"))[0] in (400, 404, 422)
    assert (await api.call("GET", f"/api/workflows/executions?failure={group}"))[0] in (200, 400, 422)
