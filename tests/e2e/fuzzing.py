"""Requests that a machine made up: to every route, from the OpenAPI document, and OTLP bodies of all kinds.

A round sends a few requests to each route. What it finds are failures: a status of 500 or more, an answer that took
longer than `MAX_SECONDS` (three times: a busy machine stalls anything), an error that is no problem document.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import requests
import zstandard
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.otlp_values import any_value

MAX_SECONDS = 2.0
MAX_MEMORY_MIB = 300
TOKEN = "the-token-of-the-fuzzer-0123"
EXAMPLES = 3
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)  # fmt: skip
SEEDS: list[dict[str, Any]] = [
    {"name": "known", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"], "max_retries": 1}]},
    {"name": "failing", "variables": [{"name": "n", "data_type": "int", "default_value": 1}],
     "steps": [{"name": "a", "config": {"handler": "fail"}}, {"name": "b", "condition_expression": "n > 2"}]},
]  # fmt: skip
TRACE = b"known trace id.."


class Fuzzer:
    """Sends requests to the service at ``address`` whose process is ``pid``, and collects failures."""

    def __init__(self, address: str, pid: int) -> None:
        self.address = address
        self.pid = pid
        self.count = 0
        self.statuses: dict[int, int] = {}
        self.routes: set[str] = set()
        self.failures: list[str] = []
        self.known: dict[str, list[str]] = {}
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"
        document = self.session.get(f"{address}/api/openapi.json", timeout=10).json()
        # Only here: it takes as long to import as everything else together.
        import schemathesis

        schema = schemathesis.openapi.from_dict(document)
        found: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
        # A stream does not end.
        self.operations = [operation for operation in found if operation.path != "/api/stream"]

    def run(self, seconds: float, first_round: int = 0) -> None:
        """Rounds until the time is over, each of them whole up to then."""
        end = time.monotonic() + seconds
        number = first_round
        while time.monotonic() < end:
            self.seed()
            self._otlp(number, end)
            for operation in self.operations:
                if time.monotonic() > end:
                    break
                self._route(operation, number, end)
            number += 1

    def post(self, path: str, kind: str, body: bytes) -> int:
        """The status of a request whose body is compressed; however long it takes."""
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        data = gzip.compress(body, 1)
        return self.session.post(self.address + path, data=data, headers=headers, timeout=60).status_code

    def seed(self) -> None:
        """Make sure that there is something to be found."""
        for document in SEEDS:
            self.session.post(f"{self.address}/api/workflows", json=document, timeout=10)
            self.session.post(f"{self.address}/api/workflows/{document['name']}/execute", json={}, timeout=10)
        self._send("POST", "/v1/traces", data=self._good().SerializeToString(), kind="application/x-protobuf")
        executions = self.session.get(f"{self.address}/api/workflows/executions?limit=5", timeout=10).json()["items"]
        self.known = {
            "workflow_id": ["known", "failing"],
            "execution_id": [item["execution_id"] for item in executions],
            "workspace": ["default"],
            "trace_id": [TRACE.hex(), *[item["trace_id"] for item in executions]],
            "service": ["shop", "tachograph"],
            "tag": ["name", "service.name", "span.key", "status"],
        }

    @property
    def memory_mib(self) -> float:
        """The most memory the service has had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    def _route(self, operation: Any, number: int, end: float) -> None:
        from schemathesis.generation import GenerationMode

        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)

                @seed(number)
                @SETTINGS
                @given(cases, st.booleans(), st.integers(0, 1000))
                def check(case: Any, is_known: bool, pick: int) -> None:
                    if time.monotonic() < end:
                        self._case(case, is_known, pick)

                check()
            except Exception as error:
                # Nothing that does not fit can be made for a route without parameters.
                if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):
                    raise

    def _case(self, case: Any, is_known: bool, pick: int) -> None:
        if is_known:
            for name in case.path_parameters or {}:
                if ids := self.known.get(name):
                    case.path_parameters[name] = ids[pick % len(ids)]
            if case.path.endswith("/compare") and case.query is not None and (ids := self.known["execution_id"]):
                case.query |= {"a": ids[0], "b": ids[-1]}
        self.routes.add(f"{case.method} {case.operation.path}")
        arguments = case.as_transport_kwargs(base_url=self.address)
        arguments["headers"] = {**arguments.get("headers", {}), "Authorization": f"Bearer {TOKEN}"}
        self._check(lambda: self.session.request(**arguments, timeout=30, allow_redirects=False), case)

    def _otlp(self, number: int, end: float) -> None:
        @seed(number)
        @settings(SETTINGS, max_examples=15)
        @given(otlp_bodies())
        def check(body: tuple[bytes, str, str]) -> None:
            if time.monotonic() < end:
                self._send("POST", "/v1/traces", data=body[0], kind=body[1], encoding=body[2])

        @seed(number)
        @settings(SETTINGS, max_examples=10)
        @given(trace_queries())
        def search(query: str) -> None:
            if time.monotonic() < end:
                self._send("GET", "/tempo/api/search?q=" + quote(query))

        check()
        search()

    def _send(self, method: str, path: str, data: bytes = b"", kind: str = "", encoding: str = "") -> None:
        headers = {"Content-Type": kind} if kind else {}
        if encoding:
            headers["Content-Encoding"] = encoding
        self._check(
            lambda: self.session.request(method, self.address + path, data=data, headers=headers, timeout=30),
            (method, path[:300], data[:300], headers),
        )

    def _check(self, send: Callable[[], requests.Response], what: Any) -> None:
        self.count += 1
        for attempt in range(3):
            started = time.monotonic()
            try:
                response = send()
            except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError, ValueError):
                return  # The client does not send such a request.
            except requests.exceptions.ConnectionError as error:
                if attempt == 0:
                    continue  # The service closed a kept connection.
                self.failures.append(f"{_described(what)}: {error}")
                return
            took = time.monotonic() - started
            if took <= MAX_SECONDS:
                break
        else:
            self.failures.append(f"{_described(what)}: {took:.1f} s")
        status = response.status_code
        self.statuses[status] = self.statuses.get(status, 0) + 1
        kind = response.headers.get("Content-Type", "")
        if status >= 500:
            self.failures.append(f"{_described(what)}: {status} {response.text[:300]}")
        elif status >= 400 and "json" not in kind and "protobuf" not in kind:
            self.failures.append(f"{_described(what)}: {status} as {kind}")

    def _good(self) -> ExportTraceServiceRequest:
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add()
        group.resource.attributes.add(key="service.name").value.string_value = "shop"
        now = time.time_ns()
        for i in range(1, 5):
            span = group.scope_spans.add().spans.add(
                trace_id=TRACE, span_id=i.to_bytes(8, "big"), name=f"op {i}", start_time_unix_nano=now,
                end_time_unix_nano=now + i, parent_span_id=(i - 1).to_bytes(8, "big") if i > 1 else b"",
            )  # fmt: skip
            span.attributes.add(key="key").value.int_value = i
        return request


