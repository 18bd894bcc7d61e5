"""Requests as viewers of others send them are answered, whatever their versions add; our own API stays strict."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.api.test_otlp import PLAIN, T0, S, sent
from tests.conftest import Api, serve

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        await sent(api, *PLAIN)
        yield api


TRACE = f"{1:032x}"
RANGE = f"start={T0 // S - 60}&end={T0 // S + 60}"


@pytest.mark.parametrize(
    "path",
    [
        # Grafana's Tempo data source: values of a drop-down, names, a trace with the time range.
        f"/tempo/api/v2/search/tag/resource.service.name/values?tag=resource.service.name&limit=5000&{RANGE}",
        f"/tempo/api/search/tag/span.x/values?tag=x&limit=0&{RANGE}",
        f"/tempo/api/v2/search/tags?limit=5000&scope=span&maxStaleValues=9&{RANGE}",
        f"/tempo/api/v2/traces/{TRACE}?{RANGE}&mode=all",
        f"/tempo/api/traces/{TRACE}?{RANGE}&blockStart=0&blockEnd=f",
        f"/tempo/api/search?limit=501&spss=2000&minDuration=500us&maxDuration=1h30m&rf1After=x&{RANGE}",
        # Jaeger UI and Grafana's Jaeger data source.
        f"/jaeger/api/traces/{TRACE}?start={T0 // 1000}&end={T0 // 1000}&raw=true",
        "/jaeger/api/services?_=1",
        "/jaeger/api/services/etl/operations?x=1",
        "/jaeger/api/operations?service=etl&spanKind=&service=etl",
        f"/jaeger/api/dependencies?endTs={T0 // 10**6}&lookback=604800000&x=",
        "/jaeger/api/traces?service=etl&limit=501&lookback=custom&minDuration=100%C2%B5s&maxDuration=1.5h&operation=",
    ],
)
async def test_what_a_viewer_adds_is_ignored_and_its_limits_are_bounded(api: Api, path: str) -> None:
    status, body = await api.call("GET", path)
    assert status == 200, body


async def test_a_limit_out_of_range_is_moved_into_it(api: Api) -> None:
    for limit in ("501", "9" * 25, "1", "0", "-5"):
        assert len((await api.get(f"/jaeger/api/traces?service=etl&limit={limit}"))["data"]) == 1, limit
        assert len((await api.get(f"/tempo/api/search?limit={limit}"))["traces"]) == 1, limit


async def test_durations_of_go_filter(api: Api) -> None:
    # The trace takes ten seconds.
    for duration, count in (("9999999us", 1), ("10s", 1), ("10.000001s", 0), ("1h30m", 0), ("9s999ms", 1)):
        traces = (await api.get(f"/jaeger/api/traces?service=etl&minDuration={duration}"))["data"]
        assert len(traces) == count, duration
        assert len((await api.get(f"/tempo/api/search?minDuration={duration}"))["traces"]) == count, duration


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/jaeger/api/traces?service=etl&limit=many", "limit"),
        ("/jaeger/api/traces?service=etl&minDuration=soon", "minDuration"),
        ("/jaeger/api/traces?service=etl&tags={", "tags"),
        ("/tempo/api/search?minDuration=-5s", "minDuration"),
        ("/tempo/api/search?limit=1.5", "limit"),
    ],
)
async def test_what_cannot_be_read_is_refused_by_name(api: Api, path: str, name: str) -> None:
    status, body = await api.call("GET", path)
    assert (status, body["code"], [fault["at"] for fault in body["errors"]]) == (422, "invalid_parameters", [name])


async def test_our_own_routes_stay_strict(api: Api) -> None:
    for query in ("limit=1001", "nonsense=1", "min_duration=500us"):
        status, body = await api.call("GET", f"/api/workflows/executions?{query}")
        assert (status, body["code"]) == (422, "invalid_parameters"), query
