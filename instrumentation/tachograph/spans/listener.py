"""Events as OpenTelemetry spans: one per execution, one per step, and one per attempt where a step retries.

Ids come from the events, where they were fixed before anything ran, so a span is known (and stored, and linkable)
before it ends, and one that its process never ended can be closed later under its real parent. For that, and because
the SDK's own span costs several times as much as all the rest of a recorded step, spans are `LiveSpan`s: they go
through the provider's own sampler, processors and exporters, which see a `ReadableSpan` like any other.

A span begins at once, in the context of the step's task, and is the current span there; its attributes and links are
written out when somebody looks, and it ends on the recorder's lane, so that a span processor that blocks holds up no
step. With *deferred* spans the processors hear of its start there, too, so that nothing of theirs runs in the step's
way. Without a provider to record into, a step still has a current span (not recording, with the real ids), so that
propagation and log correlation work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation import set_span_in_context

from tachograph.clock import NS
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
from tachograph.identity import ExecutionRef, Origin, StepRef, new_span_id
from tachograph.outcomes import Outcomes
from tachograph.spans import semconv
from tachograph.spans.attributes import execution_attributes, step_attributes
from tachograph.spans.live_span import LiveSpan, start_span
from tachograph.spans.step_span import ExecutionSpans, StepSpan, links_to
from tachograph.spans.target import SAMPLED, SpanTarget

log = logging.getLogger(__name__)

UNSAMPLED: Final = 10_000
"""How many dropped traces are remembered."""

# Under which a context has its span.
_SPAN_KEY: Final = next(iter(set_span_in_context(trace.INVALID_SPAN, Context())))


class SpanListener:
    """Turns events into spans.

    Args:
        provider: records and exports them; None: steps get a current span with the real ids that goes nowhere.
        deferred: the provider's processors hear of a step's start when they hear of its end, on the recorder's lane.
            Ids, times, parents and what a handler adds are the same; what a processor's ``on_start`` adds comes later,
            and reads the context of the lane where it asks for the current one.
    """

    handles: Final = frozenset(
        {StepFinished, StepRetrying, StepSkipped, StepCost, StepMeasured, StepLogged, ExecutionFinished}
    )

    origins: Final = frozenset({Origin.RECORDED, Origin.REPORTED})

    def __init__(self, provider: trace.TracerProvider | None, *, deferred: bool = False) -> None:
        self.target = SpanTarget(provider) if provider is not None else None
        self.is_deferred = deferred
        self._keeps_children = self.target is not None and self.target.is_native and self.target.keeps_children
        self.outcomes = Outcomes()
        self._runs: dict[str, ExecutionSpans] = {}
        # Traces the sampler dropped, the newest of them.
        self._unsampled: dict[str, None] = {}

    def begin(self, event: ExecutionStarted | StepStarted) -> None:
        """Begin the span and make it the current one in the context this is called in."""
        if type(event) is StepStarted:
            span = self._begin_step(event)
        else:
            span = self._begin_run(event.execution, event.time_ns).root
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
        run = ExecutionSpans(ref, root, set_span_in_context(root, parent), self._keeps_children)
        self._runs[ref.execution_id] = run
        if not root.get_span_context().trace_flags.sampled:
            self._unsampled[ref.trace_id] = None
            if len(self._unsampled) > UNSAMPLED:
                self._unsampled.pop(next(iter(self._unsampled)))
        return run

    def _run(self, ref: ExecutionRef) -> ExecutionSpans:
        """The execution's spans; when it began in another process, that one's root stands in as a remote parent."""
        run = self._runs.get(ref.execution_id)
        if run is None:
            context = _parent_context(ref.trace_id, ref.span_id)
            run = ExecutionSpans(ref, trace.get_current_span(context), context, self._keeps_children)
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
        if run.is_kept and step.parent_span_id == step.execution.span_id:
            context = SpanContext(run.trace_id, int(span_id, 16), False, SAMPLED, run.state)
            made = StepSpan(context, run.of_root, step, run, time_ns, self.target)  # type: ignore[arg-type]
            if self.is_deferred:
                made._is_announced = False
            else:
                made.announce()
            run.steps[span_id] = made
            run.contexts[span_id] = context
            return made
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
            step.span_id,
            run.trace_id,
            parent,
            SpanKind.INTERNAL,
            step_attributes(run.base, step),
            links_to(run, step.links, self.target.limits.max_links if self.target is not None else 0),
            time_ns,
        )
        run.steps[step.span_id] = span
        if self.target is not None:
            run.contexts[step.span_id] = span.get_span_context()
        return span

    def _start_attempt(
        self, run: ExecutionSpans, step: StepRef, span: trace.Span, attempt: int, time_ns: int
    ) -> trace.Span:
        return self._start(
            semconv.attempt_span_name(step.name, attempt),
            new_span_id(),
            run.trace_id,
            set_span_in_context(span, run.context),
            SpanKind.INTERNAL,
            {
                semconv.EXECUTION_ID: step.execution.execution_id,
                semconv.STEP_NAME: step.name,
                semconv.STEP_ID: step.step_id,
                semconv.STEP_ATTEMPT: attempt,
            },
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
        """End spans, and note on them what is reported meanwhile."""
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
        run = self._run(step.execution)
        span = run.steps.pop(step.span_id, None)
        if span is None:
            # Begun in a process that died, or dropped at the start: made now, as it would have been.
            span = self._start_step(run, step, event.started_ns)
            run.steps.pop(step.span_id, None)
        status = str(event.status)
        why = event.failure
        attempt = run.attempts.pop((step.span_id, event.attempt), None) if run.attempts else None
        if attempt is not None and not event.between_attempts:
            _close(attempt, event.time_ns, {semconv.STEP_STATUS: status}, why)
        attributes = {
            semconv.STEP_ATTEMPT: event.attempt,
            semconv.STEP_STATUS: status,
            semconv.STEP_WAIT: (event.dependency_ns + event.queue_ns + event.backoff_ns) / NS,
            semconv.TASK_RESULT: semconv.STEP_RESULTS[event.status],
        }
        if run.spent:
            attributes.update(run.spent.pop(step.step_id, {}))
        if type(span) is StepSpan:
            span.close(event.time_ns, attributes, why)
        else:
            _close(span, event.time_ns, attributes, why)
        self._note(step.execution, step.step_id, span, semconv.STEP_STATUS)

    def _finish_attempt(self, event: StepRetrying) -> None:
        step = event.step
        run = self._run(step.execution)
        attempt = run.attempts.pop((step.span_id, event.attempt), None)
        if attempt is None:
            # The first attempt had no span of its own until it turned out not to be the last.
            outer = run.steps.get(step.span_id) or self._start_step(run, step, event.started_ns)
            attempt = self._start_attempt(run, step, outer, event.attempt, event.started_ns)
        _close(attempt, event.time_ns, {semconv.STEP_STATUS: str(event.status)}, event.failure)

    def _skip(self, event: StepSkipped) -> None:
        run = self._run(event.step.execution)
        span = self._start_step(run, event.step, event.time_ns)
        run.steps.pop(event.step.span_id, None)
        attributes = {
            semconv.STEP_ATTEMPT: 0,
            semconv.STEP_STATUS: str(StepStatus.SKIPPED),
            semconv.STEP_SKIP_REASON: str(event.reason),
            semconv.TASK_RESULT: semconv.STEP_RESULTS[StepStatus.SKIPPED],
        }
        _close(span, event.time_ns, attributes, None)
        self._note(event.step.execution, event.step.step_id, span, semconv.STEP_STATUS)

    def _finish_run(self, event: ExecutionFinished) -> None:
        ref = event.execution
        run = self._runs.pop(ref.execution_id, None)
        if run is None or (event.status is ExecutionStatus.LOST and not run.root.is_recording()):
            run = self._begin_run(ref, event.started_ns)
            self._runs.pop(ref.execution_id, None)
        attributes = {
            semconv.EXECUTION_STATUS: str(event.status),
            semconv.PIPELINE_RESULT: semconv.EXECUTION_RESULTS[event.status],
        }
        _close(run.root, event.time_ns, attributes, event.failure)
        self._note(ref, "", run.root, semconv.EXECUTION_STATUS)

    def _report(self, event: StepCost | StepMeasured | StepLogged) -> None:
        run = self._run(event.step.execution)
        if isinstance(event, StepCost):
            spent = run.spent.setdefault(event.step.step_id, {})
            if event.tokens_in or event.tokens_out:
                spent[semconv.TOKENS_IN] = spent.get(semconv.TOKENS_IN, 0) + event.tokens_in
                spent[semconv.TOKENS_OUT] = spent.get(semconv.TOKENS_OUT, 0) + event.tokens_out
            if event.usd:
                spent[semconv.COST] = spent.get(semconv.COST, 0.0) + event.usd
            if event.model:
                spent[semconv.MODEL] = event.model
            return
        span = run.steps.get(event.step.span_id)
        if span is None:
            return
        if isinstance(event, StepMeasured):
            span.add_event("measure", {"name": event.name, "value": event.value, "unit": event.unit}, event.time_ns)
        else:
            span.add_event("log", {"level": event.level, "message": event.message}, event.time_ns)

    def _note(self, ref: ExecutionRef, step_id: str, span: trace.Span, status: str) -> None:
        """Remember what the span itself says, once it has ended."""
        if type(span) is StepSpan or type(span) is LiveSpan:
            found = span._attributes
            duration = (span._end_time or 0) - (span._start_time or 0)
            self.outcomes.note(ref.execution_id, step_id, found[status], found.get(semconv.STEP_ATTEMPT, 0), duration)

    def is_sampled(self, trace_id: str) -> bool:
        """Whether spans of a trace are kept: True unless the sampler dropped its root here."""
        return trace_id not in self._unsampled

    def flush(self, timeout_seconds: float) -> bool:
        """Export what has ended. False when that failed or took longer than allowed."""
        flush = getattr(self.target.provider, "force_flush", None) if self.target is not None else None
        if flush is None:
            return True
        import threading

        # The SDK's own time-out is not kept by every exporter (a collector that accepts and never answers).
        result: list[bool] = []
        worker = threading.Thread(target=lambda: result.append(bool(flush(int(timeout_seconds * 1000)))), daemon=True)
        worker.start()
        worker.join(timeout_seconds)
        return bool(result and result[0])


def _close(span: trace.Span, end_time: int, attributes: Mapping[str, Any], why: Failure | None) -> None:
    if isinstance(span, LiveSpan):
        span.close(end_time, attributes, why)
    elif span.is_recording():
        span.set_attributes(attributes)
        if why is not None:
            span.set_attribute(semconv.ERROR_TYPE, why.type)
            span.set_status(Status(StatusCode.ERROR, why.message))
        span.end(end_time)


def _parent_context(trace_id: str, span_id: str) -> Context:
    """The context whose current span has these ids: the one that is current here, if it is that one."""
    current = trace.get_current_span().get_span_context()
    span = int(span_id, 16)
    if current.span_id == span and current.trace_id == int(trace_id, 16):
        return otel_context.get_current()
    return set_span_in_context(NonRecordingSpan(SpanContext(int(trace_id, 16), span, True, SAMPLED)), Context())
