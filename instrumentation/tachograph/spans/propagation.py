"""The current span, carried in and out of the process."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.propagate import inject


def caller() -> tuple[str, str] | None:
    """The current span's (trace id, span id) in hex, or None: the parent of an execution that starts now."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def propagation() -> Mapping[str, str]:
    """Headers (``traceparent``, ``tracestate``, ``baggage``) that carry the current span to other processes."""
    headers: dict[str, str] = {}
    inject(headers)
    return headers
