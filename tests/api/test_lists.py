"""Lists of executions: filters, order, cursors, NDJSON; entity tags and compression."""

from __future__ import annotations

import json
import zlib
from typing import Any

import aiohttp
import pytest
from tests.api.test_api import RETRY, register
from tests.conftest import Api

from tachograph_exporter.views import workflows as workflow_views

NAP = {
    "name": "nap",
    "variables": [{"name": "n", "data_type": "float"}, {"name": "who", "data_type": "string", "default_value": "me"}],
    "steps": [{"name": "nap", "config": {"handler": "sleep", "seconds": "${n}"}}],
}


@pytest.fixture
async def runs(api: Api) -> tuple[Api, list[str]]:
    await register(api, NAP)
    await register(api, RETRY)
    ids = [await api.run("nap", {"n": n, "who": who}) for n, who in ((0.05, "a_b"), (0.0, "axb"), (0.02, "50%"))]
    ids.append(await api.run("retry"))
    return api, ids


ALL = "/api/workflows/executions"


async def ids_of(api: Api, query: str) -> list[str]:
    page = await api.get(f"/api/workflows/executions?{query}")
    assert page["total"] == len(page["items"])
    return [item["execution_id"] for item in page["items"]]


async def test_filters_select_the_matching_executions(runs: tuple[Api, list[str]]) -> None:
    api, (slow, quick, middle, failed) = runs
    assert await ids_of(api, "") == [failed, middle, quick, slow]
    assert await ids_of(api, "error=HANDLED") == []
    assert await ids_of(api, "error=token") == [failed]
    assert await ids_of(api, "status=failed,timeout") == [failed]
    assert await ids_of(api, "step=nap") == [middle, quick, slow]
    assert await ids_of(api, "step=skipped&step_status=skipped") == [failed]
    assert await ids_of(api, "step=flaky&step_status=failed") == []
    # Inputs match by name and value; an underscore and a percent sign are not wildcards.
    assert await ids_of(api, "input=who=a_b") == [slow]
    assert await ids_of(api, "input=who=50%25") == [middle]
    assert await ids_of(api, "input=n=0.02") == [middle]
    assert await ids_of(api, "input=axb") == [quick]
    # Real durations depend on the machine.
    took = {item["execution_id"]: item["duration_seconds"] for item in (await api.get(ALL))["items"]}
    longest = max((slow, quick, middle), key=took.__getitem__)
    assert longest in await ids_of(api, f"min_duration={took[longest] - 1e-6:.6f}&step=nap")
    assert quick in await ids_of(api, f"max_duration={took[quick] + 1e-6:.6f}")
    assert await ids_of(api, f"min_duration={max(took.values()) + 1:.6f}") == []


async def test_cursors_visit_every_execution_once_in_every_order(runs: tuple[Api, list[str]]) -> None:
    api, ids = runs
    for sort in ("created", "-created", "duration", "-duration", "started", "-finished"):
        items = (await api.get(f"/api/workflows/executions?sort={sort}"))["items"]
        whole = [item["execution_id"] for item in items]
        assert sorted(whole) == sorted(ids)
        if sort == "duration":
            assert [item["duration_seconds"] for item in items] == sorted(item["duration_seconds"] for item in items)
        walked, path = [], f"/api/workflows/executions?sort={sort}&limit=1"
        cursor: str | None = ""
        while cursor is not None:
            page = await api.get(path + (f"&after={cursor}" if cursor else ""))
            walked += [item["execution_id"] for item in page["items"]]
            cursor = page["next"]
            assert page["total"] == 4
        assert walked == whole


async def test_a_cursor_of_another_order_or_an_invalid_one_is_refused(runs: tuple[Api, list[str]]) -> None:
    api, _ = runs
    cursor = (await api.get("/api/workflows/executions?sort=duration&limit=1"))["next"]
    for query, message in (
        (f"after={cursor}", "sort=duration"),
        ("after=!!", "not a valid cursor"),
        ("sort=size", "none of"),
    ):
        status, body = await api.call("GET", f"/api/workflows/executions?{query}")
        assert (status, body["code"], message in body["detail"]) == (422, "invalid_parameters", True)


