"""Recordings of what an engine sends: a request a line, raw, in order of arrival.

A line is ``{"offset_seconds": …, "path": "/v1/traces", "request": {…}}``. A request that came as protobuf is written in
OTLP's JSON (ids are hex, enums numbers; https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding), which is
checked to lose nothing. Pieces, their order, and span ids that an engine uses twice stay as they were.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MAX_PLAIN_BYTES: Final = 30_000
"""A longer recording is compressed."""
MESSAGES: Final[Mapping[str, type[Message]]] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})
_PROCESS_IDS: Final = frozenset({"process.pid", "process.parent_pid", "pid", "ray.pid"})
_USERS: Final = frozenset({"process.owner", "user.name", "enduser.id"})
_CELERY_CLIENT: Final = re.compile(r"\bgen(\d+)@")
_FIRST_PROCESS_ID: Final = 101


class Request(NamedTuple):
    """One request as it arrived. ``offset_seconds`` counts from the first request of the recording."""

    offset_seconds: float
    path: str
    body: Any


def _with_ids(value: Any, convert: Callable[[str], str]) -> Any:
    # Attributes are lists of {"key", "value"}, so a key of an object is never the user's.
    if isinstance(value, dict):
        return {
            key: convert(item) if key in _IDS and isinstance(item, str) else _with_ids(item, convert)
            for key, item in value.items()
        }
    return [_with_ids(item, convert) for item in value] if isinstance(value, list) else value


def otlp_json(message: Message) -> Any:
    """A request in OTLP's JSON. Raises ValueError if the JSON would not give the same message back."""
    document = _with_ids(MessageToDict(message, use_integers_for_enums=True), lambda text: base64.b64decode(text).hex())
    again = ParseDict(_with_ids(document, lambda text: base64.b64encode(bytes.fromhex(text)).decode()), type(message)())
    if again.SerializeToString(deterministic=True) != message.SerializeToString(deterministic=True):
        raise ValueError("the request has fields that this version of opentelemetry-proto does not know")
    return document


def decoded(path: str, content: bytes, content_type: str) -> Any:
    """A request's body as JSON. Raises ValueError if it is neither JSON nor one of OTLP's messages."""
    if "json" in content_type or path not in MESSAGES:
        return json.loads(content)
    message = MESSAGES[path]()
    message.ParseFromString(content)
    return otlp_json(message)


class Mask:
    """Replaces what tells of the machine: its name, paths, user names and process ids. Nothing else changes.

    ``paths`` become ``/srv/app``, the longest first.
    """

    def __init__(self, paths: Sequence[str | Path] = ()) -> None:
        names = {socket.gethostname(), socket.getfqdn()} - {"localhost", ""}
        patterns = [rf"\b{re.escape(name)}\b" for name in sorted(names, key=len, reverse=True)]
        self._names = re.compile("|".join(patterns) or "(?!)")
        self._paths = sorted({str(path) for path in paths}, key=len, reverse=True)
        self._process_ids: dict[str, int] = {}

    def __call__(self, value: Any) -> Any:
        """The same JSON value with the machine's names replaced."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("value"), dict):
            if value.get("key") in _PROCESS_IDS:
                # One of intValue and stringValue; both are strings.
                masked = {kind: str(self._process_id(str(item))) for kind, item in value["value"].items()}
                return {**value, "value": masked}
            if value.get("key") in _USERS and "stringValue" in value["value"]:
                return {**value, "value": {"stringValue": "app"}}
        return {key: self(item) for key, item in value.items()}

    def _process_id(self, process_id: str) -> int:
        return self._process_ids.setdefault(process_id, _FIRST_PROCESS_ID + len(self._process_ids))

    def _text(self, text: str) -> str:
        for path in self._paths:
            text = text.replace(path, "/srv/app")
        text = self._names.sub("worker-1", text)
        return _CELERY_CLIENT.sub(lambda match: f"gen{self._process_id(match[1])}@", text)


def write(path: Path, requests: Sequence[Request], mask: Mask) -> Path:
    """Write a recording to ``path``.jsonl, compressed where it is long. Returns the file."""
    lines = [
        json.dumps(
            {"offset_seconds": round(request.offset_seconds, 3), "path": request.path, "request": mask(request.body)},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for request in requests
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    plain, compressed = path.with_name(f"{path.name}.jsonl"), path.with_name(f"{path.name}.jsonl.gz")
    for old in (plain, compressed):
        old.unlink(missing_ok=True)
    if len(content) <= MAX_PLAIN_BYTES:
        plain.write_bytes(content)
        return plain
    compressed.write_bytes(gzip.compress(content, mtime=0))
    return compressed


def read(path: Path) -> Iterator[Request]:
    """The requests of a recording."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    # JSON strings may hold other characters that end a line.
    for line in content.decode().rstrip("\n").split("\n"):
        fields = json.loads(line)
        yield Request(fields["offset_seconds"], fields["path"], fields["request"])
