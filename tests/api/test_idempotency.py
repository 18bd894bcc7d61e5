"""``Idempotency-Key``: a request that is sent again gets the same answer, and nothing is done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.conftest import Api, serve

from tachograph.clock import NS
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import idempotency
from tachograph_exporter.store.schema import keyed_answers

pytestmark = pytest.mark.every_database

QUICK = {
    "name": "quick",
    "variables": [{"name": "n", "data_type": "int", "default_value": 1}],
    "steps": [{"name": "a"}],
}
TOKEN = "an administrator's token"


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.2, token=TOKEN), handlers):
        api.session.headers["Authorization"] = f"Bearer {TOKEN}"
        yield api


async def post(api: Api, path: str, body: Any, key: str) -> tuple[int, Any, dict[str, str]]:
    async with api.session.post(api.address + path, json=body, headers={"Idempotency-Key": key}) as response:
        return response.status, await response.json(), dict(response.headers)


CREATING = [
    ("/api/workflows", QUICK, {**QUICK, "version": "2"}),
    ("/api/workspaces", {"slug": "a"}, {"slug": "b"}),
    ("/api/workspaces/default/projects", {"slug": "a"}, {"slug": "b"}),
    ("/api/tokens", {"name": "t", "scopes": ["read"]}, {"name": "t", "scopes": ["write"]}),
]


@pytest.mark.parametrize(("path", "body", "other"), CREATING, ids=[path for path, _, _ in CREATING])
async def test_what_is_created_is_created_once(api: Api, path: str, body: Any, other: Any) -> None:
    first = await post(api, path, body, "a key")
    assert first[0] == 201, first
    assert "Idempotency-Replayed" not in first[2]
    again = await post(api, path, body, "a key")
    assert again[:2] == first[:2]
    assert again[2].get("Location") == first[2].get("Location")
    assert again[2]["Idempotency-Replayed"] == "true"
    status, problem, _ = await post(api, path, other, "a key")
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    # Another key is another request.
    assert (await post(api, path, body, "another key"))[0] == (201 if path == "/api/tokens" else 409)


async def test_every_route_that_creates_takes_a_key(api: Api) -> None:
    document = await api.get("/api/openapi.json")
    with_key = {
        path
        for path, item in document["paths"].items()
        if any(parameter["name"] == "Idempotency-Key" for parameter in item.get("post", {}).get("parameters", ()))
    }
    creating = {path for path, item in document["paths"].items() if "201" in item.get("post", {}).get("responses", ())}
    assert creating | {"/api/workflows/{workflow_id}/execute"} == with_key


async def test_executions_sent_at_once_and_again_are_one(api: Api) -> None:
    await api.call("POST", "/api/workflows", QUICK)
    path, body = "/api/workflows/quick/execute", {"input_variables": {"n": 2}}
    answers = await asyncio.gather(*[post(api, path, body, "the key") for _ in range(10)])
    assert {status for status, _, _ in answers} == {202}
    ids = {answer["execution_id"] for _, answer, _ in answers}
    assert len(ids) == 1
    assert [headers.get("Idempotency-Replayed") for _, _, headers in answers].count(None) == 1
    (execution_id,) = ids
    await api.finished(execution_id)
    assert (await post(api, path, body, "the key"))[1]["execution_id"] == execution_id
    status, problem, _ = await post(api, path, {"input_variables": {"n": 3}}, "the key")
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    assert (await api.get("/api/workflows/executions"))["total"] == 1
    assert api.service.executor.open_executions == 0


async def test_keys_are_kept_for_a_day_and_neither_they_nor_secrets_can_be_read(api: Api) -> None:
    status, created, _ = await post(api, "/api/tokens", {"name": "t", "scopes": ["read"]}, "the-key-of-a-client")
    assert status == 201
    database = api.service.database
    rows = await database.read(lambda c: c.execute(select(keyed_answers)).all())
    assert len(rows) == 1
    stored = repr(rows)
    assert "the-key-of-a-client" not in stored
    assert created["token"] not in stored
    old = time.time_ns() - round((idempotency.KEEP_SECONDS + 1) * NS)
    await database.write(lambda c: c.execute(update(keyed_answers).values(created_ns=old)))
    status, another, _ = await post(api, "/api/tokens", {"name": "t", "scopes": ["read"]}, "the-key-of-a-client")
    assert (status, another["token"] != created["token"]) == (201, True)
    await database.write(lambda c: c.execute(update(keyed_answers).values(created_ns=old)))
    await database.write(idempotency.prune)
    assert await database.read(lambda c: c.execute(select(keyed_answers)).all()) == []


async def test_a_key_that_is_no_key_is_refused(api: Api) -> None:
    for key in ("", "x" * 256, "é"):
        status, problem, _ = await post(api, "/api/workspaces", {"slug": "a"}, key)
        assert (status, problem["code"]) == (422, "invalid_parameters"), key
