"""The signals of OTLP: what an export request carries, and how it is answered.

Names: opentelemetry/proto/collector/*/v1/*_service.proto. All requests have the same form: groups by resource, in them
scopes, in these the items, each in the field with the same number.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span


class BadRequest(ValueError):
    """A body that is not an export request; says what is wrong."""


class Signal(NamedTuple):
    """One signal. ``item`` is what it consists of, in words; ``service`` is its gRPC service.

    ``groups``, ``scopes`` and ``items`` are the names of the lists in JSON, in both forms. ``response`` answers a
    request, and has the number of items that were rejected in ``rejected``.
    """

    name: str
    item: str
    service: str
    request: str
    group: type[Message]
    scope_type: type[Message]
    item_type: type[Message]
    groups: tuple[str, str]
    scopes: tuple[str, str]
    items: tuple[str, str]
    response: type[Message]
    rejected: str

    @property
    def scope(self) -> str:
        """The name of a scope's message."""
        return self.scope_type.DESCRIPTOR.name

    def answer(self, rejected: int = 0, why: str = "") -> Any:
        """The response to a request; ``why`` says why items were rejected."""
        message: Any = self.response()
        if rejected:
            setattr(message.partial_success, self.rejected, rejected)
            message.partial_success.error_message = why
        return message


_SERVICES: Final = "opentelemetry.proto.collector"
TRACES: Final = Signal(
    "traces", "span", f"{_SERVICES}.trace.v1.TraceService", "ExportTraceServiceRequest",
    ResourceSpans, ScopeSpans, Span,
    ("resourceSpans", "resource_spans"), ("scopeSpans", "scope_spans"), ("spans", "spans"),
    ExportTraceServiceResponse, "rejected_spans",
)  # fmt: skip
LOGS: Final = Signal(
    "logs", "log record", f"{_SERVICES}.logs.v1.LogsService", "ExportLogsServiceRequest",
    ResourceLogs, ScopeLogs, LogRecord,
    ("resourceLogs", "resource_logs"), ("scopeLogs", "scope_logs"), ("logRecords", "log_records"),
    ExportLogsServiceResponse, "rejected_log_records",
)  # fmt: skip
METRICS: Final = Signal(
    "metrics", "metric", f"{_SERVICES}.metrics.v1.MetricsService", "ExportMetricsServiceRequest",
    ResourceMetrics, ScopeMetrics, Metric,
    ("resourceMetrics", "resource_metrics"), ("scopeMetrics", "scope_metrics"), ("metrics", "metrics"),
    ExportMetricsServiceResponse, "rejected_data_points",
)  # fmt: skip
SIGNALS: Final = (TRACES, LOGS, METRICS)
