"""Sends the spans of a recorded command by OTLP over HTTP, where the standard variables ask for it.

https://opentelemetry.io/docs/specs/otlp/#otlphttp; the variables are those of
https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. They ask for it where they do so for
the library, see `tachograph.recording.provider`.
"""

from __future__ import annotations

import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tachograph_exporter.command import web
from tachograph_exporter.command.events import Event
from tachograph_exporter.command.spans import Span, SpanBook, Value
from tachograph_exporter.command.web import Address, Trust

SCOPE = "tachograph"
TIMEOUT_SECONDS = 10.0
_RETRY_SECONDS = 0.25
_TRY_AGAIN = (429, 502, 503, 504)
"""What a collector answers that may take it later; see the specification."""
_PATH = "v1/traces"
_MAX_TIMEOUT = 3600.0


class Collector(NamedTuple):
    """Where spans go. ``problem``: why they cannot be sent, "" if they can. ``timeout``: seconds for one request."""

    problem: str = ""
    address: Address = Address(False, "", 0, "", "")
    headers: tuple[str, ...] = ()
    is_compressed: bool = False
    timeout: float = TIMEOUT_SECONDS
    trust: Trust = Trust()
    resource: tuple[tuple[str, str], ...] = ()


def collector_of(environment: Mapping[str, str]) -> Collector | None:
    """The collector that the variables name; None if they ask for no export by OTLP."""

    def value(name: str) -> str:
        return environment.get(name, "").strip()

    def of_traces(name: str) -> str:
        return value(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or value(f"OTEL_EXPORTER_OTLP_{name}")

    if value("OTEL_SDK_DISABLED").lower() == "true" or value("OTEL_CONFIG_FILE"):
        return None
    exporters = [name.strip() for name in value("OTEL_TRACES_EXPORTER").split(",") if name.strip()]
    if not exporters:
        exporters = ["otlp"] if of_traces("ENDPOINT") else []
    is_grpc = "otlp_proto_grpc" in exporters or ("otlp" in exporters and of_traces("PROTOCOL") == "grpc")
    if is_grpc:
        return Collector("commands send them by HTTP only: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf")
    if not {"otlp", "otlp_proto_http"} & set(exporters):
        return None
    own, base = value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), value("OTEL_EXPORTER_OTLP_ENDPOINT")
    url = own or f"{(base or 'http://localhost:4318').rstrip('/')}/{_PATH}"
    address = web.address_of(url)
    if address is None:
        return Collector(
            f"OTEL_EXPORTER_OTLP_{'TRACES_' if own else ''}ENDPOINT is not a URL like http://localhost:4318"
        )
    return Collector(
        address=address,
        headers=tuple(_headers(of_traces("HEADERS"))),
        is_compressed=of_traces("COMPRESSION") == "gzip",
        timeout=_seconds(of_traces("TIMEOUT")),
        trust=Trust(of_traces("CERTIFICATE"), of_traces("CLIENT_CERTIFICATE"), of_traces("CLIENT_KEY")),
        resource=tuple(_resource(environment).items()),
    )


def _pairs(text: str) -> dict[str, str]:
    """``key1=value1,key2=value2``, percent-encoded; what is no pair is left out."""
    pairs = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if equals and key.strip():
            pairs[urllib.parse.unquote(key.strip())] = urllib.parse.unquote(value.strip())
    return pairs


def _headers(text: str) -> list[str]:
    return [f"{name}: {value}" for name, value in _pairs(text).items() if name.isascii() and name.isprintable()]


def _resource(environment: Mapping[str, str]) -> dict[str, str]:
    attributes = {"service.name": SCOPE, **_pairs(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))}
    if name := environment.get("OTEL_SERVICE_NAME", "").strip():
        attributes["service.name"] = name
    return attributes


def _seconds(text: str) -> float:
    try:
        seconds = float(text or TIMEOUT_SECONDS)
    except ValueError:
        seconds = 0.0
    return seconds if 0 < seconds < _MAX_TIMEOUT else TIMEOUT_SECONDS


def is_sampled(environment: Mapping[str, str], trace_id: str, parent_is_sampled: bool | None) -> bool:
    """Whether a trace is kept, as ``OTEL_TRACES_SAMPLER`` says. ``parent_is_sampled``: None if there is no parent."""
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    if sampler.startswith("parentbased_") or sampler not in ("always_on", "always_off", "traceidratio"):
        if parent_is_sampled is not None:
            return parent_is_sampled
        sampler = sampler.removeprefix("parentbased_")
    if sampler == "always_off":
        return False
    if sampler != "traceidratio":
        return True
    try:
        ratio = float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    except ValueError:
        ratio = 1.0
    # As OpenTelemetry's SDK: the last 64 bits of the id.
    return int(trace_id[16:], 16) < round(min(1.0, max(0.0, ratio)) * (1 << 64)) if 0 <= ratio <= 1 else True


