"""Spans: what executions and steps become in OpenTelemetry, and spans of any program while they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tachograph import otel_variables as _otel_variables  # first: it imports OpenTelemetry

if TYPE_CHECKING:
    from tachograph.spans.live_span_processor import LiveSpanProcessor as LiveSpanProcessor

del _otel_variables

__all__ = ["LiveSpanProcessor"]


def __getattr__(name: str) -> Any:
    # Only who sends open spans needs OTLP's encoder.
    if name == "LiveSpanProcessor":
        from tachograph.spans.live_span_processor import LiveSpanProcessor

        return LiveSpanProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
