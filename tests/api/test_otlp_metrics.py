"""Metrics by OTLP: what a process measures of itself is kept by minute and shown with its runs; the rest is counted."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality as Temporality
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from sqlalchemy import select
from tests.api.test_otlp import T0, S, describe, sent, span
from tests.conftest import Api, make_execution, make_run, serve

from tachograph import process
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import process_rows
from tachograph_exporter.store.schema import process_metrics, processes

# A few minutes ago, in the middle of a minute: what is older than a week is forgotten.
START = (round(time.time()) // 60 - 5) * 60 + 30
LATER = START - T0 // S
"""Seconds from the time of the tests' spans until then."""
WORKER: Mapping[str, str | int] = {"service.name": "etl", "service.instance.id": "worker-1", "process.pid": 4711}


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def local(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        yield api


def gauge(name: str, *values: tuple[float, float], **attributes: str) -> Metric:
    """(seconds after the start, value) of a gauge."""
    metric = Metric(name=name, unit="By")
    for at, value in values:
        point = metric.gauge.data_points.add(time_unix_nano=START * S + round(at * S), as_double=value)
        describe(point.attributes, attributes)
    return metric


def counter(name: str, *values: tuple[float, int], delta: bool = False) -> Metric:
    metric = Metric(name=name, unit="s")
    metric.sum.is_monotonic = True
    metric.sum.aggregation_temporality = (
        Temporality.AGGREGATION_TEMPORALITY_DELTA if delta else Temporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    )
    for at, value in values:
        metric.sum.data_points.add(time_unix_nano=START * S + round(at * S), as_int=value)
    return metric


def request_of(*metrics: Metric, of: Mapping[str, str | int] = WORKER) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    describe(group.resource.attributes, of)
    group.scope_metrics.add().metrics.extend(metrics)
    return request


async def send(api: Api, *metrics: Metric, of: Mapping[str, str | int] = WORKER) -> int:
    """The number of points that were rejected."""
    body = request_of(*metrics, of=of).SerializeToString()
    headers = {"Content-Type": "application/x-protobuf"}
    async with api.session.post(f"{api.address}/v1/metrics", data=body, headers=headers) as response:
        assert response.status == 200
        return ExportMetricsServiceResponse.FromString(await response.read()).partial_success.rejected_data_points


async def shown(api: Api) -> Any:
    page = await api.get("/api/workflows/executions")
    (item,) = page["items"]
    return (await api.get(f"/api/workflows/executions/{item['execution_id']}/processes"))["items"]


RUN = [
    span("nightly", 1, 0, LATER, LATER + 100, around=WORKER),
    span("load", 2, 1, LATER + 1, LATER + 90, around=WORKER),
]


async def test_a_runs_process_shows_each_minute_of_what_it_measured(api: Api) -> None:
    await sent(api, *RUN)
    rest = 30
    memory = gauge("process.memory.usage", (0, 100.0), (1, 300.0), (2, 200.0), (rest, 50.0), (-3600, 1.0))
    modes = [gauge("process.cpu.utilization", (1, 0.5), **{"cpu.mode": mode}) for mode in ("user", "system")]
    time_used = counter("process.cpu.time", (0, 10), (rest, 14))
    faults = counter("process.paging.faults", (0, 3), (1, 4), (rest, 1), delta=True)
    assert await send(api, memory, *modes, time_used, faults) == 0
    await send(api, gauge("process.memory.usage", (1, 7.0)), of={**WORKER, "service.instance.id": "worker-2"})
    (worker,) = await shown(api)
    assert (worker["service"], worker["service_instance_id"], worker["pid"]) == ("etl", "worker-1", 4711)
    series = {(one["name"], str(one["attributes"])): one for one in worker["metrics"]}
    used = series["process.memory.usage", "{}"]
    assert (used["low"], used["high"], used["latest"], used["unit"], used["kind"]) == (50, 300, 50, "By", "gauge")
    assert [(point["latest"], point["low"], point["high"]) for point in used["points"]] == [
        (200, 100, 300),
        (50, 50, 50),
    ]
    cpu = series["process.cpu.time", "{}"]
    assert (cpu["kind"], [point["latest"] for point in cpu["points"]]) == ("counter", [10, 14])
    paging = series["process.paging.faults", "{}"]
    assert (paging["kind"], [point["latest"] for point in paging["points"]]) == ("increase", [7, 1])
    assert {key for key in series if key[0] == "process.cpu.utilization"} == {
        ("process.cpu.utilization", "{'cpu.mode': 'user'}"),
        ("process.cpu.utilization", "{'cpu.mode': 'system'}"),
    }


async def test_points_that_are_sent_again_change_nothing(api: Api) -> None:
    metrics = gauge("process.memory.usage", (0, 1.0), (2, 3.0)), counter("process.x", (0, 2), (1, 3), delta=True)
    rows = select(process_metrics).order_by(process_metrics.c.name)
    await send(api, *metrics)
    first = await api.service.database.read(lambda c: c.execute(rows).all())
    await send(api, *metrics)
    assert await api.service.database.read(lambda c: c.execute(rows).all()) == first
    assert [row.latest for row in first] == [3.0, 5.0]


async def test_what_belongs_to_no_process_is_counted_and_dropped(local: Api) -> None:
    histogram = Metric(name="process.latency")
    histogram.histogram.data_points.add(count=1)
    assert await send(local, gauge("http.server.active_requests", (0, 1.0), (1, 2.0)), histogram) == 0
    assert await send(local, gauge("process.memory.usage", (0, math.nan), (0, math.inf))) == 0
    assert await send(local, gauge("process.memory.usage", (0, 1.0)), of={"service.name": "etl"}) == 0
    text = await local.metrics()
    for reason, count in (("not_process", 2), ("not_number", 3), ("no_process", 1), ("limit", 0)):
        assert f'tachograph_otlp_dropped_total{{reason="{reason}",signal="metrics"}} {count}.0' in text
    assert not await local.service.database.read(lambda c: c.execute(select(process_metrics)).all())


async def test_a_process_without_an_instance_is_known_by_host_and_pid(local: Api) -> None:
    resource: Mapping[str, str | int] = {"service.name": "etl", "host.name": "worker", "process.pid": 12}
    await sent(local, span("nightly", 1, 0, LATER, LATER + 10, around=resource))
    await send(local, gauge("process.memory.usage", (1, 7.0)), of=resource)
    await send(local, gauge("process.memory.usage", (1, 8.0)), of={**resource, "process.pid": 13})
    (worker,) = await shown(local)
    assert (worker["host"], worker["pid"], worker["metrics"][0]["latest"]) == ("worker", 12, 7)


async def test_a_run_that_was_recorded_here_has_its_process_too(local: Api) -> None:
    host, _, pid, _ = process.identity().split("/")
    execution = make_execution()
    started, *rest = make_run(execution)
    local.service.recorder(type(started)(execution=execution, time_ns=1, process=process.identity()))  # type: ignore[call-arg]
    for event in rest:
        local.service.recorder(event)
    await asyncio.to_thread(local.service.recorder.flush)
    resource: Mapping[str, str | int] = {"service.name": "etl", "host.name": host, "process.pid": int(pid)}
    await send(local, gauge("process.memory.usage", (1, 7.0)), of=resource)
    (worker,) = await shown(local)
    # It ran in 1970, when nothing was measured.
    assert (worker["pid"], worker["metrics"]) == (int(pid), [])


async def test_processes_and_their_series_are_bounded_and_forgotten(
    local: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_rows, "MAX_SERIES", 3)
    monkeypatch.setattr(process_rows, "MAX_PROCESSES", 2)
    for i in range(5):
        await send(local, gauge("process.memory.usage", (0, 1.0), number=str(i)))
    for i in range(4):
        await send(local, gauge("process.memory.usage", (0, 1.0)), of={**WORKER, "service.instance.id": str(i)})
    assert 'tachograph_otlp_dropped_total{reason="limit",signal="metrics"} 5.0' in await local.metrics()
    database = local.service.database
    assert len(await database.read(lambda c: c.execute(select(process_metrics)).all())) == 4
    await database.write(lambda c: process_rows.prune(c, (START + 3600) * S))
    for table in (processes, process_metrics):
        assert not await database.read(lambda c, table=table: c.execute(select(table)).all())  # type: ignore[misc]


async def test_json_says_the_same_and_exemplars_do_no_harm(local: Api) -> None:
    document = MessageToDict(request_of(gauge("process.memory.usage", (1, 7.0))))
    (metric,) = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    metric["gauge"]["dataPoints"][0]["exemplars"] = [{"spanId": "0011223344556677", "traceId": "00" * 16}]
    assert await local.call("POST", "/v1/metrics", document) == (200, {})
    assert await local.call("POST", "/v1/metrics", {"resourceMetrics": []}) == (200, {})
    status, answer = await local.call("POST", "/v1/metrics", {"resourceMetrics": {}})
    assert (status, "ExportMetricsServiceRequest" in answer["message"]) == (400, True)
    (row,) = await local.service.database.read(lambda c: c.execute(select(process_metrics)).all())
    assert (row.name, row.latest) == ("process.memory.usage", 7)


async def test_the_sdk_exports_its_metrics(api: Api) -> None:
    def memory(_options: CallbackOptions) -> list[Observation]:
        return [Observation(12_345)]

    def run() -> None:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{api.address}/v1/metrics"), math.inf)
        provider = MeterProvider([reader], resource=Resource(dict(WORKER)), shutdown_on_exit=False)
        meter = provider.get_meter("test")
        meter.create_observable_up_down_counter("process.memory.usage", [memory], unit="By")
        meter.create_histogram("http.server.request.duration").record(0.1)
        assert provider.force_flush()
        provider.shutdown()

    await asyncio.to_thread(run)
    (row,) = await api.service.database.read(lambda c: c.execute(select(process_metrics)).all())
    assert (row.name, row.kind, row.latest, row.unit) == ("process.memory.usage", "gauge", 12_345, "By")


PROGRAM = """
import logging, tachograph
from opentelemetry import metrics

metrics.get_meter("etl").create_counter("rows").add(1)

@tachograph.workflow
def nightly():
    logging.getLogger("etl").warning("loading")

nightly()
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_the_launcher_that_the_docs_recommend_logs_no_error(
    database_url: str, handlers: HandlerRegistry, tmp_path: Path, protocol: str
) -> None:
    program = tmp_path / "nightly.py"
    program.write_text(PROGRAM)
    config = Config(database=database_url, grace_seconds=0.1, otlp_grpc=("127.0.0.1", 0))
    async for api in serve(config, handlers):
        assert api.service.grpc_door is not None
        address = api.service.grpc_door.address if protocol == "grpc" else api.address
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "TACHOGRAPH_"))},
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
            "OTEL_LOGS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_TRACES_EXPORTER": "otlp",
        }
        launcher = Path(sys.executable).with_name("opentelemetry-instrument")
        command = [sys.executable, str(launcher), sys.executable, str(program)]
        result = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=110, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "Failed to export" not in result.stderr, result.stderr
        assert "rror" not in result.stderr, result.stderr
        page = await api.get("/api/workflows/executions")
        assert [item["workflow_name"] for item in page["items"]] == ["nightly"]
        path = f"/api/workflows/executions/{page['items'][0]['execution_id']}/logs"
        assert [entry["message"] for entry in (await api.get(path))["items"]] == ["loading"]
        text = await api.metrics()
        stored = f'outcome="stored",protocol="{"grpc" if protocol == "grpc" else "http"}",signal="metrics"'
        assert f"tachograph_otlp_requests_total{{{stored}}} 0.0" not in text