class Export:
    """Exports the spans of a command when it has ended. Nothing it does raises.

    Args:
        say: called with what the user should know.
    """

    def __init__(self, collector: Collector, say: Callable[[str], None]) -> None:
        self._collector, self._say = collector, say
        self._book = SpanBook()
        self._thread: threading.Thread | None = None
        self._problem: str | None = collector.problem or None

    is_sampled = staticmethod(is_sampled)

    def add(self, recorded: Sequence[Event]) -> None:
        """Take note of events of the command's execution."""
        if not self._collector.problem:
            self._book.add(recorded)

    def begin(self, seconds: float) -> None:
        """Start to send what there is, for at most so many seconds."""
        if not self._book.spans:
            return
        thread = threading.Thread(target=self._send, args=(seconds,), name="tachograph-spans", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._problem = str(error)
            return
        self._thread, self._problem = thread, "no answer"

    def _send(self, seconds: float) -> None:
        try:
            self._problem = send(self._collector, self._book.spans, seconds)
        except Exception as error:
            self._problem = str(error) or type(error).__name__

    def end(self, seconds: float) -> None:
        """Wait for what `begin` started, for at most so many seconds, and say it if it failed."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))
        if self._problem:
            self._say(f"spans are not exported: {self._problem}")


def send(collector: Collector, spans: Sequence[Span], seconds: float) -> str:
    """Send spans, again if need be, for at most so many seconds: why it failed, or ""."""
    body, headers = encode(spans, collector.resource), ["Content-Type: application/x-protobuf", *collector.headers]
    if collector.is_compressed:
        import gzip

        body = gzip.compress(body)
        headers.append("Content-Encoding: gzip")
    end, delay = time.monotonic() + seconds, _RETRY_SECONDS
    while True:
        left = max(0.01, min(end - time.monotonic(), collector.timeout))
        try:
            status, _ = web.post(
                collector.address, headers, body, connect_seconds=left, answer_seconds=left, trust=collector.trust
            )
            if 200 <= status < 300:
                return ""
            why = f"it answers {status}"
        except (OSError, ValueError) as error:
            status, why = 0, str(error) or type(error).__name__
        if (status and status not in _TRY_AGAIN) or time.monotonic() + delay >= end:
            return f"{collector.address.authority}: {why}"
        time.sleep(delay)
        delay *= 2


# Protocol buffers, see https://protobuf.dev/programming-guides/encoding/ and opentelemetry/proto/trace/v1/trace.proto.


def encode(spans: Sequence[Span], resource: Sequence[tuple[str, Value]]) -> bytes:
    """An ``ExportTraceServiceRequest`` with these spans."""
    of_scope = _message(1, _text(1, SCOPE)) + b"".join(_message(2, _span(span)) for span in spans)
    of_resource = b"".join(_attribute(1, key, value) for key, value in resource)
    return _message(1, _message(1, of_resource) + _message(2, of_scope))


def _span(span: Span) -> bytes:
    trace_id = bytes.fromhex(span.trace_id)
    parts = [
        _message(1, trace_id),
        _message(2, bytes.fromhex(span.span_id)),
        _message(4, bytes.fromhex(span.parent_span_id)) if span.parent_span_id else b"",
        _text(5, span.name),
        _varint_field(6, span.kind),
        _fixed64(7, span.started_ns),
        _fixed64(8, span.ended_ns),
        *(_attribute(9, key, value) for key, value in span.attributes.items()),
    ]
    for event in span.events:
        said = b"".join(_attribute(3, key, value) for key, value in event.attributes.items())
        parts.append(_message(11, _fixed64(1, event.time_ns) + _text(2, event.name) + said))
    if span.dropped_events:
        parts.append(_varint_field(12, span.dropped_events))
    parts += [_message(13, _message(1, trace_id) + _message(2, bytes.fromhex(link))) for link in span.links]
    if span.error is not None:
        parts.append(_message(15, _text(2, span.error) + _varint_field(3, 2)))
    return b"".join(parts)


def _attribute(field: int, key: str, value: Value) -> bytes:
    if isinstance(value, bool):
        content = _varint_field(2, int(value))
    elif isinstance(value, int):
        content = _varint_field(3, value & (1 << 64) - 1)
    elif isinstance(value, float):
        content = _key(4, 1) + struct.pack("<d", value)
    else:
        content = _text(1, value)
    return _message(field, _text(1, key) + _message(2, content))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _fixed64(field: int, value: int) -> bytes:
    return _key(field, 1) + struct.pack("<Q", value)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8", "replace"))
