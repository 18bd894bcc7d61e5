"""The spans that `tachograph exec` exports are those of the library, and the standard variables are kept."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from tests.recording.test_command_events import Clock, ended, quiet, written

from tachograph.events import ExecutionStarted, StepLines, StepLogged, StepStarted
from tachograph.spans.listener import SpanListener
from tachograph_exporter.command import otlp, spans
from tachograph_exporter.command.child import Line
from tachograph_exporter.command.recording import Recording, RunRecording, recording

URL = "http://127.0.0.1:1"
PARENT = {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", str(tmp_path))
    monkeypatch.setenv("TACHOGRAPH_URL", URL)
    monkeypatch.delenv("TACHOGRAPH_DATABASE_URL", raising=False)
    return tmp_path


class Collector:
    """An OTLP/HTTP receiver that keeps requests, and answers what it is told, one after the other, then 200."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[int] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                status = collector.answers.pop(0) if collector.answers else 200
                if status == 200:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                    collector.headers.append({**dict(self.headers), "path": self.path})
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        return [s for request in self.requests for r in request.resource_spans for o in r.scope_spans for s in o.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def by_name(request: ExportTraceServiceRequest) -> dict[str, Any]:
    shown = {}
    for span in MessageToDict(request)["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        span["attributes"] = sorted(span["attributes"], key=lambda attribute: attribute["key"])
        for event in span.get("events", []):
            event["attributes"].sort(key=lambda attribute: attribute["key"])
        # Flags are optional, and say whether a parent or link is of another process.
        for entry in (span, *span.get("links", [])):
            entry.pop("flags", None)
        if not span.get("status"):
            span.pop("status", None)
        shown[span["name"]] = span
    return shown


def a_night(environment: dict[str, str]) -> Recording:
    """A command with a failed attempt, and two steps inside, one of which never ends."""
    clock = Clock()
    run = RunRecording(["make", "all"], "make", environment, clock, quiet)
    run.began()
    clock.wait(1)
    run.retrying(ended(2), [Line(number, clock.now, b"token=hunter2", True) for number in range(1, 151)], 0.5, None)
    clock.wait(0.5)
    run.began()
    around = {**environment, **run.environment()}
    for name in ("extract", "load"):
        inner = recording(["x"], name, around, clock, quiet)
        inner.began()
        clock.wait(1)
        if name == "extract":
            inner.finished(ended(0), [Line(1, clock.now, b"12 rows", False)], None, 0)
        inner.close()
    run.finished(ended(3), [], None, 0)
    run.close()
    return run


@pytest.mark.parametrize("environment", [{}, PARENT])
def test_the_spans_of_a_command_are_those_that_the_library_makes_of_its_events(
    collector: Collector, environment: dict[str, str]
) -> None:
    a_night({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, **environment})
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "tachograph"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    listener = SpanListener(provider)
    # The order of the files is that of the processes, so runs begin first, and end last.
    recorded = sorted(written(), key=lambda event: event.time_ns)
    token = otel_context.attach(Context())  # A listener leaves spans current.
    for event in recorded:
        if isinstance(event, ExecutionStarted | StepStarted):
            listener.begin(event)
        elif isinstance(event, StepLines):
            # On spans, the output is what the step logged.
            for line in event.lines:
                level = "warning" if line.severity >= 13 else "info"
                listener(
                    StepLogged(
                        step=event.step, time_ns=line.time_ns, sequence=line.number, message=line.message, level=level
                    )
                )
        else:
            listener(event)
    otel_context.detach(token)
    expected = by_name(encode_spans(memory.get_finished_spans()))
    assert set(expected) == {"run make", "make", "make attempt 1", "make attempt 2", "extract", "load"}
    whole = ExportTraceServiceRequest()
    for request in collector.requests:
        whole.MergeFrom(request)
    exported = {}
    for request in collector.requests:
        exported.update(by_name(request))
        (resource,) = request.resource_spans
        assert [(a.key, a.value.string_value) for a in resource.resource.attributes] == [("service.name", "tachograph")]
        assert resource.scope_spans[0].scope.name == "tachograph"
    assert exported == expected
    assert "hunter2" not in str(whole)
    assert exported["make"]["droppedEventsCount"] == 150 + 1 - spans.MAX_EVENTS


def test_the_standard_variables_say_where_spans_go_and_how(collector: Collector) -> None:
    collector.answers += [503]
    a_night({
        "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.address}/own/path?tenant=1",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2,x=y,broken", "OTEL_SERVICE_NAME": "night",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,team=a%20b",
    })  # fmt: skip
    headers = collector.headers[0]
    assert (headers["path"], headers["authorization"], headers["x"]) == ("/own/path?tenant=1", "Bearer hunter2", "y")
    said = collector.requests[0].resource_spans[0].resource.attributes
    assert {a.key: a.value.string_value for a in said} == {"service.name": "night", "team": "a b"}
    assert len(collector.spans()) == 6


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({}, "off"),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, "off"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, "off"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "off"),
        ({"OTEL_CONFIG_FILE": "x.yaml", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, "off"),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://host/base/"}, "https://host:443/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:99"}, "http://::1:99/"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "by HTTP only"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:4318"}, "is not a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:hunter2@host"}, "is not a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:port/\r\nX: y"}, "is not a URL"),
    ],
)
def test_whether_spans_are_asked_for(environment: dict[str, str], answer: str) -> None:
    to = otlp.collector_of(environment)
    if to is None:
        assert answer == "off"
    elif to.problem:
        assert answer in to.problem
        assert "hunter2" not in to.problem
    else:
        scheme = "https" if to.address.is_secure else "http"
        assert answer == f"{scheme}://{to.address.host}:{to.address.port}{to.address.path}"


