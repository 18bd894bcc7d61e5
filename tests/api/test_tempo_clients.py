"""Every request form of Grafana's Tempo data source and of Traces Drilldown, decoded as their code decodes it.

Sources (August 2026): grafana/grafana-tempo-datasource ``pkg/tempo/{search,traceql_query,trace}.go`` and
``pkg/tempo/traceql``; grafana/traces-drilldown ``src/components/Explore`` and ``src/utils/trace-merge``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from tests.api.test_otlp import send
from tests.conftest import Api, serve
from tests.traces.oracle import RELATIONS, T0, S, Span, Trace, nested_set, once, table_of
from tests.traces.test_oracle import TRACES, compare_metrics, exported, labels_of

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

START, END = T0 // S - 600, T0 // S + 3600


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        body = exported([span for trace in TRACES for span in trace.spans]).SerializeToString()
        assert (await send(api, body))[0] == 200
        yield api


# Protobuf's JSON, read strictly: a field that is not in Tempo's .proto is an error in Grafana's source.

UINT64 = str
_VALUE = {"stringValue": str, "intValue": str, "boolValue": bool, "doubleValue": (int, float)}
_ATTRIBUTES = [{"key": str, "value": _VALUE}]
_SPANSET = {
    "spans": [{"spanID": str, "name": str, "startTimeUnixNano": UINT64, "durationNanos": UINT64,
               "attributes": _ATTRIBUTES}],
    "matched": int, "attributes": _ATTRIBUTES,
}  # fmt: skip
_METRICS = {"inspectedTraces": int, "inspectedBytes": UINT64, "totalBlocks": int, "completedJobs": int,
            "totalJobs": int, "totalBlockBytes": UINT64, "inspectedSpans": UINT64}  # fmt: skip
SEARCH_RESPONSE = {
    "traces": [{"traceID": str, "rootServiceName": str, "rootTraceName": str, "startTimeUnixNano": UINT64,
                "durationMs": int, "spanSet": _SPANSET, "spanSets": [_SPANSET], "serviceStats": dict}],
    "metrics": _METRICS,
}  # fmt: skip
INSTANT_RESPONSE = {"series": [{"labels": _ATTRIBUTES, "value": (int, float)}], "metrics": _METRICS}
_EXEMPLAR = {"labels": _ATTRIBUTES, "value": (int, float), "timestampMs": str}
RANGE_RESPONSE = {
    "series": [{"labels": _ATTRIBUTES, "samples": [{"timestampMs": str, "value": (int, float)}], "promLabels": str,
                "exemplars": [_EXEMPLAR]}],
    "metrics": _METRICS,
}  # fmt: skip


def strictly(value: Any, shape: Any, at: str = "") -> Any:
    """The value, if it has the shape and nothing else."""
    if isinstance(shape, dict):
        for key, item in value.items():
            assert key in shape, f"unknown field {at}.{key}"
            strictly(item, shape[key], f"{at}.{key}")
    elif isinstance(shape, list):
        for item in value:
            strictly(item, shape[0], at)
    else:
        assert isinstance(value, shape), at
        if shape is UINT64 and at.endswith(("Nano", "Nanos", "Ms", "intValue")):
            int(value)
    return value


async def search(api: Api, query: str, **parameters: str) -> Any:
    """Search as the data source does: whole seconds, a limit, spans per spanset."""
    parameters = {"q": query, "limit": "200", "spss": "20", "start": str(START), "end": str(END)} | parameters
    return strictly(await api.get("/tempo/api/search", params=parameters), SEARCH_RESPONSE)


async def query_range(api: Api, query: str, **parameters: str) -> Any:
    """Ask for metrics as the data source does."""
    parameters = {"q": query, "start": str(START), "end": str(END)} | parameters
    return strictly(await api.get("/tempo/api/metrics/query_range", params=parameters), RANGE_RESPONSE)


def matches(body: Any) -> dict[str, frozenset[str]]:
    return {
        trace["traceID"]: frozenset(span["spanID"] for set_ in trace["spanSets"] for span in set_["spans"])
        for trace in body["traces"]
    }


Predicate = Callable[[Span], bool]


def expected(predicate: Predicate) -> dict[str, frozenset[str]]:
    found = {trace.id: frozenset(span.id for span in trace.spans if predicate(span)) for trace in TRACES}
    return {trace_id: spans for trace_id, spans in found.items() if spans}


def is_root(span: Span) -> bool:
    return nested_set(span.trace)[span.id][2] < 0


# Grafana's Tempo data source.


async def test_the_data_source_is_healthy(api: Api) -> None:
    assert await api.get("/tempo/api/echo") == "echo"
    assert (await api.get("/tempo/api/status/buildinfo"))["version"]


@pytest.mark.parametrize(
    ("query", "predicate"),
    [
        ("{}", lambda s: True),
        ('{resource.service.name="shop" && name="charge" && status=error}',
         lambda s: (s.service, s.name, s.status) == ("shop", "charge", "error")),
        # The search editor: several values of a filter, regular expressions of several values, durations.
        ('{(name="charge" || name="send") && span.n>1}',
         lambda s: s.name in ("charge", "send") and s.attributes.get("n", 0) > 1),
        ('{(status!=error && status!=ok) && kind=server}', lambda s: (s.status, s.kind) == ("unset", "server")),
        ('{name=~"charge|send" && duration>=1s && duration<3000000001ns}',
         lambda s: s.name in ("charge", "send") and s.duration is not None and S <= s.duration <= 3 * S),
        ('{name!~"charge|send"}', lambda s: s.name not in ("charge", "send")),
        ('{.region="us" && span.b=true}', lambda s: s.service == "bank" and s.attributes.get("b") is True),
        ('{event:name="exception"}', lambda s: any(name == "exception" for name, _, _ in s.events)),
    ],
)  # fmt: skip
async def test_the_data_source_searches(api: Api, query: str, predicate: Predicate) -> None:
    body = await search(api, query)
    assert matches(body) == expected(predicate)
    starts = [int(trace["startTimeUnixNano"]) for trace in body["traces"]]
    assert starts == sorted(starts, reverse=True)
    for trace in body["traces"]:
        true = next(t for t in TRACES if t.id == trace["traceID"])
        assert (trace["rootServiceName"], trace["rootTraceName"]) == (true.root().service, true.root().name)
        assert trace["durationMs"] == true.duration() // 10**6
        assert {k: v["spanCount"] for k, v in trace["serviceStats"].items()} == Counter(s.service for s in true.spans)


async def test_columns_of_a_search(api: Api) -> None:
    """`transformSpanToTraceData`: the attributes of the spanset and of the span, by their key."""
    body = await search(
        api, "{ span.n > 0 } | by(resource.region) | count() > 0 | select(span.s, span.f, status, .missing)"
    )
    spansets = [spanset for trace in body["traces"] for spanset in trace["spanSets"]]
    assert spansets
    spans = {span.id: span for trace in TRACES for span in trace.spans}
    for spanset in spansets:
        group, count = spanset["attributes"]
        assert (group["key"], count["key"]) == ("by(resource.region)", "count()")
        assert int(count["value"]["intValue"]) == spanset["matched"] == len(spanset["spans"])
        for span in spanset["spans"]:
            true = spans[span["spanID"]]
            columns = {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}
            wanted = {"n": str(true.attributes["n"]), "region": group["value"]["stringValue"], "status": true.status,
                      "s": true.attributes.get("s"), "f": true.attributes.get("f")}  # fmt: skip
            assert columns == {key: value for key, value in wanted.items() if value is not None}
            assert (span["name"], int(span["startTimeUnixNano"])) == (true.name, true.start)
    assert any(len(trace["spanSets"]) > 1 for trace in body["traces"])
    few = await search(api, "{ }", spss="1", limit="3")
    assert [len(trace["spanSet"]["spans"]) for trace in few["traces"]] == [1, 1, 1]
    assert max(trace["spanSet"]["matched"] for trace in (await search(api, "{ }", spss="1"))["traces"]) > 1


async def test_the_data_source_opens_a_trace(api: Api) -> None:
    path = f"/tempo/api/v2/traces/{TRACES[0].id}?start={START}&end={END}"
    async with api.session.get(api.address + path, headers={"Accept": "application/protobuf"}) as answer:
        assert (answer.status, answer.content_type) == (200, "application/protobuf")
        body = await answer.read()
    # TraceByIDResponse: the trace is field 1, length-delimited.
    assert body[0] == 0x0A
    data = TracesData.FromString(body[2:] if body[1] < 0x80 else body[3:])
    assert sum(len(scope.spans) for group in data.resource_spans for scope in group.scope_spans) == len(TRACES[0].spans)


@pytest.mark.parametrize(
    ("query", "function", "of", "by"),
    [
        ("{} | rate()", "rate", "", []),
        ("{} | count_over_time() by (name, status)", "count_over_time", "", ["name", "status"]),
        (
            "{} | avg_over_time(duration) by (resource.service.name)",
            "avg_over_time",
            "duration",
            ["resource.service.name"],
        ),
        ("{} | max_over_time(span.n)", "max_over_time", "span.n", []),
        ("{} | quantile_over_time(duration, .5, 1) by (kind)", "quantile_over_time", "duration", ["kind"]),
        ("{} | histogram_over_time(duration) by (rootName)", "histogram_over_time", "duration", ["rootName"]),
    ],
)
async def test_the_data_source_asks_for_metrics(api: Api, query: str, function: str, of: str, by: list[str]) -> None:
    for is_instant in (False, True):
        assert await compare_metrics(
            api, query, lambda traces, steps: table_of(traces, steps, lambda _, spans: spans, function, of, by),
            is_instant=is_instant,
        )  # fmt: skip


async def test_forms_of_metrics_requests(api: Api) -> None:
    body = await query_range(api, "{} | rate() by (span.n) | topk(2) > 0", step="60s", exemplars="100")
    at: dict[str, int] = Counter(sample["timestampMs"] for series in body["series"] for sample in series["samples"])
    assert at
    assert max(at.values()) <= 2
    exemplars = [exemplar for series in body["series"] for exemplar in series.get("exemplars", ())]
    by_id = {(span.trace.id, span.id): span for trace in TRACES for span in trace.spans}
    for exemplar in exemplars:
        labels = {label["key"]: label["value"]["stringValue"] for label in exemplar["labels"]}
        span = by_id[labels["trace:id"], labels["span:id"]]
        assert (labels["name"], int(exemplar["timestampMs"])) == (span.name, span.start // 10**6)
        # The source leaves out what has no value.
        assert exemplar["value"] > 0
    assert exemplars
    # Its older name, its own default step, nanoseconds, RFC 3339, and a range before now.
    for parameters in (
        {"query": "{} | rate()", "start": str(START), "end": str(END)},
        {"q": "{} | rate()", "start": str(START * S), "end": str(END * S), "step": "15"},
        {"q": "{} | rate() with(sample=0.1, exemplars=true, span_sample=1)", "since": "90m"},
        {"q": "{} | rate()", "start": "2026-09-21T00:00:00Z", "end": "2026-09-22T00:00:00.5Z", "step": "30m"},
        {"q": "{} | rate()", "start": f"{START}.5", "end": f"{END}.25", "mode": "recent"},
    ):
        strictly(await api.get("/tempo/api/metrics/query_range", params=parameters), RANGE_RESPONSE)
        strictly(await api.get("/tempo/api/metrics/query", params=parameters), INSTANT_RESPONSE)


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"q": "{}"}, 400, "end it with a metric"),
        ({}, 400, "a query (q) is needed"),
        ({"q": "{ nome = 1 } | rate()"}, 400, "at 3"),
        ({"q": "({} | rate()) / ({} | rate())"}, 400, "arithmetic with metrics is not supported"),
        ({"q": "{} | rate()", "start": "20", "end": "10"}, 422, "start before it ends"),
        ({"q": "{} | rate()", "start": "10", "end": "1999999999", "step": "1s"}, 400, "longer step"),
        ({"q": "{} | rate()", "step": "0"}, 422, "longer than 0"),
        ({"q": "{} | rate()", "start": "9" * 25}, 422, "too late"),
    ],
)
async def test_what_metrics_cannot_give_is_said(api: Api, parameters: dict[str, str], status: int, says: str) -> None:
    code, body = await api.call("GET", "/tempo/api/metrics/query_range", params=parameters)
    assert (code, says in str(body)) == (status, True), body


# Traces Drilldown.

SIGNALS: dict[str, Predicate] = {
    "nestedSetParent<0": is_root,
    "true": lambda s: True,
    "kind=server": lambda s: s.kind == "server",
    "kind=consumer": lambda s: s.kind == "consumer",
    'span.db.system.name!=""': lambda s: False,
}
FILTERS: dict[str, Predicate] = {
    "true": lambda s: True,
    'resource.service.name="shop"&&span.n>0': lambda s: s.service == "shop" and s.attributes.get("n", 0) > 0,
    'status=error&&name=~"ch.*"': lambda s: s.status == "error" and s.name.startswith("ch"),
}


@pytest.mark.parametrize("signal", SIGNALS)
async def test_drilldown_draws_rate_errors_and_duration(api: Api, signal: str) -> None:
    for filters, fits in FILTERS.items():

        def chosen(span: Span, also: Predicate = lambda s: True, fits: Predicate = fits) -> bool:
            return SIGNALS[signal](span) and fits(span) and also(span)

        base = f"{signal} && {filters}"
        for query, function, of, by, also in (
            (f"{{{base}}} | rate() ", "rate", "", [], lambda s: True),
            (f"{{{base} && status=error}} | rate()  with(sample=true)", "rate", "", [], lambda s: s.status == "error"),
            (f"{{{base}}} | quantile_over_time(duration, 0.5,1) ", "quantile_over_time", "duration", [],
             lambda s: True),
            (f"{{{base}}} | histogram_over_time(duration) with(sample=true)", "histogram_over_time", "duration", [],
             lambda s: True),
            (f"{{{base} && resource.service.name != nil}} | rate() by(resource.service.name) with(sample=true)", "rate",
             "", ["resource.service.name"], lambda s: True),
            (f"{{{base} && span.s != nil}} | quantile_over_time(duration, 0.5, 1) by(span.s)", "quantile_over_time",
             "duration", ["span.s"], lambda s: "s" in s.attributes),
            (f'{{{base} && name="charge"}} | rate() by(name)', "rate", "", ["name"], lambda s: s.name == "charge"),
        ):  # fmt: skip
            await compare_metrics(
                api, query,
                lambda traces, steps, also=also, function=function, of=of, by=by: table_of(
                    traces, steps, lambda _, spans: [span for span in spans if chosen(span, also)], function, of, by
                ),
                is_instant=False,
            )  # fmt: skip


async def test_drilldown_lists_spans(api: Api) -> None:
    select = "select(resource.service.name,name,duration,span.n)"
    for query, predicate in (
        (f"{{nestedSetParent<0 && true}} | {select}", is_root),
        (f"{{true && true && status = error}} | {select}", lambda s: s.status == "error"),
        (f"{{true && true&& duration >= 1s && duration <= 3s}} | {select}",
         lambda s: s.duration is not None and S <= s.duration <= 3 * S),
        (f"{{true && true&& duration > 1.5s}} | {select}", lambda s: (s.duration or 0) > 1.5 * S),
    ):  # fmt: skip
        assert matches(await search(api, query, spss="10")) == expected(predicate)
    # Exceptions: attributes of events.
    body = await search(
        api,
        "{true && true && status = error} | select(resource.service.name, event.exception.message,"
        "event.exception.stacktrace,event.exception.type, event.code) with(most_recent=true)",
    )
    spans = {span.id: span for trace in TRACES for span in trace.spans}
    seen = 0
    for span in (span for trace in body["traces"] for span in trace["spanSet"]["spans"]):
        columns = {item["key"]: item["value"] for item in span["attributes"]}
        true = spans[span["spanID"]]
        assert columns["service.name"] == {"stringValue": true.service}
        assert columns.get("code") == ({"intValue": str(true.events[0][2]["code"])} if true.events else None)
        seen += len(true.events)
    assert seen


@pytest.mark.parametrize(
    ("metric", "condition", "also"),
    [
        ("errors", "status = error", lambda s: s.status == "error"),
        ("duration", "duration > 2s", lambda s: (s.duration or 0) > 2 * S),
        ("rate", "", lambda s: True),
    ],
)
async def test_drilldown_builds_its_tree(api: Api, metric: str, condition: str, also: Predicate) -> None:
    """`mergeTraces`: one spanset a trace, whose spans all have the numbers of the nested set."""
    roots = f"nestedSetParent<0 && true {'&& ' + condition if condition else ''}"
    below = condition or "kind = server"
    query = (
        f"({{{roots}}} &>> {{ {below} }}) || ({{{roots}}}) | select(status, resource.service.name, name, "
        "nestedSetParent, nestedSetLeft, nestedSetRight)"
    )
    body = await search(api, query, spss="20", limit="200")

    def chosen(trace: Trace) -> list[Span]:
        tops = [span for span in trace.spans if is_root(span) and also(span)]
        lower = [span for span in trace.spans if (also(span) if condition else span.kind == "server")]
        return once(RELATIONS["&>>"](trace, tops, lower) + tops)

    assert matches(body) == {t.id: frozenset(s.id for s in chosen(t)) for t in TRACES if chosen(t)}, metric
    for trace in body["traces"]:
        (spanset,) = trace["spanSets"]
        numbers = nested_set(next(t for t in TRACES if t.id == trace["traceID"]))
        for span in spanset["spans"]:
            columns = {item["key"]: item["value"] for item in span["attributes"]}
            assert numbers[span["spanID"]] == tuple(
                int(columns[f"nestedSet{side}"]["intValue"]) for side in ("Left", "Right", "Parent")
            )
            assert {"status", "service.name"} <= columns.keys()


@pytest.mark.parametrize(
    ("selection", "is_selected"),
    [
        ("{status = error}, 10", lambda s: s.status == "error"),
        ("{duration >= 1s && duration <= 3s}, 10", lambda s: s.duration is not None and S <= s.duration <= 3 * S),
        (f"{{}}, 10, {(T0 // S + 300) * S}, {(T0 // S + 600) * S}", lambda s: T0 + 300 * S < s.start <= T0 + 600 * S),
    ],
)
async def test_drilldown_compares_a_selection_with_the_rest(api: Api, selection: str, is_selected: Predicate) -> None:
    """`frameGroupToDataframe`: the shares of the values of an attribute among the two kinds of spans."""
    step = f"{END - START}s"
    body = await query_range(api, f"{{nestedSetParent<0 && true}} | compare({selection})", step=step)
    found: dict[tuple[str, str], Counter[Any]] = {}
    for series in body["series"]:
        labels = dict(labels_of(series))
        kind = labels.pop("__meta_type")
        ((name, value),) = labels.items()
        found.setdefault((kind, name), Counter())[value] += sum(sample["value"] for sample in series["samples"])
    roots = [span for trace in TRACES for span in trace.spans if is_root(span)]
    for kind, spans in (
        ("selection", [s for s in roots if is_selected(s)]), ("baseline", [s for s in roots if not is_selected(s)])
    ):  # fmt: skip
        assert found[kind, "name"] == Counter(span.name for span in spans)
        assert found[kind, "resource.service.name"] == Counter(span.service for span in spans)
        assert found[kind, "rootName"] == Counter(span.trace.root().name for span in spans)
        assert found[kind, "span.n"] == Counter(span.attributes["n"] for span in spans if "n" in span.attributes)
        assert found[f"{kind}_total", "span.n"] == {"nil": sum("n" in span.attributes for span in spans)}
        assert found[f"{kind}_total", "name"] == {"nil": len(spans)}
