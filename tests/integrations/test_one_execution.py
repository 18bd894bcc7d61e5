"""An engine whose hooks and whose spans tell of one run: that is one execution."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from tests.conftest import ROOT, Api
from tests.engines import processes

from tachograph.identity import reported_execution_id
from tachograph.integrations import airflow as airflow_integration
from tachograph.integrations import dramatiq as dramatiq_integration
from tachograph.integrations import rq as rq_integration
from tachograph.integrations import taskiq as taskiq_integration
from tachograph.report import runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Sender(SpanExporter):
    """Sends spans to a service as they end, or later."""

    def __init__(self, address: str) -> None:
        self._exporter: Any = OTLPSpanExporter(f"{address}/v1/traces")
        self._waiting: list[ReadableSpan] = []
        self.is_held = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.is_held:
            self._waiting += spans
            return SpanExportResult.SUCCESS
        result: SpanExportResult = self._exporter.export(spans)
        return result

    def release(self) -> None:
        """Send what waits."""
        self.is_held = False
        self._exporter.export(self._waiting)

    def shutdown(self) -> None:
        self._exporter.shutdown()


@pytest.fixture
def sender(api: Api) -> Sender:
    return Sender(api.address)


@pytest.fixture
async def provider(sender: Sender) -> AsyncIterator[TracerProvider]:
    """Makes spans that are sent to the service; only from other threads than the service's."""
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(sender))
    yield provider
    await asyncio.to_thread(provider.shutdown)


