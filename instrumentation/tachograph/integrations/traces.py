"""Where another instrumentation makes spans of messages: let them be part of the trace of their run.

Without a span around them, each message that is sent would begin a trace of its own.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Final

from tachograph.identity import traceparent
from tachograph.report import Run
from tachograph.spans.propagation import caller

_entered: Final = threading.local()


def enter_trace(run: Run, instrumentation: str) -> bool:
    """Let the run's span be current in this thread until `leave_trace`, and return whether it is.

    It is not if a span is current anyway, or if nothing imported ``instrumentation``, the module that makes spans.
    """
    leave_trace()
    _entered.token = enter_span(traceparent(run.ref.trace_id, run.ref.span_id), instrumentation)
    return _entered.token is not None


def leave_trace() -> None:
    """The message is sent. Calling this again does nothing."""
    token, _entered.token = getattr(_entered, "token", None), None
    leave_span(token)


def enter_span(traceparent: str, instrumentation: str) -> Any:
    """Let the span of a ``traceparent`` be current until `leave_span` of what this returns; None: it is not.

    It is not for an empty one, if a span is current anyway, or if nothing imported ``instrumentation``.
    """
    if not traceparent or instrumentation not in sys.modules or caller() is not None:
        return None
    from opentelemetry import context, trace

    trace_id, span_id = traceparent.split("-")[1:3]
    span = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(1))
    return context.attach(trace.set_span_in_context(trace.NonRecordingSpan(span)))


def leave_span(token: Any) -> None:
    """Undo `enter_span`, in the same thread or asyncio task."""
    if token is not None:
        from opentelemetry import context

        context.detach(token)
