"""A program's spans are sent when they start and as long as they are open, and the program does not notice."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Status, StatusCode
from tests import programs
from tests.conftest import Api, make_execution, make_step, serve

from tachograph import Recorder, SpanListener
from tachograph.errors import SetupError
from tachograph.events import ExecutionStarted, StepStarted
from tachograph.spans import LiveSpanProcessor
from tachograph.spans.live_span_processor import SHUTDOWN_SECONDS
from tachograph.spans.open_span_requests import LEASE_HEADER, destination
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

SECONDS: Final = 60.0


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Receiver:
    """A real HTTP server that keeps the requests it gets. ``lease``: what it says of open spans, as Tachograph does."""

    def __init__(self, lease: str | None = "30", port: int = 0) -> None:
        self.lease = lease
        self.status = 200
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.headers.append({key.lower(): value for key, value in self.headers.items()})
                receiver.bodies.append(body)
                self.send_response(receiver.status)
                if receiver.lease is not None:
                    self.send_header(LEASE_HEADER, receiver.lease)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def requests(self) -> list[list[Span]]:
        """The spans of each request that had some."""
        found = []
        for body in list(self.bodies):
            groups = ExportTraceServiceRequest.FromString(body).resource_spans
            found.append([span for group in groups for scope in group.scope_spans for span in scope.spans])
        return [spans for spans in found if spans]

    def spans(self) -> list[Span]:
        return [span for spans in self.requests() for span in spans]

    def open_names(self) -> list[str]:
        return [span.name for span in self.spans() if not span.end_time_unix_nano]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provide(exporter: InMemorySpanExporter) -> Iterator[Callable[..., tuple[TracerProvider, LiveSpanProcessor]]]:
    """Makes a provider with a processor; unless it ``is_only`` one, spans that end go to the exporter."""
    made: list[TracerProvider] = []

    def make(*, is_only: bool = False, sampler: Any = None, **options: Any) -> tuple[TracerProvider, LiveSpanProcessor]:
        provider = TracerProvider(sampler=sampler, resource=Resource({"service.name": "etl"}), shutdown_on_exit=False)
        processor = LiveSpanProcessor(**options)
        provider.add_span_processor(processor)
        if not is_only:
            provider.add_span_processor(SimpleSpanProcessor(exporter))
        made.append(provider)
        return provider, processor

    yield make
    for provider in made:
        provider.shutdown()


Provide = Callable[..., tuple[TracerProvider, LiveSpanProcessor]]


def test_a_span_is_sent_while_it_is_open_and_its_end_is_left_to_the_exporter(
    receiver: Receiver, provide: Provide, exporter: InMemorySpanExporter
) -> None:
    provider, processor = provide(endpoint=receiver.url)
    tracer = provider.get_tracer("program", "1.2")
    with tracer.start_as_current_span("nightly", attributes={"day": "monday"}) as root:
        with tracer.start_as_current_span("extract"):
            assert processor.force_flush(60_000)
        assert processor.is_taken
        # It asked first.
        assert receiver.bodies[0] == b""
        assert sorted({*receiver.open_names()}) == ["extract", "nightly"]
    sent = {span.name: span for span in receiver.spans()}
    assert sent["nightly"].span_id == root.get_span_context().span_id.to_bytes(8, "big")
    assert sent["extract"].parent_span_id == sent["nightly"].span_id
    assert [(a.key, a.value.string_value) for a in sent["nightly"].attributes] == [("day", "monday")]
    (group, *_) = ExportTraceServiceRequest.FromString(receiver.bodies[1]).resource_spans
    assert [a.value.string_value for a in group.resource.attributes if a.key == "service.name"] == ["etl"]
    assert group.scope_spans[0].scope.version == "1.2"
    assert [span.name for span in exporter.get_finished_spans()] == ["extract", "nightly"]
    assert not [span for span in receiver.spans() if span.end_time_unix_nano]


def test_a_span_that_ends_soon_is_not_sent_open(receiver: Receiver, provide: Provide) -> None:
    provider, processor = provide(endpoint=receiver.url, delay_seconds=0.5)
    tracer = provider.get_tracer("program")
    with tracer.start_as_current_span("nightly"):
        for _ in range(100):
            tracer.start_span("short").end()
        assert processor.force_flush(60_000)
    assert {*receiver.open_names()} <= {"nightly"}


def test_one_request_is_the_heartbeat_of_all_open_spans_with_what_they_say_now(
    receiver: Receiver, provide: Provide
) -> None:
    receiver.lease = "0.6"
    provider, _ = provide(endpoint=receiver.url)
    tracer = provider.get_tracer("program")
    with tracer.start_as_current_span("nightly") as root, tracer.start_as_current_span("extract"):
        eventually(lambda: len(receiver.requests()) >= 3)
        root.set_attribute("rows", 7)
        root.add_event("half")
        root.set_status(Status(StatusCode.ERROR, "so far"))
        eventually(lambda: any(span.events for span in receiver.requests()[-1]))
        beat = {span.name: span for span in receiver.requests()[-1]}
    assert sorted(beat) == ["extract", "nightly"]
    assert [(a.key, a.value.int_value) for a in beat["nightly"].attributes] == [("rows", 7)]
    # Whether it failed is known when it ends.
    assert beat["nightly"].status.code == 0
    assert beat["nightly"].end_time_unix_nano == 0


def test_a_span_that_has_ended_counts_as_open_until_its_exporter_has_surely_sent_it(
    receiver: Receiver, provide: Provide
) -> None:
    receiver.lease = "0.3"
    provider, processor = provide(endpoint=receiver.url)
    with provider.get_tracer("program").start_as_current_span("nightly"):
        assert processor.force_flush(60_000)
    beats = len(receiver.requests())
    eventually(lambda: len(receiver.requests()) >= beats + 3)
    assert receiver.requests()[-1][0].end_time_unix_nano == 0


def test_the_only_processor_sends_ends_too(receiver: Receiver, provide: Provide) -> None:
    provider, _ = provide(endpoint=receiver.url, is_only=True)
    tracer = provider.get_tracer("program")
    for _ in range(20):
        tracer.start_span("short").end()
    with tracer.start_as_current_span("nightly"):
        eventually(lambda: "nightly" in receiver.open_names())
    provider.shutdown()
    ended = [span.name for span in receiver.spans() if span.end_time_unix_nano]
    assert sorted(ended) == ["nightly"] + ["short"] * 20


def test_a_receiver_that_does_not_take_open_spans_gets_none(receiver: Receiver, provide: Provide) -> None:
    receiver.lease = None
    provider, processor = provide(endpoint=receiver.url)
    with provider.get_tracer("program").start_as_current_span("nightly"):
        eventually(lambda: processor.is_taken is False)
        processor.force_flush(1000)
    assert receiver.bodies == [b""]


def test_without_asking_open_spans_go_to_any_receiver(receiver: Receiver, provide: Provide) -> None:
    receiver.lease = None
    provider, processor = provide(endpoint=receiver.url, asks=False)
    with provider.get_tracer("program").start_as_current_span("nightly"):
        assert processor.force_flush(60_000)
        assert "nightly" in receiver.open_names()


def test_spans_that_are_not_sampled_are_not_sent(receiver: Receiver, provide: Provide) -> None:
    provider, processor = provide(endpoint=receiver.url, sampler=ALWAYS_OFF)
    with provider.get_tracer("program").start_as_current_span("nightly"):
        assert processor.force_flush(60_000)
    assert receiver.requests() == []


def test_what_is_open_is_told_when_the_receiver_comes_back(provide: Provide) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    provider, processor = provide(endpoint=f"http://127.0.0.1:{port}", heartbeat_seconds=0.2)
    with provider.get_tracer("program").start_as_current_span("nightly"):
        processor.force_flush(2000)
        assert processor.is_taken is None
        receiver = Receiver(port=port)
        try:
            eventually(lambda: "nightly" in receiver.open_names())
            # It refuses for a while.
            receiver.status = 503
            count = len(receiver.bodies)
            eventually(lambda: len(receiver.bodies) > count + 1)
            receiver.status = 200
            count = len(receiver.requests())
            eventually(lambda: len(receiver.requests()) > count + 1)
        finally:
            receiver.close()


def test_no_more_than_the_bound_is_open_and_what_is_left_out_is_counted_and_logged_once(
    receiver: Receiver, provide: Provide, caplog: pytest.LogCaptureFixture
) -> None:
    provider, processor = provide(endpoint=receiver.url, max_spans=3)
    tracer = provider.get_tracer("program")
    spans = [tracer.start_span(f"s{i}") for i in range(10)]
    assert processor.force_flush(60_000)
    assert processor.dropped == 7
    assert sorted({*receiver.open_names()}) == ["s0", "s1", "s2"]
    assert len([record for record in caplog.records if "are open or wait" in record.message]) == 1
    for span in spans:
        span.end()
    # There is room again.
    with tracer.start_as_current_span("later"):
        assert processor.force_flush(60_000)
        assert "later" in receiver.open_names()


def test_a_span_that_nothing_can_end_any_more_is_not_kept(receiver: Receiver, provide: Provide) -> None:
    receiver.lease = "0.3"
    provider, processor = provide(endpoint=receiver.url)
    tracer = provider.get_tracer("program")
    with tracer.start_as_current_span("nightly"):
        forgotten = tracer.start_span("forgotten")
        assert processor.force_flush(60_000)
        assert "forgotten" in receiver.open_names()
        del forgotten
        eventually(lambda: [span.name for span in receiver.requests()[-1]] == ["nightly"])


def test_a_receiver_that_never_answers_holds_up_neither_the_program_nor_its_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        provider = TracerProvider(shutdown_on_exit=False)
        processor = LiveSpanProcessor(f"http://127.0.0.1:{port}")
        provider.add_span_processor(processor)
        tracer = provider.get_tracer("program")
        began = time.monotonic()
        with tracer.start_as_current_span("nightly"):
            for _ in range(1000):
                tracer.start_span("step").end()
            assert not processor.force_flush(300)
        provider.shutdown()
        assert time.monotonic() - began < SHUTDOWN_SECONDS + 20


class Broken(SpanProcessor):
    """Gives spans attributes that cannot be encoded."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name == "broken":
            span._attributes = {"": object(), 3: 4}


