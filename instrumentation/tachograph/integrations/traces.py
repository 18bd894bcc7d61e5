"""Where another instrumentation makes spans of messages: let them be part of the trace of their run.

Without a span around them, each message that is sent would begin a trace of its own.
"""

from __future__ import annotations

import sys
import threading
from typing import Final

from tachograph.report import Run
from tachograph.spans.propagation import caller

_entered: Final = threading.local()


def enter_trace(run: Run, instrumentation: str) -> bool:
    """Let the run's span be current in this thread until `leave_trace`, and return whether it is.

    It is not if a span is current anyway, or if nothing imported ``instrumentation``, the module that makes spans.
    """
    leave_trace()
    if instrumentation not in sys.modules or caller() is not None:
        return False
    from opentelemetry import context, trace

    ref = run.ref
    span = trace.SpanContext(int(ref.trace_id, 16), int(ref.span_id, 16), True, trace.TraceFlags(1))
    _entered.token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(span)))
    return True


def leave_trace() -> None:
    """The message is sent. Calling this again does nothing."""
    token, _entered.token = getattr(_entered, "token", None), None
    if token is not None:
        from opentelemetry import context

        context.detach(token)