async def test_ndjson_has_all_executions(runs: tuple[Api, list[str]]) -> None:
    api, ids = runs
    for query, headers in (("?format=ndjson", {}), ("", {"Accept": "application/x-ndjson"})):
        async with api.session.get(f"{api.address}/api/workflows/executions{query}", headers=headers) as response:
            assert response.content_type == "application/x-ndjson"
            lines: list[Any] = [json.loads(line) for line in (await response.text()).splitlines()]
        assert [line["execution_id"] for line in lines] == ids[::-1]


async def test_an_unmodified_response_is_304(runs: tuple[Api, list[str]]) -> None:
    api, ids = runs
    path = f"{api.address}/api/workflows/executions/{ids[0]}/timeline"
    async with api.session.get(path) as first:
        tag = first.headers["ETag"]
    async with api.session.get(path, headers={"If-None-Match": f'"x", {tag}'}) as again:
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
    async with api.session.get(path, headers={"If-None-Match": '"other"'}) as changed:
        assert changed.status == 200


async def test_large_responses_to_other_machines_are_compressed(runs: tuple[Api, list[str]]) -> None:
    api, ids = runs
    path = f"{api.address}/api/workflows/executions/{ids[3]}/timeline"
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(path, headers={"Accept-Encoding": "gzip", "X-Forwarded-For": "192.0.2.7"}) as compressed,
    ):
        assert compressed.headers["Content-Encoding"] == "gzip"
        body = zlib.decompress(await compressed.read(), wbits=31)
    # Clients on this machine get it uncompressed.
    async with api.session.get(path, headers={"Accept-Encoding": "gzip"}) as plain:
        assert "Content-Encoding" not in plain.headers
        assert body == await plain.read()


async def test_a_list_of_workflows_has_their_definitions_up_to_a_size(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow_views, "MAX_LISTED_BYTES", 5_000)
    big = {"steps": [{"name": "a"}], "config": {"text": "x" * 3_000}}
    for name in ("1", "2", "3"):
        await register(api, {"name": name, **(big if name != "3" else {"steps": [{"name": "b"}]})})
    listed = [(item["name"], "steps" in item, "config" in item) for item in (await api.get("/api/workflows"))["items"]]
    assert listed == [("1", True, True), ("2", False, False), ("3", True, True)]
    for item in (await api.get("/api/workflows?include_steps=false"))["items"]:
        assert not {"steps", "variables", "config", "metadata", "timeout_seconds", "max_retries"} & item.keys()
        assert item["is_active"] is True
    detail = await api.get("/api/workflows/2?include_steps=no")
    assert (detail["steps"], detail["variables"], len(detail["config"]["text"])) == ([], [], 3_000)
    assert (await api.call("GET", "/api/workflows/2?include_steps=2"))[0] == 422


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("gzip;q=0.5", "gzip"), ("*", "gzip"),
        ("gzip, deflate, br", "gzip"), ("deflate", "deflate"), ("gzip;q=0.1, deflate", "deflate"),
        ("gzip;q=0", None), ("gzip; q=0.000", None), ("", None), ("identity", None), ("br", None), ("*;q=0", None),
        ("gzip;q=nonsense", None), ("identity, gzip;q=0.5", None), ("gzip;q=0, *", "deflate"), ("notgzip", None),
    ],
)  # fmt: skip
async def test_a_response_is_compressed_as_the_client_accepts(api: Api, accept: str, coding: str | None) -> None:
    headers = {"Accept-Encoding": accept, "X-Forwarded-For": "192.0.2.7"}
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for path, offered in (("/metrics", {"gzip"}), ("/api/openapi.json", {"gzip", "deflate"})):
            async with session.get(api.address + path, headers=headers) as response:
                assert response.status == 200
                got = response.headers.get("Content-Encoding")
                assert got == coding or (coding not in offered and got in (None, "gzip")), path
                assert "Accept-Encoding" in response.headers["Vary"]
