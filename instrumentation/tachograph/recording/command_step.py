"""A run that begins inside a recorded command (``tachograph exec``) is a step of that, too."""

from __future__ import annotations

import os
from typing import Final

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span
from opentelemetry.trace.propagation import set_span_in_context

from tachograph import meter, recorded_command, spool_places
from tachograph.clock import AnchoredClock
from tachograph.events import Failure, StepStatus
from tachograph.identity import StepRef, step_id
from tachograph.meter import Meter
from tachograph.recorded_command import STEP_VARIABLE, Around, BegunStep, Notes
from tachograph.recording import open_execution, setup
from tachograph.workflow.attempts import StepAttempts

_full: Final[set[str]] = set()
_notes: Final[dict[str, Notes]] = {}
"""The commands that take no more steps, and what this process has read of commands, by the path of their notes."""


class CommandStep:
    """The step of a recorded command that a run of this process is. `open_step` makes it, and `close` ends it.

    Attributes:
        ref: the step.
        context: has the step's span as the current one.
        meter: measures what the run uses, if anything does.
    """

    meter: Meter | None = None

    def __init__(self, begun: BegunStep, notes: Notes, context: Context, started_ns: int, inputs: str | None) -> None:
        self.ref = ref = msgspec.convert(begun.ref, StepRef)
        self._notes = notes
        self._emit = setup.get_recorder()
        self._clock = AnchoredClock()
        self._is_open = True
        self._attempts = StepAttempts(ref, begun.origin_ns)
        token = otel_context.attach(_with_span(context, ref.execution.trace_id, ref.parent_span_id))
        try:
            # It makes the step's span the current one, if there are spans.
            self._emit(self._attempts.started(started_ns, inputs, ready_ns=begun.ready_ns))
            self.context = otel_context.get_current()
        finally:
            otel_context.detach(token)

    def measure(self, *, is_on_loop: bool) -> None:
        """From now on the run uses the machine."""
        self.meter = meter.start(meter.around.get(), is_on_loop, False)

    def close(
        self,
        status: StepStatus,
        failure: Failure | None = None,
        output: str | None = None,
        at_ns: int | None = None,
    ) -> None:
        """The run has ended, now or at a moment (unix ns)."""
        if not self._is_open:
            return
        self._is_open = False
        used = self.meter.stop() if self.meter is not None else None
        now = max(self._clock() if at_ns is None else at_ns, self._attempts.attempt_started_ns)
        self._emit(self._attempts.finished(now, status, failure, output, resources=used))
        recorded_command.end_step(self._notes, self.ref.step_id, status.value, now)


def command_trace() -> str | None:
    """The trace id of the recorded command that this process runs inside, and records where that does; else None."""
    outer = _around()
    return outer.execution["trace_id"] if outer is not None and _is_recorded_here(outer) else None


def open_step(
    name: str, child_execution_id: str, inputs: str | None, *, started_ns: int | None = None
) -> CommandStep | None:
    """A run begins: the step that it is of the recorded command around this process.

    None if there is no such command, if its run is over or has no room for more steps, if it is recorded elsewhere than
    this process records, or if the calling code has a current span of another trace.
    """
    outer = _around()
    if outer is None or outer.notes in _full or not _is_recorded_here(outer):
        return None
    context = Context() if open_execution.is_stale() else context_of_caller()
    span = get_current_span(context).get_span_context()
    if span.is_valid and f"{span.trace_id:032x}" != outer.execution["trace_id"]:
        return None
    notes = _notes.setdefault(outer.notes, Notes(outer.notes))
    started = AnchoredClock()() if started_ns is None else started_ns
    begun = recorded_command.begin_step(
        outer, notes, name, "workflow", lambda: started, step_id, child_execution_id=child_execution_id
    )
    if begun is None:
        _full.add(outer.notes)
        return None
    return CommandStep(begun, notes, context, started, inputs)


def context_of_caller() -> Context:
    """The current context or, if it has no span, the one a parent process passed on in ``TRACEPARENT``."""
    current = otel_context.get_current()
    if get_current_span().get_span_context().is_valid or "TRACEPARENT" not in os.environ:
        return current
    names = ("traceparent", "tracestate", "baggage")
    return extract({name: os.environ[name.upper()] for name in names if name.upper() in os.environ}, current)


def _around() -> Around | None:
    return recorded_command.around(os.environ) if STEP_VARIABLE in os.environ else None


def _is_recorded_here(outer: Around) -> bool:
    setup.get_recorder()
    destination = setup.database_url()
    return destination is not None and spool_places.spool_name(destination) == outer.destination


def _with_span(context: Context, trace_id: str, span_id: str) -> Context:
    """The context with this span as the current one; it is sampled unless the context's own span says otherwise."""
    own = get_current_span(context).get_span_context()
    if own.span_id == int(span_id, 16):
        return context
    flags = own.trace_flags if own.is_valid else TraceFlags(TraceFlags.SAMPLED)
    around = SpanContext(int(trace_id, 16), int(span_id, 16), True, flags, own.trace_state if own.is_valid else None)
    return set_span_in_context(NonRecordingSpan(around), context)