def test_a_span_that_cannot_be_encoded_costs_no_other(receiver: Receiver, provide: Provide) -> None:
    provider, processor = provide(endpoint=receiver.url)
    provider.add_span_processor(Broken())
    tracer = provider.get_tracer("program")
    with tracer.start_as_current_span("nightly"):
        broken = tracer.start_span("broken")
        assert processor.force_flush(60_000)
        assert "nightly" in receiver.open_names()
        del broken


def test_large_spans_are_sent_in_several_requests(receiver: Receiver, provide: Provide) -> None:
    provider, processor = provide(endpoint=receiver.url)
    tracer = provider.get_tracer("program")
    spans = [tracer.start_span(f"s{i}", attributes={"prompt": "x" * 1_500_000}) for i in range(5)]
    assert processor.force_flush(60_000)
    assert sorted({*receiver.open_names()}) == [f"s{i}" for i in range(5)]
    assert max(map(len, receiver.bodies)) < 5 << 20
    for span in spans:
        span.end()


def test_threads_may_change_spans_while_they_are_sent(receiver: Receiver, provide: Provide) -> None:
    receiver.lease = "0.05"
    provider, _ = provide(endpoint=receiver.url, delay_seconds=0.01)
    tracer = provider.get_tracer("program")
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with tracer.start_as_current_span("step") as span:
                for i in range(200):
                    span.set_attribute(f"key {i}", i)
                    span.add_event(f"event {i}")

    with tracer.start_as_current_span("nightly"):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(receiver.requests()) >= 20)
        stop.set()
        for thread in threads:
            thread.join()
    assert "nightly" in receiver.open_names()


