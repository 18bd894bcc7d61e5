"""OTLP/HTTP ingest (https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status

from tachograph.errors import StoreUnavailable
from tachograph.spans.open_span_requests import LEASE_HEADER
from tachograph_exporter.api import encodings
from tachograph_exporter.api.exports import BUSY, EXPORTS, FAILED, HTTP, REFUSED, STORED, UNAVAILABLE, Exports
from tachograph_exporter.api.request import CONFIG, Workspace, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.ingest.envelope import BadRequest
from tachograph_exporter.ingest.signals import LOGS, METRICS, TRACES, Signal
from tachograph_exporter.store.tokens import INGEST

_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"


async def traces(request: web.Request) -> web.Response:
    """``POST /v1/traces``: ingest spans; 200 once they are committed.

    Protobuf or JSON as in OTLP/HTTP, optionally compressed with gzip, deflate or zstd. Spans that are rejected are
    reported as a partial success. A span without an end is running: it is lost when it has not been sent again for as
    long as the response's header `Tachograph-Lease-Seconds` says. Executions, steps and attempts are assembled from the
    spans; the documentation has the mapping.
    """
    return await _export(request, TRACES)


async def ingest_logs(request: web.Request) -> web.Response:
    """``POST /v1/logs``: ingest log records; 200 once they are committed.

    As `/v1/traces`. Records are kept with the span they were written in, and are read as logs of its execution. An
    exception that was sent as a log record gives the step its error, as a span event does. Records that name no trace
    are counted and dropped.
    """
    return await _export(request, LOGS)


async def ingest_metrics(request: web.Request) -> web.Response:
    """``POST /v1/metrics``: ingest what processes measure of themselves (`process.*`); 200 once it is committed.

    As `/v1/traces`. A process is known by its resource: `service.instance.id`, or host and `process.pid`. Everything
    else is counted and dropped.
    """
    return await _export(request, METRICS)


async def _export(request: web.Request, signal: Signal) -> web.Response:
    exports = request.app[EXPORTS]
    outcome = FAILED
    try:
        outcome, response = await _answered(request, signal, exports)
        return response
    finally:
        exports.count(HTTP, signal.name, outcome)


async def _answered(request: web.Request, signal: Signal, exports: Exports) -> tuple[str, web.Response]:
    """The outcome of a request, and the response to it."""
    kind = request.content_type
    if kind not in (_JSON, _PROTOBUF):
        return REFUSED, _refused(_JSON, 415, 3, f"send {_PROTOBUF} or {_JSON}, not {kind}")
    limit = request.app[CONFIG].max_otlp_body_bytes
    workspace = await workspace_of(request)
    with exports.room() as room:
        try:
            body = await encodings.read(request, limit, room.reserve)
        except encodings.UnsupportedEncoding as error:
            return REFUSED, _closing(_refused(kind, 415, 3, str(error)))
        except encodings.TooLarge:
            return REFUSED, _closing(_refused(kind, 413, 3, f"the body is larger than {limit} bytes"))
        except encodings.TooSlow as error:
            return REFUSED, _closing(_refused(kind, 408, 4, str(error)))
        except encodings.NoRoom:
            why = "too many requests are waiting; retry later"
            return BUSY, _closing(_refused(kind, 429, 8, why, retry_after=1))
        except (encodings.Unreadable, web.HTTPException, web.RequestPayloadError, ValueError) as error:
            return REFUSED, _closing(_refused(kind, 400, 3, f"the body cannot be read: {error}"))
        outcome, response = await _stored(exports, workspace, body, signal, kind)
    if outcome == STORED and signal is TRACES:
        response.headers[LEASE_HEADER] = f"{request.app[CONFIG].lease_seconds:g}"
    return outcome, response


async def _stored(
    exports: Exports, workspace: Workspace, body: bytes, signal: Signal, kind: str
) -> tuple[str, web.Response]:
    try:
        message = await exports.store(workspace, body, signal, is_json=kind == _JSON)
    except BadRequest as error:
        return REFUSED, _refused(kind, 400, 3, str(error))
    except (StoreUnavailable, MemoryError):
        return UNAVAILABLE, _refused(kind, 503, 14, "the database is unavailable; retry later", retry_after=5)
    return STORED, _answer(kind, 200, message)


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


class ExportLogsRequest(msgspec.Struct):
    """An OTLP ``ExportLogsServiceRequest`` in JSON."""

    resourceLogs: list[dict[str, Any]] = []  # noqa: N815


class ExportMetricsRequest(msgspec.Struct):
    """An OTLP ``ExportMetricsServiceRequest`` in JSON."""

    resourceMetrics: list[dict[str, Any]] = []  # noqa: N815


class ExportResponse(msgspec.Struct):
    """The response to an OTLP request in JSON; for failures a ``google.rpc.Status``."""

    partialSuccess: dict[str, Any] = {}  # noqa: N815
    code: int | None = None
    message: str | None = None


ROUTES = tuple(
    Route(method="POST", path=f"/v1/{signal.name}", handler=handler, scope=INGEST, body=body, response=ExportResponse,
          other_statuses=(400, 408, 413, 415, 429, 503), media=(_PROTOBUF,), body_example={signal.groups[0]: []})
    for signal, handler, body in (
        (TRACES, traces, ExportRequest),
        (LOGS, ingest_logs, ExportLogsRequest),
        (METRICS, ingest_metrics, ExportMetricsRequest),
    )
)  # fmt: skip
