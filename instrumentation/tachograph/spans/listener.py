"""Events as OpenTelemetry spans: one per execution, one per step, and one per attempt where a step retries.

Ids come from the events, where they were fixed before anything ran. So a span is known (and stored, and linkable)
before it ends, and one that its process never ended can be closed later under its real parent. For that, and because
the SDK's own span costs several times as much as the rest of a recorded step, spans are `LiveSpan`s: they go through
the provider's own sampler, processors and exporters, which see a `ReadableSpan` like any other.

A span starts at once, in the context of the step's task, and is the current span there. It ends on the recorder's
listener queue, so a span processor that blocks holds up no step. Without a provider a step still has a current span
(not recording, with the real ids), so that propagation and log correlation work.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation import set_span_in_context

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepCost,
    StepFinished,
    StepLogged,
    StepMeasured,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, Origin, StepRef
from tachograph.run_notes import RunNotes
from tachograph.spans import semconv
from tachograph.spans.attributes import (
    add_cost,
    attempt_attributes,
    attempt_span_id,
    attempt_state_attributes,
    exception_attributes,
    execution_attributes,
    execution_state_attributes,
    log_attributes,
    measure_attributes,
    step_attributes,
    step_state_attributes,
)
from tachograph.spans.ended_spans import MAX_SPANS_IN_ALL, EndedSpans
from tachograph.spans.execution_spans import ExecutionSpans
from tachograph.spans.live_span import LiveSpan, start_span
from tachograph.spans.step_span import StepSpan
from tachograph.spans.target import SAMPLED, SpanTarget

MAX_UNSAMPLED: Final = 10_000
"""Dropped traces that are remembered."""

# The key under which a context has its span.
_SPAN_KEY: Final = next(iter(set_span_in_context(trace.INVALID_SPAN, Context())))


class SpanListener:
    """Turns events into spans.

    Args:
        provider: records and exports them. None: steps get a current span with the real ids that goes nowhere.
    """

    handles: Final = frozenset(
        {StepFinished, StepRetrying, StepSkipped, StepCost, StepMeasured, StepLogged, ExecutionFinished}
    )

    origins: Final = frozenset({Origin.RECORDED, Origin.REPORTED})

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self.target = SpanTarget(provider) if provider is not None else None
        self._keeps_children = self.target is not None and self.target.is_native and self.target.keeps_children
        self.ended = RunNotes(EndedSpans, MAX_SPANS_IN_ALL)
        self._runs: dict[str, ExecutionSpans] = {}
        # Traces the sampler dropped, the newest of them.
        self._unsampled: dict[str, None] = {}

    def begin(self, event: ExecutionStarted | StepStarted) -> None:
        """Start the span and make it the current one of the calling context."""
        if type(event) is StepStarted:
            span = self._begin_step(event)
        else:
            self.ended.begin(event.execution.execution_id, is_whole=True)
            span = self._begin_run(event.execution, event.time_ns).root
        if event.execution.origin is Origin.REPORTED:
            return  # Somebody else executes it; the caller has a context of its own.
        otel_context.attach(Context({**otel_context.get_current(), _SPAN_KEY: span}))

    def _begin_run(self, ref: ExecutionRef, time_ns: int) -> ExecutionSpans:
        parent = _parent_context(ref.trace_id, ref.parent_span_id) if ref.parent_span_id else Context()
        root = self._start(
            semconv.run_span_name(ref.workflow),
            ref.span_id,
            int(ref.trace_id, 16),
            parent,
            SpanKind.SERVER,
            execution_attributes(ref),
            (),
            time_ns,
        )
        ended = self.ended.begin(ref.execution_id)
        run = ExecutionSpans(ref, root, set_span_in_context(root, parent), self._keeps_children, ended)
        self._runs[ref.execution_id] = run
        if not root.get_span_context().trace_flags.sampled:
            self._unsampled[ref.trace_id] = None
            if len(self._unsampled) > MAX_UNSAMPLED:
                self._unsampled.pop(next(iter(self._unsampled)))
        return run

    def _run(self, ref: ExecutionRef) -> ExecutionSpans:
        """The execution's spans. If it started in another process, a remote parent stands in for its root."""
        run = self._runs.get(ref.execution_id)
        if run is None:
            context = _parent_context(ref.trace_id, ref.span_id)
            ended = self.ended.begin(ref.execution_id)
            run = ExecutionSpans(ref, trace.get_current_span(context), context, self._keeps_children, ended)
            self._runs[ref.execution_id] = run
        return run

    def _begin_step(self, event: StepStarted) -> trace.Span:
        step = event.step
        run = self._runs.get(step.execution.execution_id) or self._run(step.execution)
        span = run.steps.get(step.span_id)
        if span is None:
            span = self._start_step(run, step, event.time_ns)
        if event.attempt != 1:
            attempt = self._start_attempt(run, step, span, event.attempt, event.time_ns)
            run.attempts[step.span_id, event.attempt] = attempt
            return attempt
        return span

    def _start_step(self, run: ExecutionSpans, step: StepRef, time_ns: int) -> trace.Span:
        span_id = step.span_id
        if run.keeps_steps and step.parent_span_id == step.execution.span_id:
            target = cast(SpanTarget, self.target)
            context = SpanContext(run.trace_id, int(span_id, 16), False, SAMPLED, run.trace_state)
            span: trace.Span = StepSpan(context, run.root_context, step, run, time_ns, target)
            target.processor.on_start(cast(Any, span), parent_context=run.context)
            run.steps[span_id] = span
            run.step_contexts[span_id] = context
            return span
        parent = run.context
        if step.parent_span_id != step.execution.span_id:
            outer = run.steps.get(step.parent_span_id)
            parent = (
                set_span_in_context(outer, parent)
                if outer is not None
                else _parent_context(step.execution.trace_id, step.parent_span_id)
            )
        span = self._start(
            step.name,
            span_id,
            run.trace_id,
            parent,
            SpanKind.INTERNAL,
            step_attributes(run.attributes, step),
            run.links_to(step.links),
            time_ns,
        )
        run.steps[span_id] = span
        if self.target is not None:
            run.step_contexts[span_id] = span.get_span_context()
        return span

    def _start_attempt(
        self, run: ExecutionSpans, step: StepRef, span: trace.Span, attempt: int, time_ns: int
    ) -> trace.Span:
        return self._start(
            semconv.attempt_span_name(step.name, attempt),
            attempt_span_id(step.span_id, attempt),
            run.trace_id,
            set_span_in_context(span, run.context),
            SpanKind.INTERNAL,
            attempt_attributes(run.attributes, step, attempt),
            (),
            time_ns,
        )

    def _start(
        self,
        name: str,
        span_id: str,
        trace_id: int,
        parent: Context,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: Sequence[Link],
        start_time: int,
    ) -> trace.Span:
        if self.target is None:
            return NonRecordingSpan(SpanContext(trace_id, int(span_id, 16), False, SAMPLED))
        return start_span(self.target, name, span_id, trace_id, parent, kind, attributes, links, start_time)

    def __call__(self, event: Event) -> None:
        """End spans, and add to them what steps report."""
        kind = type(event)
        if kind is StepFinished:
            self._finish_step(cast(StepFinished, event))
        elif kind is StepRetrying:
            self._finish_attempt(cast(StepRetrying, event))
        elif kind is StepSkipped:
            self._skip(cast(StepSkipped, event))
        elif kind is ExecutionFinished:
            self._finish_run(cast(ExecutionFinished, event))
        elif isinstance(event, StepCost | StepMeasured | StepLogged):
            self._report(event)

    def _finish_step(self, event: StepFinished) -> None:
        step = event.step
        is_folded = step.folded_as is not None
        run = self._run(step.execution)
        span = run.steps.pop(step.span_id, None)
        if span is None:
            # It started in a process that died, or its start was dropped: it is built now, as it would have been.
            span = self._start_step(run, step, event.started_ns)
            run.steps.pop(step.span_id, None)
        attempt = run.attempts.pop((step.span_id, event.attempt), None) if run.attempts else None
        if event.attempt > 1 and not event.between_attempts:
            if attempt is None:
                attempt = self._start_attempt(run, step, span, event.attempt, event.attempt_started_ns)
            status = attempt_state_attributes(event.status, event.resources)
            _end(run, attempt, event.time_ns, status, event.failure, is_folded=is_folded)
        wait_ns = event.dependency_ns + event.unaccounted_ns + event.scheduled_ns + event.queue_ns + event.backoff_ns
        attributes = step_state_attributes(event.status, event.attempt, wait_ns, resources=event.resources)
        if run.costs:
            attributes.update(run.costs.pop(step.step_id, {}))
        _end(run, span, event.time_ns, attributes, event.failure, is_folded=is_folded)
        if is_folded:
            # What links to it finds the ids in the reference.
            run.step_contexts.pop(step.span_id, None)
        self._forget_reported(step.execution, run)

    def _finish_attempt(self, event: StepRetrying) -> None:
        step = event.step
        run = self._run(step.execution)
        attempt = run.attempts.pop((step.span_id, event.attempt), None)
        if attempt is None:
            # The first attempt had no span of its own until it turned out not to be the last.
            span = run.steps.get(step.span_id) or self._start_step(run, step, event.started_ns)
            attempt = self._start_attempt(run, step, span, event.attempt, event.started_ns)
        status = attempt_state_attributes(event.status, event.resources)
        _end(run, attempt, event.time_ns, status, event.failure, is_folded=step.folded_as is not None)
        if step.execution.origin is Origin.REPORTED and run.root_context.is_remote:
            # The next attempt may be in another process. If it is in this one, the step's span is built at its end.
            run.steps.pop(step.span_id, None)
            self._forget_reported(step.execution, run)

    def _skip(self, event: StepSkipped) -> None:
        run = self._run(event.step.execution)
        span = self._start_step(run, event.step, event.time_ns)
        run.steps.pop(event.step.span_id, None)
        attributes = step_state_attributes(StepStatus.SKIPPED, 0, skip_reason=event.reason.value)
        _end(run, span, event.time_ns, attributes, None)
        self._forget_reported(event.step.execution, run)

    def _forget_reported(self, ref: ExecutionRef, run: ExecutionSpans) -> None:
        """Forget an execution that another process began, and may end, once nothing of it is open here."""
        if ref.origin is Origin.REPORTED and run.root_context.is_remote and not run.steps and not run.attempts:
            self._runs.pop(ref.execution_id, None)

    def _finish_run(self, event: ExecutionFinished) -> None:
        ref = event.execution
        run = self._runs.pop(ref.execution_id, None)
        if run is None or (event.status is ExecutionStatus.LOST and not run.root.is_recording()):
            run = self._begin_run(ref, event.started_ns)
            self._runs.pop(ref.execution_id, None)
        _end(run, run.root, event.time_ns, execution_state_attributes(event.status), event.failure)
        self.ended.grown(ref.execution_id, len(run.ended))

    def _report(self, event: StepCost | StepMeasured | StepLogged) -> None:
        step = event.step
        run = self._runs.get(step.execution.execution_id)
        span = run.steps.get(step.span_id) if run is not None else None
        if run is None or span is None:
            return  # It came after the step's end.
        if isinstance(event, StepCost):
            costs = run.costs.setdefault(step.step_id, {})
            add_cost(costs, event.usd, event.tokens_in, event.tokens_out, event.model)
        elif isinstance(event, StepMeasured):
            measure = measure_attributes(event.name, event.value, event.unit)
            span.add_event(semconv.MEASURE_EVENT, measure, event.time_ns)
        else:
            span.add_event(semconv.LOG_EVENT, log_attributes(event.level, event.message), event.time_ns)

    def is_sampled(self, trace_id: str) -> bool:
        """Whether spans of a trace are kept: True unless the sampler dropped its root here."""
        return trace_id not in self._unsampled

    def flush(self, timeout_seconds: float) -> bool:
        """Export the spans that have ended. False if that failed or took longer than allowed."""
        flush = getattr(self.target.provider, "force_flush", None) if self.target is not None else None
        if flush is None:
            return True
        # Not every exporter keeps the SDK's own time-out (a collector that accepts and never answers).
        result: list[bool] = []
        worker = threading.Thread(target=lambda: result.append(bool(flush(int(timeout_seconds * 1000)))), daemon=True)
        worker.start()
        worker.join(timeout_seconds)
        return bool(result and result[0])


