"""Concurrent changes of one workflow, workspace or project, on both databases: each is done once or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.conftest import Api, make_execution, make_run, serve

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

pytestmark = pytest.mark.every_database

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


async def versions(api: Api, path: str, *methods: tuple[str, Any]) -> list[tuple[int, str | None]]:
    """(status, ETag) of requests, one after the other."""
    answers = []
    for method, body in methods:
        async with api.session.request(method, api.address + path, json=body) as response:
            answers.append((response.status, response.headers.get("ETag")))
    return answers


async def test_a_change_of_an_earlier_version_is_refused(api: Api) -> None:
    path = f"/api/workflows/{await create(api, 'w')}"
    (_, read), (_, changed), (_, read_again), (_, same) = await versions(
        api, path, ("GET", None), ("PATCH", {"description": "d"}), ("GET", None), ("GET", None)
    )
    assert read is not None
    assert changed is not None
    assert not changed.startswith("W/")
    assert read != changed == read_again == same
    for method, body in (("PATCH", {"description": "lost"}), ("DELETE", None)):
        for headers in ({"If-Match": read}, {"If-Match": '"x", "y"'}, {"If-Match": "nonsense"},
                          {"If-None-Match": "*"}, {"If-None-Match": f'"x", W/{changed}'}):  # fmt: skip
            async with api.session.request(method, api.address + path, json=body, headers=headers) as response:
                problem = await response.json()
                assert (response.status, problem["code"]) == (412, "precondition_failed"), headers
                assert response.headers["ETag"] == changed
    assert (await api.get(path))["description"] == "d"
    # A proxy or a compressed response makes it weak; it is the same version.
    for condition in ("{}", '"x", {}', "W/{}", "*"):
        headers = {"If-Match": condition.format(changed)}
        status, body = await api.call("PATCH", path, {"description": "d"}, headers=headers)
        assert status == 200, body
        ((_, tag_now),) = await versions(api, path, ("GET", None))
        assert tag_now != changed
        assert tag_now is not None
        changed = tag_now
    assert (await api.call("DELETE", path, headers={"If-Match": changed}))[0] == 204
    assert (await api.call("DELETE", path, headers={"If-Match": changed}))[0] == 404


async def test_the_version_of_a_definition_is_in_every_answer(api: Api) -> None:
    async with api.session.post(
        f"{api.address}/api/workflows", json={"name": "w", "steps": [{"name": "a"}]}
    ) as created:
        tag, path = created.headers["ETag"], created.headers["Location"]
    assert await versions(api, path, ("GET", None)) == [(200, tag)]
    assert (await api.call("GET", path, headers={"If-None-Match": tag}))[0] == 304
    # A client elsewhere gets a compressed response, and a tag that it can send back.
    await api.call("PATCH", path, {"description": "long " * 1000})
    headers = {"X-Forwarded-For": "192.0.2.1", "Accept-Encoding": "gzip"}
    async with api.session.get(api.address + path, headers=headers) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        tag = response.headers["ETag"]
    assert tag.startswith("W/")
    assert (await api.call("PATCH", path, {"version": "2"}, headers={"If-Match": tag}))[0] == 200


async def test_of_changes_of_one_version_one_is_made(api: Api) -> None:
    path = f"/api/workflows/{await create(api, 'w')}"
    for _ in range(5):
        ((_, tag),) = await versions(api, path, ("GET", None))
        answers = await asyncio.gather(*(
            api.call("PATCH", path, {"description": f"by {number}"}, headers={"If-Match": str(tag)})
            for number in range(REQUESTS)
        ))  # fmt: skip
        assert sorted(status for status, _ in answers) == [200, *[412] * (REQUESTS - 1)]
        (winner,) = (body["description"] for status, body in answers if status == 200)
        assert (await api.get(path))["description"] == winner


async def test_a_recorded_workflow_gets_one_definition(api: Api) -> None:
    for round_number in range(5):
        name = f"recorded {round_number}"
        api.service.writer.apply(make_run(make_execution(name)))
        answers = await asyncio.gather(*(
            api.call("POST", "/api/workflows", {"name": name, "description": f"by {number}", "steps": [{"name": "a"}]})
            for number in range(REQUESTS)
        ))  # fmt: skip
        assert sorted(status for status, _ in answers) == [201, *[409] * (REQUESTS - 1)]
        (winner,) = (body["description"] for status, body in answers if status == 201)
        assert (await api.get(f"/api/workflows/{name}"))["description"] == winner
