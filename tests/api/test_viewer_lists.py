"""What viewers list (services, span names, attributes, values) is what the spans say: no more and no less."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.api.test_otlp import T0, S, export, send, span
from tests.conftest import Api, serve

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import archiving

KINDS = {0: "", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
STEPS: list[dict[str, Any]] = [
    {"name": "a"},
    {"name": "b", "depends_on_steps": ["a"], "max_retries": 2, "retry_backoff": {"initial_seconds": 0.01},
     "config": {"handler": "fail", "message": "no", "times": 2}},
    {"name": "c", "config": {"handler": "fail", "message": "no"}},
    {"name": "d", "depends_on_steps": ["c"]},
]  # fmt: skip


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def text_of(value: dict[str, Any]) -> str:
    ((kind, content),) = value.items()
    return ("true" if content else "false") if kind == "boolValue" else str(content)


async def said(api: Api) -> dict[str, Any]:
    """What all spans say: by service their names and kinds, and by scope the attributes' values."""
    ids = [trace["traceID"] for trace in (await api.get("/tempo/api/search?limit=500"))["traces"]]
    facts: dict[str, Any] = {"operations": {}, "span": {}, "resource": {}}
    for trace_id in ids:
        for group in (await api.get(f"/tempo/api/v2/traces/{trace_id}"))["trace"]["resourceSpans"]:
            attributes = {a["key"]: text_of(a["value"]) for a in group["resource"]["attributes"]}
            for name, value in attributes.items():
                facts["resource"].setdefault(name, set()).add(value)
            operations = facts["operations"].setdefault(attributes["service.name"], set())
            for each in group["scopeSpans"][0]["spans"]:
                operations.add((each["name"], KINDS[each.get("kind", 0)]))
                for attribute in each.get("attributes", ()):
                    facts["span"].setdefault(attribute["key"], set()).add(text_of(attribute["value"]))
    return facts


async def listed(api: Api, facts: dict[str, Any], query: str = "") -> dict[str, Any]:
    """The same from the lists; the values of the attributes in ``facts``."""
    services = (await api.get("/jaeger/api/v3/services"))["services"]
    assert services == (await api.get("/jaeger/api/services"))["data"]
    operations = {}
    for service in services:
        rows = (await api.get(f"/jaeger/api/operations?service={service}"))["data"]
        operations[service] = {(row["name"], row["spanKind"]) for row in rows}
        names = (await api.get(f"/jaeger/api/services/{service}/operations"))["data"]
        assert names == sorted({row["name"] for row in rows})
    result: dict[str, Any] = {"operations": operations}
    scopes = {s["name"]: s["tags"] for s in (await api.get(f"/tempo/api/v2/search/tags?{query}"))["scopes"]}
    for scope in ("span", "resource"):
        result[scope] = {}
        for name in scopes[scope]:
            path = f"/tempo/api/v2/search/tag/{quote(f'{scope}.{name}', safe='')}/values?{query}"
            values = (await api.get(path))["tagValues"]
            result[scope][name] = {value["value"] for value in values}
            assert len(values) == len(result[scope][name])
    return result


async def test_lists_are_what_recorded_runs_and_arrived_spans_say(api: Api) -> None:
    await api.call("POST", "/api/workflows", {"name": "own", "steps": STEPS})
    await api.call("POST", "/api/workflows", {"name": "never ran", "steps": STEPS})
    for _ in range(2):
        await api.run("own")
    spans = [
        span("order", 1, 0, 0, 2, of={"region": "eu", "tries": 3}),
        span("pay", 2, 1, 0.5, 1, of={"region": "us", "card": "x" * 50}, error="no"),
    ]
    spans[0].kind = Span.SPAN_KIND_SERVER
    await send(api, export(spans, service="shop").SerializeToString())
    await send(api, export([span("mail", 9, 0, 5, 6, trace=2)], service="post").SerializeToString())
    facts = await said(api)
    assert set(facts["operations"]) == {"tachograph", "shop", "post"}
    assert facts["operations"]["tachograph"] > {("run own", "server"), ("b attempt 1", "internal"), ("d", "internal")}
    assert await listed(api, facts) == facts
    # The same for a range that holds everything, and for the query that Grafana sends when there is none.
    whole = f"start={T0 // S - 86_400}&end={time.time_ns() // S + 1}&q=%7B%7D&limit=5000"
    assert await listed(api, facts, whole) == facts
    # Of the days of the arrived spans alone.
    ours = await api.get(f"/tempo/api/v2/search/tags?start={T0 // S}&end={T0 // S}&scope=span")
    assert ours["scopes"] == [{"name": "span", "tags": ["card", "region", "tries"]}]
    (tries,) = (await api.get("/tempo/api/v2/search/tag/span.tries/values"))["tagValues"]
    assert tries == {"type": "int", "value": "3"}
    assert (await api.get("/tempo/api/search/tag/region/values"))["tagValues"] == ["eu", "us"]
    assert (await api.get("/tempo/api/v2/search/tag/.region/values?limit=1"))["tagValues"] == [
        {"type": "string", "value": "eu"}
    ]
    # Narrowed down by a query; one that is not finished is ignored.
    narrowed = quote('{ resource.service.name = "shop" && name = "pay" }')
    assert (await api.get(f"/tempo/api/search/tags?scope=span&q={narrowed}"))["tagNames"] == ["card", "region", "tries"]
    other = quote('{ resource.service.name = "post" }')
    assert (await api.get(f"/tempo/api/search/tag/span.region/values?q={other}"))["tagValues"] == []
    assert (await api.get("/tempo/api/search/tag/span.region/values?q=%7Bx%3D"))["tagValues"] == ["eu", "us"]


async def test_lists_follow_deletion(api: Api) -> None:
    await send(api, export([span("order", 1, 0, 0, 1, of={"old": "1"})]).SerializeToString())
    await api.call("POST", "/api/workflows", {"name": "own", "steps": STEPS[:1]})
    await api.run("own")
    assert (await api.get("/jaeger/api/v3/services"))["services"] == ["etl", "tachograph"]
    database = api.service.database
    # The day is old, but the trace arrived just now, so it is still there.
    archiving.delete_spans(database, T0 + 2 * 86_400 * S)
    assert (await api.get("/jaeger/api/v3/services"))["services"] == ["etl", "tachograph"]
    archiving.delete_spans(database, time.time_ns() + S)
    assert (await api.get("/jaeger/api/v3/services"))["services"] == ["tachograph"]
    assert (await api.get("/tempo/api/search/tag/old/values"))["tagValues"] == []
    archiving.archive(database, time.time_ns() + 2 * 86_400 * S, None)
    assert (await api.get("/jaeger/api/v3/services"))["services"] == []


async def test_a_run_is_listed_as_soon_as_it_starts(api: Api) -> None:
    document = {"name": "slow", "steps": [{"name": "wait", "config": {"handler": "sleep", "seconds": 30}}]}
    await api.call("POST", "/api/workflows", document)
    _, body = await api.call("POST", "/api/workflows/slow/execute", {})
    path = "/jaeger/api/services/tachograph/operations"
    async with asyncio.timeout(60):
        while (await api.get(path))["data"] != ["run slow", "wait"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await api.call("POST", f"/api/workflows/executions/{body['execution_id']}/cancel")
