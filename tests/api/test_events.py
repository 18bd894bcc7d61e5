"""Events that other processes recorded, by HTTP: each once, in its workspace; what is not valid costs no other."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.api.test_guard import SERVICE_TOKEN, bearer, token_for
from tests.conftest import Api, make_execution, make_run, serve
from tests.store.test_rollups import differing

from tachograph.errors import StoreUnavailable
from tachograph.event_batch import MAX_EVENTS, PATH
from tachograph.events import Event, StepFinished
from tachograph.identity import new_id
from tachograph.resources import Resources
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def guarded(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1, token=SERVICE_TOKEN), handlers):
        yield api


def batch(events: list[Any], *, sender: str = "me", sequence: int = 1, **more: Any) -> bytes:
    return msgspec.json.encode({"version": 1, "sender": sender, "sequence": sequence, "events": events, **more})


async def send(api: Api, body: bytes, **headers: str) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    async with api.session.post(api.address + PATH, data=body, headers=headers) as answer:
        return answer.status, json.loads(await answer.read())


def stored(count: int, **more: Any) -> dict[str, Any]:
    return {
        "received": count, "stored": count, "is_repeated": False, "refused": [], "lease_seconds": 30.0,
        "stacks": [], **more,
    }  # fmt: skip


async def executions(api: Api, **options: Any) -> list[Any]:
    items: list[Any] = (await api.get("/api/workflows/executions", **options))["items"]
    return items


def measured(events: list[Event]) -> list[Event]:
    # Some of it cannot be, and is left out.
    use = Resources(1.5, 1 << 20, 4096, 0, thread_cpu_seconds=-1.0, gc_count=-5)
    return [msgspec.structs.replace(e, resources=use) if isinstance(e, StepFinished) else e for e in events]


async def test_a_run_sent_in_pieces_is_there_once_with_what_its_steps_used(api: Api) -> None:
    run = measured(list(make_run(make_execution())))
    assert await send(api, batch(run[:2])) == (200, stored(2))
    body = gzip.compress(batch(run[2:], sequence=2))
    assert await send(api, body, Content_Encoding="gzip") == (200, stored(2))
    (item,) = await executions(api)
    assert (item["status"], item["execution_id"]) == ("completed", run[0].execution.execution_id)
    timeline = await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline")
    use = {"cpu_seconds": 1.5, "peak_memory_bytes": 1 << 20, "read_bytes": 4096, "written_bytes": 0}
    use |= {"busy_seconds": 1e-09, "waiting_seconds": 0.0}  # It ran for a nanosecond.
    (step,) = timeline["step_timeline"]
    assert (step["resources"], step["attempts"][0]["resources"]) == (use, use)
    # Nobody here waits for its heartbeats, or sends any.
    assert api.service.recorder.open_executions == 0
    assert differing(api.service.database) == 0


async def test_a_batch_that_arrives_again_is_not_stored_again(api: Api) -> None:
    run = list(make_run(make_execution()))
    assert (await send(api, batch(run)))[1] == stored(4)
    for _ in range(2):
        assert (await send(api, batch(run)))[1] == stored(4, stored=0, is_repeated=True)
    # Another sender may have the same numbers, and applying events twice changes nothing.
    before = await executions(api)
    assert (await send(api, batch(run, sender="another")))[1] == stored(4)
    assert await executions(api) == before
    assert differing(api.service.database) == 0


async def test_an_event_that_is_not_valid_costs_no_other(api: Api) -> None:
    run: list[Any] = [json.loads(msgspec.json.encode(event)) for event in make_run(make_execution())]
    ref = run[0]["execution"]
    bad = [
        17,
        {"event": "unheard_of"},
        {**run[0], "execution": {**ref, "execution_id": "../../etc"}},
        {**run[0], "execution": {**ref, "trace_id": "xyz"}},
        {**run[0], "execution": {**ref, "workflow": "a\0b"}},
        {**run[0], "execution": {**ref, "execution_id": new_id(4_000_000_000_000_000_000)}},
        {**run[0], "time_ns": -1},
        {**run[0], "time_ns": 1 << 70},
        {**run[1], "step": {**run[1]["step"], "span_id": ""}},
    ]
    status, answer = await send(api, batch([*bad, *run]))
    assert (status, answer["received"], answer["stored"]) == (200, len(bad) + 4, 4)
    assert [event["index"] for event in answer["refused"]] == list(range(len(bad))), answer["refused"]
    assert [item["status"] for item in await executions(api)] == ["completed"]


async def test_what_the_store_refuses_is_set_aside(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(make_execution()) for _ in range(3)]
    poison = runs[1][0].execution.execution_id
    put = api.service.writer.put

    def refusing(connection: Any, events: Any) -> Any:
        if any(event.execution.execution_id == poison for event in events):
            raise ValueError("no such thing")
        return put(connection, events)

    monkeypatch.setattr(api.service.writer, "put", refusing)
    status, answer = await send(api, batch([event for run in runs for event in run]))
    assert (status, answer["stored"], [event["index"] for event in answer["refused"]]) == (200, 8, [4, 5, 6, 7])
    assert len(await executions(api)) == 2
    assert (await send(api, batch([])))[1]["is_repeated"]


async def test_while_the_database_is_away_nothing_is_acknowledged(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    run = list(make_run(make_execution()))

    def away(work: Any, **_: Any) -> Any:
        raise StoreUnavailable("locked")

    with monkeypatch.context() as patch:
        patch.setattr(api.service.writer.database, "run", away)
        async with api.session.post(
            api.address + PATH, data=batch(run), headers={"Content-Type": "application/json"}
        ) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert (await answer.json(content_type=None))["code"] == "store_unavailable"
    assert (await send(api, batch(run)))[1] == stored(4)


NO_BATCHES = [
    (b"{", 400, "invalid_json"),
    (b"[]", 422, "invalid_body"),
    (batch([], sender=""), 422, "invalid_body"),
    (batch([], sender="x" * 65), 422, "invalid_body"),
    (batch([], sequence=0), 422, "invalid_body"),
    (batch([], sequence=1 << 63), 422, "invalid_body"),
    (batch([], version=2), 422, "invalid_body"),
    (batch([0] * (MAX_EVENTS + 1)), 413, "body_too_large"),
]


async def test_what_is_no_batch_is_refused(guarded: Api) -> None:
    for body, status, code in NO_BATCHES:
        answer = await send(guarded, body, Authorization=f"Bearer {SERVICE_TOKEN}")
        assert (answer[0], answer[1]["code"]) == (status, code), body[:100]


async def test_events_are_of_the_tokens_workspace_and_touch_no_other(guarded: Api) -> None:
    admin = bearer(SERVICE_TOKEN)
    assert (await guarded.call("POST", "/api/workspaces", {"slug": "other"}, headers=admin))[0] == 201
    token = await token_for(guarded, scopes=["ingest"], workspace="other")
    mine, theirs = list(make_run(make_execution())), list(make_run(make_execution()))
    assert (await send(guarded, batch(mine), **admin))[0] == 200
    sent = await send(guarded, batch([*mine, *theirs]), Authorization=f"Bearer {token}")
    assert (sent[0], sent[1]["stored"], [event["index"] for event in sent[1]["refused"]]) == (200, 4, [0, 1, 2, 3])
    for workspace, run in (("default", mine), ("other", theirs)):
        items = await executions(guarded, headers={**admin, "X-Workspace-Slug": workspace})
        assert [item["execution_id"] for item in items] == [run[0].execution.execution_id]
    assert (await send(guarded, batch([]), Authorization=f"Bearer {token}", X_Workspace_Slug="default"))[0] == 404
    assert (await send(guarded, batch([])))[0] == 401
    read = await token_for(guarded, scopes=["read"])
    assert (await send(guarded, batch([]), Authorization=f"Bearer {read}"))[0] == 403
    assert (await send(guarded, batch([]), Origin="http://evil.example", **admin))[0] == 403
