"""Recordings of engines lose nothing but the machine's names."""

from __future__ import annotations

import gzip
import json
import math
import os
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.otlp_values import any_value
from tools.record_engine import Recorder
from tools.recordings import Mask, Request, otlp_json, read, write

from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.spans import SpanRecord, records_of

VALUES: dict[str, Any] = {
    "text": "é\u2028", "bytes": b"\x00\xff", "float": math.inf, "int": -(1 << 63), "list": [1, "two", [b"three"]],
    "object": {"traceId": "not an id", "spanId": 3}, "no": False,
}  # fmt: skip


def export(**values: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(
        trace_id=bytes(range(16)), span_id=bytes(range(8)), parent_span_id=b"\xff" * 8, name="run", kind=5,
        start_time_unix_nano=time.time_ns(), end_time_unix_nano=time.time_ns() + 1, flags=256,
    )  # fmt: skip
    span.links.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    for key, value in values.items():
        span.attributes.add(key=key).value.CopyFrom(any_value(value))
    return request


def send(address: str, message: Message) -> None:
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
    body = gzip.compress(message.SerializeToString())
    request = urllib.request.Request(f"{address}/v1/traces", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def test_requests_are_kept_in_order_and_whole(tmp_path: Path) -> None:
    messages = [export(number=number, **VALUES) for number in range(3)]
    with Recorder() as recorder:
        for message in messages:
            send(recorder.address, message)
        recording = write(tmp_path / "engine", recorder.take(), Mask())
    requests = list(read(recording))
    assert [request.path for request in requests] == ["/v1/traces"] * 3
    assert requests[0].offset_seconds == 0
    assert [request.offset_seconds for request in requests] == sorted(request.offset_seconds for request in requests)
    for message, request in zip(messages, requests, strict=True):
        (span,) = records_of(scopes_of_json(json.dumps(request.body).encode()))
        assert isinstance(span, SpanRecord)
        expected = message.resource_spans[0].scope_spans[0].spans[0]
        assert (span.trace_id, span.span_id) == (expected.trace_id.hex(), expected.span_id.hex())
        assert otlp_json(message) == request.body


def test_a_long_recording_is_compressed_and_read_alike(tmp_path: Path) -> None:
    requests = [Request(number, "/v1/traces", otlp_json(export(text="x" * 400))) for number in range(100)]
    recording = write(tmp_path / "engine", requests, Mask())
    assert recording.name == "engine.jsonl.gz"
    assert list(read(recording)) == requests
    assert write(tmp_path / "engine", requests[:1], Mask()).name == "engine.jsonl"
    assert [path.name for path in tmp_path.iterdir()] == ["engine.jsonl"]


def test_names_of_the_machine_are_masked_and_nothing_else() -> None:
    host = socket.gethostname()
    request = export(
        **{"host.name": host, "code.filepath": f"{os.getcwd()}/shop.py", "process.pid": 4711,
           "process.parent_pid": 4712, "process.owner": "root", "celery.hostname": f"gen4711@{host}",
           "order": 4711, "customer": "root"}
    )  # fmt: skip
    masked = Mask([os.getcwd()])(otlp_json(request))
    (span,) = records_of(scopes_of_json(json.dumps(masked).encode()))
    assert isinstance(span, SpanRecord)
    assert span.attributes == {
        "host.name": "worker-1", "code.filepath": "/srv/app/shop.py", "process.pid": 101, "process.parent_pid": 102,
        "process.owner": "app", "celery.hostname": "gen101@worker-1", "order": 4711, "customer": "root",
    }  # fmt: skip


def test_fields_that_would_be_lost_are_refused() -> None:
    # Field 1000 of a span, a varint: this version of OTLP does not have it.
    request = export()
    unknown = b"\xc0\x3e\x01"
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.MergeFromString(span.SerializeToString() + unknown)
    with pytest.raises(ValueError, match="does not know"):
        otlp_json(request)
