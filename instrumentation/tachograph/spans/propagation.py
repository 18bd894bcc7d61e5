"""The current span, carried in and out of the process."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.propagate import inject


def caller() -> tuple[str, str] | None:
    """(trace id, span id) of the span that is current here, in hex, or None: whom a run that starts now belongs to."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def propagation() -> Mapping[str, str]:
    """Headers (``traceparent``, ``tracestate``, ``baggage``) that carry the current span to others."""
    headers: dict[str, str] = {}
    inject(headers)
    return headers