def _end(
    run: ExecutionSpans,
    span: trace.Span,
    end_time: int,
    attributes: Mapping[str, Any],
    failure: Failure | None,
    *,
    is_folded: bool = False,
) -> None:
    """End a span and note how it ended, unless its step is folded: there is no bound to those."""
    _close(span, end_time, attributes, failure)
    if is_folded:
        return
    if isinstance(span, LiveSpan):
        run.ended.add(span)
    else:
        # A sampler dropped it, or another process has it.
        run.ended.is_whole = False


def _close(span: trace.Span, end_time: int, attributes: Mapping[str, Any], failure: Failure | None) -> None:
    if isinstance(span, LiveSpan):
        span.close(end_time, attributes, failure)
    elif span.is_recording():
        span.set_attributes(attributes)
        if failure is not None:
            span.set_attribute(semconv.ERROR_TYPE, failure.type)
            span.add_event(semconv.EXCEPTION_EVENT, exception_attributes(failure), end_time)
            span.set_status(Status(StatusCode.ERROR, failure.message))
        span.end(end_time)


def _parent_context(trace_id: str, span_id: str) -> Context:
    """The context whose current span has these ids: the calling one, if it has that span."""
    current = trace.get_current_span().get_span_context()
    span = int(span_id, 16)
    if current.span_id == span and current.trace_id == int(trace_id, 16):
        return otel_context.get_current()
    return set_span_in_context(NonRecordingSpan(SpanContext(int(trace_id, 16), span, True, SAMPLED)), Context())
