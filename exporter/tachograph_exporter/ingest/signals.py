"""The signals of OTLP: what an export request carries, and how it is answered.

Names: opentelemetry/proto/collector/*/v1/*_service.proto.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse


class Signal(NamedTuple):
    """One signal. ``item`` is what it consists of, in one word; ``service`` is its gRPC service.

    ``response`` answers a request, and has the number of items that were rejected in ``rejected``.
    """

    name: str
    item: str
    service: str
    request: str
    response: type[Message]
    rejected: str

    def answer(self, rejected: int = 0, why: str = "") -> Any:
        """The response to a request; ``why`` says why items were rejected."""
        message: Any = self.response()
        if rejected:
            setattr(message.partial_success, self.rejected, rejected)
            message.partial_success.error_message = why
        return message


TRACES: Final = Signal(
    "traces", "span", "opentelemetry.proto.collector.trace.v1.TraceService", "ExportTraceServiceRequest",
    ExportTraceServiceResponse, "rejected_spans",
)  # fmt: skip
SIGNALS: Final = (TRACES,)