FORKING: Final = """
import os, sys, time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tachograph.spans import LiveSpanProcessor
provider = TracerProvider(shutdown_on_exit=False)
processor = LiveSpanProcessor(sends_ends=False)
provider.add_span_processor(processor)
tracer = provider.get_tracer("program")
with tracer.start_as_current_span("parent"):
    assert processor.force_flush(60_000)
    if os.fork() == 0:
        with tracer.start_as_current_span("child", attributes={"pid": os.getpid()}):
            assert processor.force_flush(60_000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    print(os.getpid())
"""


def test_a_forked_child_sends_what_it_opens_itself(receiver: Receiver, tmp_path: Path) -> None:
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    done = programs.run(
        [sys.executable, "-c", FORKING], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    child = [spans for spans in receiver.requests() if any(span.name == "child" for span in spans)]
    assert child
    assert all([span.name for span in spans] == ["child"] for spans in child)


PROGRAM: Final = """
import sys, time
from opentelemetry import trace
tracer = trace.get_tracer("program")
with tracer.start_as_current_span("nightly"), tracer.start_as_current_span("extract"):
    print("open", flush=True)
    sys.stdin.readline()
"""


def launched(url: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100", **variables,
    }  # fmt: skip
    launcher = Path(sys.executable).parent / "opentelemetry-instrument"
    return subprocess.Popen(
        [launcher, sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_the_launcher_shows_spans_while_they_run_when_it_is_asked_to(receiver: Receiver) -> None:
    with launched(receiver.url, TACHOGRAPH_LIVE_SPANS="1") as program:
        eventually(lambda: {*receiver.open_names()} == {"nightly", "extract"})
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    # Their ends are exported once, by the launcher's own exporter.
    assert sorted(span.name for span in receiver.spans() if span.end_time_unix_nano) == ["extract", "nightly"]


def test_the_launcher_sends_no_open_spans_unless_it_is_asked_to(receiver: Receiver) -> None:
    with launched(receiver.url) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert b"" not in receiver.bodies
    assert receiver.open_names() == []
    assert sorted(span.name for span in receiver.spans()) == ["extract", "nightly"]


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1/base/"}, "http://a:1/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:1/as/is"}, "http://a:1/as/is"),
        ({"TACHOGRAPH_LIVE_SPANS_ENDPOINT": "http://t:9923", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
         "http://t:9923/v1/traces"),
        ({"TACHOGRAPH_LIVE_SPANS_ENDPOINT": "https://t/v1/traces"}, "https://t/v1/traces"),
    ],
)  # fmt: skip
def test_requests_go_where_the_variables_say(variables: dict[str, str], url: str) -> None:
    assert destination(environment=variables).url == url


def test_headers_and_the_rest_are_those_of_the_exporter() -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20tgr_1,x-a=b", "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
    }  # fmt: skip
    chosen = destination(environment=variables)
    assert chosen.headers == {"authorization": "Bearer tgr_1", "x-a": "b"}
    assert (chosen.timeout_seconds, chosen.is_compressed, chosen.certificate) == (3.0, True, "/ca.pem")
    for bad in ("-1", "never", "nan", "inf"):
        assert destination(environment={"OTEL_EXPORTER_OTLP_TIMEOUT": bad}).timeout_seconds == 10


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://:0"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"},
    ],
)
def test_settings_that_cannot_work_are_reported_and_the_program_runs(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, provide: Provide
) -> None:
    with pytest.raises(SetupError):
        destination(environment=variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    provider, processor = provide()
    with provider.get_tracer("program").start_as_current_span("nightly"):
        assert processor.force_flush(1000)


def test_settings_are_used_in_requests(receiver: Receiver, provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20tgr_1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    provider, processor = provide()
    with provider.get_tracer("program").start_as_current_span("nightly"):
        assert processor.force_flush(60_000)
    assert "nightly" in receiver.open_names()
    assert {headers["authorization"] for headers in receiver.headers} == {"Bearer tgr_1"}


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1, lease_seconds=2), handlers):
        yield api


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


