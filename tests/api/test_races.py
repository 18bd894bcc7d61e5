"""Concurrent changes of one workflow, workspace or project, on both databases: each is done once or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.conftest import Api, serve

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

REQUESTS = 6


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2), handlers):
        yield api


async def create(api: Api, name: str) -> str:
    status, body = await api.call("POST", "/api/workflows", {"name": name, "steps": [{"name": "a"}]})
    assert status == 201, body
    return str(body["id"])


async def together(api: Api, method: str, paths: list[str], bodies: list[Any]) -> list[tuple[int, str]]:
    """(status, error code or "") of requests that are sent at the same time, sorted."""
    answers = await asyncio.gather(*(api.call(method, path, body) for path, body in zip(paths, bodies, strict=True)))
    return sorted((status, body["code"] if status >= 400 else "") for status, body in answers)


async def test_of_workflows_renamed_to_one_name_one_gets_it(api: Api) -> None:
    for round_number in range(5):
        ids = [await create(api, f"{round_number}-{number}") for number in range(REQUESTS)]
        answers = await together(
            api, "PATCH", [f"/api/workflows/{i}" for i in ids], [{"name": f"new {round_number}"}] * REQUESTS
        )
        assert answers == [(200, ""), *[(409, "workflow_exists")] * (REQUESTS - 1)]
    names = [item["name"] for item in (await api.get("/api/workflows?limit=100"))["items"]]
    assert len(names) == len(set(names)) == 5 * REQUESTS


async def test_a_name_is_given_once_to_a_new_and_a_renamed_workflow(api: Api) -> None:
    for round_number in range(5):
        path = f"/api/workflows/{await create(api, f'old {round_number}')}"
        name = f"new {round_number}"
        answers = await asyncio.gather(
            api.call("PATCH", path, {"name": name}),
            api.call("POST", "/api/workflows", {"name": name, "steps": [{"name": "a"}]}),
        )
        assert sorted(status for status, _ in answers) in ([200, 409], [201, 409])
        assert {body["code"] for status, body in answers if status == 409} == {"workflow_exists"}


async def test_changes_of_different_fields_are_all_kept(api: Api) -> None:
    identifier = await create(api, "w")
    changes: list[dict[str, Any]] = [
        {"description": "d"},
        {"version": "7"},
        {"timeout_seconds": 5},
        {"max_retries": 2},
        {"metadata": {"a": 1}},
    ]
    for _ in range(4):
        await api.call(
            "PATCH", f"/api/workflows/{identifier}",
            {"description": "", "version": "1", "timeout_seconds": None, "max_retries": 0, "metadata": {}},
        )  # fmt: skip
        answers = await together(api, "PATCH", [f"/api/workflows/{identifier}"] * len(changes), changes)
        assert answers == [(200, "")] * len(changes)
        definition = await api.get(f"/api/workflows/{identifier}")
        for change in changes:
            assert {key: definition[key] for key in change} == change


async def test_a_workflow_deleted_and_renamed_at_once(api: Api) -> None:
    for round_number in range(5):
        path = f"/api/workflows/{await create(api, str(round_number))}"
        (deleted, _), (renamed, _) = await asyncio.gather(
            api.call("DELETE", path), api.call("PATCH", path, {"name": f"new {round_number}"})
        )
        assert deleted == 204
        assert renamed in (200, 404)
        assert (await api.call("GET", path))[0] == 404


async def test_a_workflow_is_deleted_once(api: Api) -> None:
    path = f"/api/workflows/{await create(api, 'w')}"
    answers = await asyncio.gather(*(api.call("DELETE", path) for _ in range(REQUESTS)))
    assert {status for status, _ in answers} <= {204, 404}
    assert (await api.call("DELETE", path))[0] == 404


async def test_a_workspace_and_a_project_are_created_once(api: Api) -> None:
    for slug in ("one", "two", "three"):
        answers = await together(api, "POST", ["/api/workspaces"] * REQUESTS, [{"slug": slug}] * REQUESTS)
        assert answers == [(201, ""), *[(409, "workspace_exists")] * (REQUESTS - 1)]
        path = f"/api/workspaces/{slug}/projects"
        answers = await together(api, "POST", [path] * REQUESTS, [{"slug": "p"}] * REQUESTS)
        assert answers == [(201, ""), *[(409, "project_exists")] * (REQUESTS - 1)]