def test_a_collector_that_hangs_or_refuses_is_said_once_and_costs_little() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        for endpoint in (f"http://127.0.0.1:{hole.getsockname()[1]}", URL):
            to = otlp.collector_of({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
            assert to is not None
            said: list[str] = []
            export = otlp.Export(to, said.append)
            export.add([{"event": "execution_finished", "time_ns": 2, "started_ns": 1, "status": "completed",
                         "execution": {"workflow": "w", "workflow_id": "i", "workspace": "d", "execution_id": "e",
                                       "trace_id": "a" * 32, "span_id": "b" * 16}}])  # fmt: skip
            start = time.monotonic()
            export.begin(0.3)
            export.end(0.3)
            assert time.monotonic() - start < 30
            assert len(said) == 1
            assert said[0].startswith("spans are not exported: ")


@pytest.mark.parametrize("ratio", ["0", "0.25", "1"])
def test_traces_are_sampled_as_the_sdk_does(ratio: str) -> None:
    own = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
    of_parent = {**own, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
    bound = TraceIdRatioBased.get_bound_for_rate(float(ratio))
    for number in range(200):
        trace_id = f"{number * 0x0123456789ABCDEF0123456789ABCDEF % (1 << 128):032x}"
        kept = int(trace_id, 16) & (1 << 64) - 1 < bound
        assert otlp.is_sampled(own, trace_id, False) is otlp.is_sampled(of_parent, trace_id, None) is kept
        assert otlp.is_sampled(of_parent, trace_id, True) is True
    assert otlp.is_sampled({"OTEL_TRACES_SAMPLER": "always_off"}, "0" * 32, True) is False
    assert otlp.is_sampled({}, "0" * 32, False) is False


def test_a_trace_that_is_not_kept_is_not_exported_and_those_inside_learn_it(collector: Collector) -> None:
    run = a_night({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "TRACEPARENT": PARENT["TRACEPARENT"][:-1] + "0"})
    assert collector.requests == []
    assert run.environment()["TRACEPARENT"].endswith("-00")