def play_dramatiq(provider: TracerProvider, _: Path) -> None:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker
    from opentelemetry_instrumentor_dramatiq import DramatiqInstrumentor

    broker = StubBroker()
    actor: Any = dramatiq.actor
    extract = actor(lambda *_: 1, actor_name="extract", broker=broker, max_retries=0)
    broken = actor(lambda *_: 1 // 0, actor_name="broken", broker=broker, max_retries=0)
    instrumentor = DramatiqInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    dramatiq_integration.instrument(broker)
    try:
        pipeline: Any = dramatiq.pipeline
        pipeline([extract.message(), broken.message(), extract.message()], broker=broker).run()
        extract.send()
        with dramatiq_integration.together("nightly"):
            extract.send()
            extract.send()
        worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
        worker.start()
        broker.join("default", fail_fast=False, timeout=60_000)
        worker.join()
        worker.stop(timeout=60_000)
    finally:
        dramatiq_integration.uninstrument(broker)
        instrumentor.uninstrument()
        broker.close()


def play_taskiq(provider: TracerProvider, _: Path) -> None:
    from taskiq import InMemoryBroker
    from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

    async def play() -> None:
        broker = InMemoryBroker().with_middlewares(OpenTelemetryMiddleware(tracer_provider=provider))
        taskiq_integration.instrument(broker)

        async def extract() -> None:
            pass

        async def order() -> None:
            await (await task.kiq()).wait_result(timeout=60)

        task, ordering = broker.register_task(extract, "extract"), broker.register_task(order, "order")
        await broker.startup()
        await (await ordering.kiq()).wait_result(timeout=60)
        await (await task.kiq()).wait_result(timeout=60)
        with taskiq_integration.together("nightly"):
            for _ in range(2):
                await (await task.kiq()).wait_result(timeout=60)
        await broker.shutdown()

    asyncio.run(play())


def play_rq(provider: TracerProvider, directory: Path) -> None:
    from opentelemetry_instrumentation_rq import RQInstrumentor
    from redis import Redis
    from rq import Queue, SimpleWorker
    from rq.timeouts import TimerDeathPenalty

    class ThreadWorker(SimpleWorker):
        """Signals are for the main thread."""

        death_penalty_class = TimerDeathPenalty

        def _install_signal_handlers(self) -> None:
            pass

    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    instrumentor = RQInstrumentor()
    with pytest.MonkeyPatch.context() as patched:
        # It takes no provider but the process's.
        patched.setattr(trace, "_TRACER_PROVIDER", provider)
        instrumentor.instrument()
    rq_integration.instrument()
    try:
        with processes.redis(directory) as address, Redis.from_url(address) as connection:
            queue = Queue(connection=connection)
            first = queue.enqueue("operator.add", 1, 2)
            queue.enqueue("operator.mul", 1, 2, depends_on=first)
            queue.enqueue("operator.neg", 1)
            with rq_integration.together("nightly"):
                queue.enqueue("operator.add", 1, 2)
                queue.enqueue("operator.add", 1, 2)
            ThreadWorker([queue], connection=connection).work(burst=True)
    finally:
        rq_integration.uninstrument()
        instrumentor.uninstrument()


PLAYS: dict[str, tuple[Callable[[TracerProvider, Path], None], dict[str, int]]] = {
    "dramatiq": (play_dramatiq, {"extract": 2, "nightly": 1}),
    "taskiq": (play_taskiq, {"order": 1, "extract": 1, "nightly": 1}),
    "rq": (play_rq, {"operator.add": 1, "operator.neg": 1, "nightly": 1}),
}
"""What an engine does, and how many runs of which workflow that is."""


@pytest.mark.parametrize("order", ["as they come", "hooks first", "spans first"])
@pytest.mark.parametrize("engine", PLAYS)
async def test_hooks_and_spans_of_one_run(
    api: Api, provider: TracerProvider, sender: Sender, tmp_path: Path, engine: str, order: str
) -> None:
    play, expected = PLAYS[engine]
    told = api.service.recorder.queues["store"]
    sender.is_held = order == "hooks first"
    if order == "spans first":
        told.before_fork(60.0)
        assert told._paused
    try:
        await asyncio.to_thread(play, provider, tmp_path)
    finally:
        if order == "spans first":
            told.after_fork_in_parent()
    if sender.is_held:
        assert await asyncio.to_thread(api.service.recorder.flush, 60)
        await asyncio.to_thread(sender.release)
    await asyncio.to_thread(api.service.recorder.flush, 60)
    counts: dict[str, int] = {}
    async with asyncio.timeout(60):
        while counts != expected:
            await asyncio.sleep(0.1)
            page = await api.get("/api/workflows/executions?limit=100")
            names = [item["workflow_name"] for item in page["items"]]
            counts = {name: names.count(name) for name in names}
            is_open = any(item["status"] in ("running", "pending") for item in page["items"])
            if not is_open and counts != expected:
                break
    assert counts == expected
    spans = sum(len(each["spans"]) for each in (await api.get("/jaeger/api/traces?service=shop"))["data"])
    assert spans > 0


LINEAGE = [
    json.loads(line) for line in (ROOT / "tests/ingest/recordings/openlineage_airflow3.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("order", ["hooks first", "lineage first"])
async def test_hooks_and_lineage_of_one_run_of_airflow(api: Api, order: str) -> None:
    """The plugin tells of a DAG run as `on_dag_run_running` and the others do, and so does OpenLineage."""
    runs._runs.clear()
    facets = [event["run"]["facets"].get("airflow", {}) for event in LINEAGE]
    (run_id,) = {facet["dagRun"]["run_id"] for facet in facets if "dagRun" in facet}

    async def tell_of_lineage() -> None:
        status, answer = await api.call("POST", "/api/v1/lineage/batch", LINEAGE)
        assert (status, answer["summary"]["failed"]) == (200, 0)

    async def tell_of_hooks() -> None:
        began = datetime.now(UTC)
        dag_run = types.SimpleNamespace(dag_id="nightly_fail", run_id=run_id, start_date=began, end_date=began)
        airflow_integration.dag_run_running(dag_run)
        airflow_integration.dag_run_failed(dag_run)
        await asyncio.to_thread(api.service.recorder.flush, 60)

    both = [tell_of_hooks, tell_of_lineage]
    for tell in both if order == "hooks first" else reversed(both):
        await tell()
    async with asyncio.timeout(60):
        while True:
            page = await api.get("/api/workflows/executions?limit=100")
            ids = [item["execution_id"] for item in page["items"] if item["workflow_name"] == "nightly_fail"]
            if ids == [reported_execution_id("default", "nightly_fail", run_id)]:
                break
            await asyncio.sleep(0.05)
