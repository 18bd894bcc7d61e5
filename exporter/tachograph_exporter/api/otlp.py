"""OTLP/HTTP ingest (https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, Final

import msgspec
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tachograph.errors import StoreUnavailable
from tachograph.spans.open_span_requests import LEASE_HEADER
from tachograph_exporter.api import encodings
from tachograph_exporter.api.request import CONFIG, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.ingest.envelope import BadRequest
from tachograph_exporter.ingest.receiver import Answer, Receiver
from tachograph_exporter.store.tokens import INGEST

RECEIVER: Final = web.AppKey("receiver", Receiver)
_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"


async def traces(request: web.Request) -> web.Response:
    """``POST /v1/traces``: ingest spans; 200 once they are committed.

    Protobuf or JSON as in OTLP/HTTP, optionally compressed with gzip, deflate or zstd. Spans that are rejected are
    reported as a partial success. A span without an end is running: it is lost when it has not been sent again for as
    long as the response's header `Tachograph-Lease-Seconds` says. Executions, steps and attempts are assembled from the
    spans; the documentation has the mapping.
    """
    kind = request.content_type
    if kind not in (_JSON, _PROTOBUF):
        return _refused(_JSON, 415, 3, f"send {_PROTOBUF} or {_JSON}, not {kind}")
    limit = request.app[CONFIG].max_otlp_body_bytes
    workspace = await workspace_of(request)
    receiver = request.app[RECEIVER]
    reserved = 0

    def reserve(size: int) -> bool:
        nonlocal reserved
        if not receiver.reserve(size):
            return False
        reserved += size
        return True

    try:
        try:
            body = await encodings.read(request, limit, reserve)
        except encodings.UnsupportedEncoding as error:
            return _closing(_refused(kind, 415, 3, str(error)))
        except encodings.TooLarge:
            return _closing(_refused(kind, 413, 3, f"the body is larger than {limit} bytes"))
        except encodings.TooSlow as error:
            return _closing(_refused(kind, 408, 4, str(error)))
        except encodings.NoRoom:
            return _closing(_refused(kind, 429, 8, "too many requests are waiting; retry later", retry_after=1))
        except (encodings.Unreadable, web.HTTPException, web.RequestPayloadError, ValueError) as error:
            return _closing(_refused(kind, 400, 3, f"the body cannot be read: {error}"))
        try:
            result = await _stored(receiver.submit(workspace.id, workspace.slug, body, is_json=kind == _JSON))
        except BadRequest as error:
            return _refused(kind, 400, 3, str(error))
        except (StoreUnavailable, MemoryError):
            return _refused(kind, 503, 14, "the database is unavailable; retry later", retry_after=5)
    finally:
        receiver.release(reserved)
    message = ExportTraceServiceResponse()
    if result.rejected:
        message.partial_success.rejected_spans = result.rejected
        message.partial_success.error_message = result.why
    return _answer(kind, 200, message, {LEASE_HEADER: f"{request.app[CONFIG].lease_seconds:g}"})


async def _stored(pending: Future[Answer]) -> Answer:
    try:
        return await asyncio.wrap_future(pending)
    finally:
        # An exception refers to this frame: it would keep itself and the body until the next collection of garbage.
        del pending


def _closing(answer: web.Response) -> web.Response:
    """The answer to a request whose body was not read to its end: the rest would be read as the next request."""
    answer.force_close()
    return answer


def _refused(kind: str, status: int, code: int, why: str, *, retry_after: int | None = None) -> web.Response:
    """A failure as OTLP/HTTP defines it: a ``google.rpc.Status`` with a gRPC status code."""
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
    Route(method="POST", path="/v1/traces", handler=traces, scope=INGEST, body=ExportRequest, response=ExportResponse,
          other_statuses=(400, 408, 413, 415, 429, 503), media=(_PROTOBUF,), body_example={"resourceSpans": []}),
)  # fmt: skip