def _described(what: Any) -> str:
    if isinstance(what, tuple):
        return " ".join(map(repr, what))
    return str(what.as_curl_command())[:1500]


_KEYS = st.sampled_from(["", "a", "workflow.step.name", "cicd.pipeline.name", "cicd.pipeline.run.id",
                         "prefect.run.name",
                         "celery.task_name", "workflow.execution.id", "service.name", "\0", "é" * 50,
                         "workflow.step.attempt", "exception.type"])  # fmt: skip
_TEXTS = st.one_of(st.text(max_size=40), st.just("x" * 5000), st.sampled_from(["\0", "completed", "\ud7ff", "💥"]))
_TIMES = st.one_of(
    st.sampled_from([0, 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1),
    st.integers(1_700_000_000_000_000_000, 1_800_000_000_000_000_000),
)  # fmt: skip


_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), _TEXTS, st.binary(max_size=9)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=5,
)  # fmt: skip
_IDS = st.one_of(st.sampled_from([TRACE, b"t" * 16, b"\0" * 16]), st.binary(max_size=20))


@st.composite
def export_requests(draw: Any) -> ExportTraceServiceRequest:
    """Export requests that can be encoded; their contents make sense or not."""
    request = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(0, 2))):
        group = request.resource_spans.add(schema_url=draw(_TEXTS))
        for key, value in draw(st.dictionaries(_KEYS, _VALUES, max_size=3)).items():
            group.resource.attributes.add(key=key).value.CopyFrom(any_value(value))
        scope = group.scope_spans.add()
        scope.scope.name = draw(_TEXTS)
        for _ in range(draw(st.integers(0, 4))):
            span = Span(
                trace_id=draw(_IDS), span_id=draw(st.binary(min_size=8, max_size=8) | st.binary(max_size=9)),
                parent_span_id=draw(st.binary(max_size=8)), name=draw(_TEXTS), start_time_unix_nano=draw(_TIMES),
                end_time_unix_nano=draw(_TIMES),
            )  # fmt: skip
            span.kind = draw(st.integers(0, 200))
            span.status.code = draw(st.integers(0, 9))
            span.status.message = draw(_TEXTS)
            for key, value in draw(st.dictionaries(_KEYS, _VALUES, max_size=4)).items():
                span.attributes.add(key=key).value.CopyFrom(any_value(value))
            for name in draw(st.lists(st.sampled_from(["exception", "log", "\0"]), max_size=2)):
                event = span.events.add(name=name, time_unix_nano=draw(_TIMES))
                event.attributes.add(key=draw(_KEYS)).value.CopyFrom(any_value(draw(_VALUES)))
            if draw(st.booleans()):
                span.links.add(trace_id=draw(_IDS), span_id=draw(st.binary(max_size=8)))
            scope.spans.append(span)
    return request


