"""Pings: runs that are reported with nothing but a URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.api.test_guard import SERVICE_TOKEN, bearer, token_for
from tests.conftest import Api, serve
from tests.store.test_rollups import differing

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api.pings import MAX_BODY_BYTES
from tachograph_exporter.config import Config
from tachograph_exporter.store import recovery


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def guarded(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1, token=SERVICE_TOKEN), handlers):
        yield api


async def ping(api: Api, path: str, text: str | None = None, **headers: str) -> tuple[int, str]:
    """(status, id of the execution or code of the error)."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    method = "GET" if text is None else "POST"
    body = text.encode() if text is not None else None
    if body is not None:
        names.setdefault("Content-Type", "application/x-www-form-urlencoded")  # As curl says.
    async with api.session.request(method, f"{api.address}/ping/{path}", data=body, headers=names) as answer:
        said = await answer.json(content_type=None) if answer.status >= 400 else {}
        return answer.status, str(said.get("code") or answer.headers.get("X-Execution-Id", ""))


async def runs(api: Api, **options: Any) -> dict[str, Any]:
    items = (await api.get("/api/workflows/executions", **options))["items"]
    return {
        item["execution_id"]: await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline", **options)
        for item in items
    }


async def test_a_run_from_start_to_end(api: Api) -> None:
    status, execution = await ping(api, "nightly/start")
    assert status == 204
    assert await ping(api, "nightly/log", "copied 12 files\n\npassword=hunter2\n") == (204, execution)
    assert (await runs(api))[execution]["status"] == "running"
    assert await ping(api, "nightly/fail", "cleaning up\ndisk full") == (204, execution)
    (run,) = (await runs(api)).values()
    (step,) = run["step_timeline"]
    assert (run["status"], run["error_message"], step["status"]) == ("failed", "disk full", "failed")
    assert [log["message"] for log in step["logs"]] == [
        "copied 12 files", "password=[masked]", "cleaning up", "disk full",
    ]  # fmt: skip
    report = await api.get(f"/api/workflows/executions/{execution}/reconcile")
    assert report["differences"] == []
    assert differing(api.service.database) == 0


async def test_which_run_is_meant(api: Api) -> None:
    _, first = await ping(api, "w/start")
    _, second = await ping(api, "w/start")
    assert await ping(api, "w/success") == (204, second)
    # Without a start, it is known when it ended.
    _, third = await ping(api, "w/success")
    assert {i: run["status"] for i, run in (await runs(api)).items()} == {
        first: "lost", second: "completed", third: "completed",
    }  # fmt: skip
    # Runs with ids of their own go on side by side, and a ping that is sent again changes nothing.
    _, a = await ping(api, "w/a-1/start")
    _, b = await ping(api, "w/b.2/start")
    assert await ping(api, "w/a-1/start") == (204, a)
    assert await ping(api, "w/a-1/success") == (204, a)
    assert await ping(api, "w/a-1/success") == (204, a)
    assert await ping(api, "w/b.2/fail") == (204, b)
    assert await ping(api, "w/a-1/log", "late") == (404, "execution_not_found")
    assert [(await runs(api))[i]["status"] for i in (a, b)] == ["completed", "failed"]
    # An id may come again.
    _, again = await ping(api, "w/a-1/start")
    assert again != a
    assert len(await runs(api)) == 6


async def test_pings_at_once_make_one_run(api: Api) -> None:
    answers = await asyncio.gather(*[ping(api, "w/x/start") for _ in range(8)])
    assert len(set(answers)) == 1
    assert len(await runs(api)) == 1


async def test_a_run_that_is_silent_for_hours_is_not_lost(api: Api) -> None:
    await ping(api, "slow/start")
    await ping(api, "slow/7/start")
    for _ in range(3):
        assert await api.service.upkeep.sweep() == 0
    later = recovery.PING_LEASE_SECONDS * 1e9
    rows = await api.service.database.read(lambda c: recovery.find_lost(c, 1 << 62))
    assert len(rows) == 2, later


async def test_a_token_may_be_in_the_path(guarded: Api) -> None:
    token = await token_for(guarded, scopes=["ingest"])
    read = await token_for(guarded, scopes=["read"])
    assert (await ping(guarded, "w/start"))[0] == 401
    assert (await ping(guarded, "~nonsense/w/start"))[0] == 401
    assert (await ping(guarded, f"~{read}/w/start"))[0] == 403
    assert (await ping(guarded, f"~{token}/w/start"))[0] == 204
    assert (await ping(guarded, f"~{token}/w/r/start/"))[0] == 204
    assert (await ping(guarded, "w/success", Authorization=f"Bearer {token}"))[0] == 204
    assert sorted(run["status"] for run in (await runs(guarded, headers=bearer(SERVICE_TOKEN))).values()) == [
        "completed", "running",
    ]  # fmt: skip
    # It opens nothing else.
    assert (await guarded.call("GET", f"/~{token}/api/workflows"))[0] == 401


async def test_pages_of_other_sites_cannot_ping(guarded: Api) -> None:
    token = await token_for(guarded, scopes=["ingest"])
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://evil.example"}):
        for text in (None, "x"):
            assert await ping(guarded, f"~{token}/w/start", text, **headers) == (403, "foreign_page")
    assert await runs(guarded, headers=bearer(SERVICE_TOKEN)) == {}


async def test_what_is_no_ping(api: Api) -> None:
    assert await ping(api, "w/begin") == (400, "bad_request")
    assert await ping(api, "w/a%20b/start") == (400, "bad_request")
    assert await ping(api, "w/" + "x" * 65 + "/start") == (400, "bad_request")
    assert await ping(api, "%20/start") == (400, "bad_request")
    assert await ping(api, "w/log") == (404, "execution_not_found")
    assert await ping(api, "w/log", "x" * (MAX_BODY_BYTES + 1)) == (413, "body_too_large")
    assert await runs(api) == {}
    assert (await ping(api, "n" * 300 + "/start", "\udce8".encode("utf-8", "surrogatepass").decode("latin-1")))[
        0
    ] == 204
