"""Searches and metrics see the same spans wherever they are stored: recorded here, arrived, both, by an old version."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from tests.api.test_api import RETRY, register
from tests.api.test_otlp import T0, S, send, sent, span
from tests.conftest import Api, serve
from tests.traces.test_oracle import TRACES, exported

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import lengths
from tachograph_exporter.traces import trace_metrics


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


async def found(api: Api, query: str) -> Any:
    body = await api.get("/tempo/api/search", params={"q": query, "limit": "500", "spss": "0"})
    return {
        (trace["traceID"], span["spanID"]) for trace in body["traces"] for s in trace["spanSets"] for span in s["spans"]
    }


async def counted(api: Api, query: str, since: str = "1h") -> dict[str, float]:
    body = await api.get("/tempo/api/metrics/query", params={"q": query, "since": since})
    return {
        ",".join(str(next(iter(label["value"].values()))) for label in series["labels"]): series["value"]
        for series in body["series"]
    }


async def test_a_run_recorded_here_counts_once_whether_or_not_its_spans_arrived(api: Api) -> None:
    execution = await api.run(await register(api, RETRY))
    otlp = await api.get(f"/api/workflows/executions/{execution}/timeline?format=otlp")
    spans = [span for group in otlp["resourceSpans"] for scope in group["scopeSpans"] for span in scope["spans"]]
    names = Counter(span["name"] for span in spans)
    assert {"run retry", "flaky", "flaky attempt 1", "skipped"} <= names.keys()
    failed = Counter(span["name"] for span in spans if span.get("status", {}).get("code") == 2)
    ids = {(span["traceId"], span["spanId"]) for span in spans}
    for _ in range(2):
        assert await counted(api, "{ } | count_over_time() by (name)") == names
        assert await counted(api, "{ status = error } | count_over_time() by (name)") == failed
        assert await counted(api, "{ nestedSetParent < 0 } | count_over_time() by (name)") == {"run retry": 1}
        assert await counted(api, "{ } >> { status = error } | count_over_time() by (name)") == {
            name: count for name, count in failed.items() if name != "run retry"
        }
        assert await found(api, "{ }") == ids
        for name in names:
            assert {span_id for _, span_id in await found(api, f"{{ name = `{name}` }}")} == {
                span["spanId"] for span in spans if span["name"] == name
            }, name
        assert await found(api, '{ name = "retry" || resource.service.name = "other" }') == set()
        # The same spans by OTLP: what arrived counts, once.
        assert (await send(api, msgspec.json.encode(otlp), "application/json"))[0] == 200


async def test_a_trace_that_continues_one_from_elsewhere_has_a_root(api: Api) -> None:
    """Its first span has a parent that is not here."""
    await sent(api, span("continued", 2, parent=77, start=0), span("below", 3, parent=2, start=0.5),
               span("whole", 4, trace=2), span("lost", 5, parent=88, trace=2))  # fmt: skip
    for query in ("{ nestedSetParent < 0 }", "{ nestedSetParent = -1 }", "{ !(nestedSetParent >= 0) }"):
        assert {int(span_id, 16) for _, span_id in await found(api, query)} == {2, 4}, query
    request = {"start": str(T0 // S - 10), "end": str(T0 // S + 10)}
    for query in ("{ nestedSetParent < 0 }", "{ nestedSetParent < 0 || false }"):
        parameters = {"q": f"{query} | count_over_time() by (name)", **request}
        body = await api.get("/tempo/api/metrics/query", params=parameters)
        names = {series["labels"][0]["value"]["stringValue"]: series["value"] for series in body["series"]}
        assert names == {"continued": 1, "whole": 1}, query
    assert {int(span_id, 16) for _, span_id in await found(api, "{ name = `continued` } > { }")} == {3}


async def test_spans_of_an_earlier_version_are_found_too(api: Api) -> None:
    """Their rows say neither kind nor status."""
    await send(api, exported([span for trace in TRACES for span in trace.spans]).SerializeToString())
    searches = (
        "{ status = error }", "{ kind = server && status = ok }", '{ name = "charge" && status = error }',
        '{ resource.service.name = "bank" && kind = client }', "{ nestedSetParent < 0 && status = error }",
        "{ status != error } >> { status = error }",
    )  # fmt: skip
    metrics = (
        "{ status = error } | count_over_time() by (kind)", "{ nestedSetParent < 0 } | count_over_time() by (status)",
        '{ name = "charge" } | max_over_time(duration) by (status)', "{ kind = server } | rate()",
        "{ } | quantile_over_time(duration, 0.5) by (kind)",
    )  # fmt: skip
    window = {"start": str(T0 // S - 600), "end": str(T0 // S + 3600)}

    async def answers() -> Any:
        series = []
        for query in metrics:
            body = await api.get("/tempo/api/metrics/query", params={"q": query, **window})
            series.append(sorted((str(each["labels"]), each["value"]) for each in body["series"]))
        return [await found(api, query) for query in searches], series

    before = await answers()
    assert all(before[0])
    assert all(before[1])
    await api.service.database.write(lambda c: c.execute(text("UPDATE spans SET kind = NULL, status = NULL")))
    assert await answers() == before


async def test_a_search_goes_on_where_its_first_look_ended(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several spans of a trace match, and some start at the same time."""
    await sent(api, *(span("same", number, 0 if number == 1 else 1, start=trace // 2, trace=trace)
                      for trace in range(1, 9) for number in (1, 2, 3)))  # fmt: skip
    monkeypatch.setattr(lengths, "FIRST_ROWS", 4)
    assert len(await found(api, "{ name = `same` }")) == 24
    newest = await api.get("/tempo/api/search", params={"q": '{ resource.service.name = "etl" }', "limit": "3"})
    assert {int(trace["traceID"], 16) for trace in newest["traces"]} <= {5, 6, 7, 8}
    early = await api.get("/tempo/api/search", params={"q": "{ name = `same` }", "end": str(T0 // S + 1)})
    assert {int(trace["traceID"], 16) for trace in early["traces"]} == {1, 2, 3}


async def test_hostile_values_are_answered_in_json(api: Api) -> None:
    """Not a number, infinite, bytes, maps, lists of anything, names that look like a query."""
    spans = [span(f"s{number}", number + 1, 0 if number == 0 else 1, of={}) for number in range(6)]
    values = spans[0].attributes.add(key='a "b" } | rate()').value, spans[1].attributes.add(key="x").value
    values[0].double_value, values[1].double_value = float("nan"), float("inf")
    spans[2].attributes.add(key="x").value.bytes_value = b"\xff\x00"
    spans[3].attributes.add(key="x").value.kvlist_value.values.add(key="k").value.double_value = float("nan")
    spans[4].attributes.add(key="x").value.array_value.values.add().double_value = float("-inf")
    spans[5].attributes.add(key="x").value.int_value = (1 << 63) - 1
    await sent(api, *spans)
    names = ['span."a \\"b\\" } | rate()"', "span.x"]
    window = {"start": str(T0 // S - 600), "end": str(T0 // S + 600)}
    for name in names:
        body = await api.get("/tempo/api/search", params={"q": f"{{ {name} != nil }} | select({name})", "spss": "0"})
        assert body["traces"][0]["spanSet"]["matched"] == (1 if "rate" in name else 5)
        for query in (f"{{ }} | by({name}) | avg({name}) > -{'9' * 18}", f"{{ {name} * {name} ^ 9 > 0 }}",
                      f"{{ {name} = {name} || {name} % {name} = 0 || -{name} < 1 / 0 }}"):  # fmt: skip
            await api.get("/tempo/api/search", params={"q": query})
        for query in (f"rate() by ({name})", f"sum_over_time({name})", f"quantile_over_time({name}, .5) by ({name})",
                      f"histogram_over_time({name})", "compare({ status = error })"):  # fmt: skip
            for path in ("query", "query_range"):
                await api.get(f"/tempo/api/metrics/{path}", params={"q": f"{{ }} | {query}", **window})


async def test_a_sample_stands_for_all(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of these traces end with every two digits equally often."""
    await sent(api, *(span("one" if number % 2 else "two", 1, trace=number + 1) for number in range(512)))
    window = {"start": str(T0 // S - 600), "end": str(T0 // S + 600)}
    for query, most in (("sample=true", 100_000), ("sample=0.25", 100_000), ("sample=true", 100), ("sample=2", 1)):
        monkeypatch.setattr(trace_metrics, "MAX_SAMPLED", most)
        parameters = {"q": f"{{ }} | count_over_time() by (name) with({query})", **window}
        body = await api.get("/tempo/api/metrics/query", params=parameters)
        assert {series["value"] for series in body["series"]} == {256}, query
        read = {"sample=0.25": 128, "sample=true": 512 if most > 512 else 100, "sample=2": 512}[query]
        assert int(body["metrics"]["inspectedSpans"]) == read
        parameters["q"] = f"{{ nestedSetParent < 0 }} | max_over_time(duration) with({query})"
        body = await api.get("/tempo/api/metrics/query", params=parameters)
        assert [series["value"] for series in body["series"]] == [1]