@st.composite
def otlp_bodies(draw: Any) -> tuple[bytes, str, str]:
    """(body, content type, content encoding): whole, damaged, or something else altogether."""
    if draw(st.booleans()):
        body, kind = draw(export_requests()).SerializeToString(), "application/x-protobuf"
    else:
        kind = "application/json"
        span: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
            st.sampled_from(["traceId", "spanId", "parentSpanId", "name", "kind", "startTimeUnixNano", "attributes",
                             "endTimeUnixNano", "events", "links", "status", "flags", "x"]),
            st.one_of(st.sampled_from([TRACE.hex(), "00" * 8, "1" * 16, "1790000000000000000", 1, 1 << 64, None, [],
                                       {}]),
                      st.text(max_size=9), st.lists(st.fixed_dictionaries({"key": _TEXTS, "value": st.just({})}),
                                                    max_size=2)),
        )  # fmt: skip
        document = {"resourceSpans": [{"scopeSpans": [{"spans": draw(st.lists(span, max_size=3))}]}]}
        body = json.dumps(draw(st.one_of(st.just(document), _JSON))).encode("utf-8", "surrogatepass")
    damage = draw(st.integers(0, 3))
    if damage == 1 and body:
        body = body[: draw(st.integers(0, len(body)))]
    elif damage == 2 and body:
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(min_size=1, max_size=3)) + body[at + 1 :]
    encoding = draw(st.sampled_from(["", "", "gzip", "deflate", "zstd", "br"]))
    compress: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress,
    }  # fmt: skip
    if encoding in compress and draw(st.integers(0, 4)):
        body = compress[encoding](body)
    return body, kind, encoding


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@st.composite
def trace_queries(draw: Any) -> str:
    """TraceQL that is almost right."""
    piece = st.sampled_from(["{", "}", "(", ")", "&&", "||", "!", "=", "!=", "=~", "!~", ">", "<=", "name", "status",
                             "error", "span.key", "resource.service.name", "duration", "5s", "1e9", "9" * 25, '"x"',
                             "`.*a|b`",
                             "nil", "true", ".a", "rootName", "kind", "|", "select(name)", " ", "-1",
                             '"\\', "'"])  # fmt: skip
    if draw(st.booleans()):
        return "{" + " ".join(draw(st.lists(piece, max_size=8))) + "}"
    return "".join(draw(st.lists(piece, max_size=200)))


def report(fuzzer: Fuzzer) -> str:
    """What was done, in a line."""
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(fuzzer.statuses.items()))
    return (
        f"{fuzzer.count} requests to {len(fuzzer.routes)} routes ({statuses}), {fuzzer.memory_mib:.0f} MiB, "
        f"{len(fuzzer.failures)} failures {msgspec.json.encode(fuzzer.failures[:5]).decode()}"
    )
