"""OTLP/HTTP in: spans of any engine (https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from sqlalchemy.exc import InterfaceError, OperationalError

from tachograph.events import Event
from tachograph.exporter.api.request import CONFIG, DATABASE, RECORDER, workspace_of
from tachograph.exporter.api.routes import INGEST, Route
from tachograph.exporter.ingest import intake
from tachograph.exporter.ingest.spans import MOST_SPANS, BadRequest, SpanRecord, parse, records
from tachograph.exporter.store.writer import StoreWriter

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Requests that are worked on at once; further ones are asked to come again."""
WRITER: Final = web.AppKey("writer", StoreWriter)
UNDER_WAY: Final = web.AppKey("ingest_under_way", asyncio.Semaphore)
_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"


async def traces(request: web.Request) -> web.Response:
    """``POST /v1/traces``: take spans; 200 once they are committed.

    Protobuf or JSON, as OTLP/HTTP says, gzip too. What cannot be kept is told as a partial success. Executions, steps
    and attempts are read from the spans; the mapping is in the documentation.
    """
    kind = request.content_type
    if kind not in (_JSON, _PROTOBUF):
        return _refused(_JSON, 415, 3, f"send {_PROTOBUF} or {_JSON}, not {kind}")
    slots = request.app[UNDER_WAY]
    if slots.locked():
        return _refused(kind, 429, 8, f"{AT_ONCE} requests are being worked on; come again", retry_after=1)
    async with slots:
        limit = request.app[CONFIG].max_body_bytes
        if request.content_length is not None and request.content_length > limit:
            return _refused(kind, 413, 3, f"the body is larger than {limit} bytes")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _refused(kind, 413, 3, f"the body is larger than {limit} bytes")
        except (web.HTTPException, ValueError) as error:
            return _refused(kind, 400, 3, f"the body cannot be read: {error}")
        workspace = await workspace_of(request)
        try:
            kept, rejected = await asyncio.to_thread(_read, body, is_json=kind == _JSON)
        except BadRequest as error:
            return _refused(kind, 400, 3, str(error))
        if kept:
            writer = request.app[WRITER]
            try:
                new = await request.app[DATABASE].write(
                    lambda c: intake.take(c, writer, workspace.id, workspace.slug, kept)
                )
            except (OperationalError, InterfaceError, OSError) as error:
                log.warning("spans could not be stored: %s", error)
                return _refused(kind, 503, 14, "the database cannot take it now", retry_after=5)
            _tell(request, new)
    answer = ExportTraceServiceResponse()
    if rejected:
        answer.partial_success.rejected_spans = len(rejected)
        answer.partial_success.error_message = "; ".join(rejected[:5])
    return _answer(kind, 200, answer)


def _read(body: bytes, *, is_json: bool) -> tuple[list[SpanRecord], list[str]]:
    kept: list[SpanRecord] = []
    rejected: list[str] = []
    for one in records(parse(body, is_json=is_json)):
        if isinstance(one, str):
            rejected.append(one)
        elif len(kept) >= MOST_SPANS:
            rejected.append(f"a request may carry {MOST_SPANS} spans")
        else:
            kept.append(one)
    return kept, rejected


def _tell(request: web.Request, events: list[Event]) -> None:
    """What is new goes to the metrics as any event does; it is stored, and its spans were exported elsewhere."""
    lane = request.app[RECORDER].lanes["metrics"]
    for event in events:
        lane.put(event)


def _refused(kind: str, status: int, code: int, why: str, *, retry_after: int | None = None) -> web.Response:
    """A ``google.rpc.Status``, as OTLP/HTTP wants failures told; ``code`` is gRPC's."""
    headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
    return _answer(kind, status, Status(code=code, message=why), headers)


def _answer(kind: str, status: int, message: Any, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(MessageToDict(message)) if kind == _JSON else message.SerializeToString()
    return web.Response(body=body, status=status, content_type=kind, headers=headers)


class ExportRequest(msgspec.Struct):
    """An OTLP ``ExportTraceServiceRequest`` in JSON."""

    resourceSpans: list[dict[str, Any]] = []  # noqa: N815 - OTLP's own name


class ExportResponse(msgspec.Struct):
    """An OTLP ``ExportTraceServiceResponse`` in JSON; for failures a ``google.rpc.Status``."""

    partialSuccess: dict[str, Any] = {}  # noqa: N815
    code: int | None = None
    message: str | None = None


ROUTES = (
    Route(method="POST", path="/v1/traces", handler=traces, scope=INGEST, body=ExportRequest, answer=ExportResponse,
          also=(400, 413, 415, 429, 503), media=(_PROTOBUF,), body_example={"resourceSpans": []}),
)  # fmt: skip