def states_at(url: str) -> dict[str, str]:
    page = fetched(f"{url}/api/workflows/executions")
    if not page["items"]:
        return {}
    shown = fetched(f"{url}/api/workflows/executions/{page['items'][0]['execution_id']}/timeline")
    return {"": shown["status"]} | {step["step_name"]: step["status"] for step in shown["step_timeline"]}


async def test_a_program_is_seen_running_and_its_end_is_what_its_exporter_says(api: Api) -> None:
    def program() -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{api.address}/v1/traces")))
        provider.add_span_processor(LiveSpanProcessor(api.address))
        tracer = provider.get_tracer("program")
        with tracer.start_as_current_span("nightly"):
            with tracer.start_as_current_span("extract"):
                eventually(lambda: states_at(api.address) == {"": "running", "extract": "running"})
            eventually(lambda: states_at(api.address) == {"": "running", "extract": "completed"})
        eventually(lambda: states_at(api.address) == {"": "completed", "extract": "completed"})
        provider.shutdown()

    await asyncio.to_thread(program)


async def test_what_is_open_when_a_program_ends_is_lost_after_its_lease(api: Api) -> None:
    def program() -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(LiveSpanProcessor(api.address))
        tracer = provider.get_tracer("program")
        with tracer.start_as_current_span("nightly"):
            left_open = tracer.start_span("extract")
            eventually(lambda: states_at(api.address) == {"": "running", "extract": "running"})
        provider.shutdown()
        assert left_open.is_recording()
        # The run says how it ended; its step cannot any more.
        eventually(lambda: states_at(api.address) == {"": "completed", "extract": "lost"})

    await asyncio.to_thread(program)


async def test_runs_that_the_library_records_are_seen_running_elsewhere(api: Api) -> None:
    def program() -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(LiveSpanProcessor(api.address))
        recorder = Recorder()
        recorder.set_spans(SpanListener(provider))
        execution = make_execution()
        recorder(ExecutionStarted(execution=execution, time_ns=time.time_ns(), step_count=1))
        step = make_step(execution, "extract")
        recorder(StepStarted(step=step, time_ns=time.time_ns(), attempt=1))
        eventually(lambda: states_at(api.address) == {"": "running", "extract": "running"})
        recorder.close(5)
        provider.shutdown()

    await asyncio.to_thread(program)


async def test_a_killed_program_is_lost_after_its_lease_and_the_gauges_fall(api: Api) -> None:
    def program() -> None:
        with launched(api.address, TACHOGRAPH_LIVE_SPANS="1") as killed:
            eventually(lambda: states_at(api.address) == {"": "running", "extract": "running"})
            killed.send_signal(signal.SIGKILL)
        eventually(lambda: states_at(api.address) == {"": "lost", "extract": "lost"})

    await asyncio.to_thread(program)
    text = await api.metrics()
    for gauge in ("executions", "steps"):
        assert f'workflow_{gauge}_running{{workflow="nightly",workspace="default"}} 0.0' in text
