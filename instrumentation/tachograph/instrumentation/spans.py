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
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.propagate import inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.util.types import AnyValue, Attributes

from tachograph.events import (
    NS,
    Event,
    ExecutionFinished,
    ExecutionRef,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepCost,
    StepFinished,
    StepLogged,
    StepMeasured,
    StepRef,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
    new_span_id,
)
from tachograph.instrumentation import semconv
from tachograph.instrumentation.ledger import Ledger

log = logging.getLogger(__name__)

UNSAMPLED: Final = 10_000
"""How many dropped traces are remembered."""

# Under which a context has its span.
_SPAN_KEY: Final = next(iter(set_span_in_context(trace.INVALID_SPAN, Context())))
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)


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


class LiveSpan(trace.Span, ReadableSpan):
    """A recording span with ids and times of our choosing, for the provider's own processors and exporters.

    It costs less than the SDK's because values that are known to be plain are not checked again one by one, and
    because locks and bounded containers are made when somebody outside adds to the span, not before.
    """

    # What most spans have until they end.
    _kind = SpanKind.INTERNAL
    _events: Any = ()
    _end_time: int | None = None
    _status = _UNSET
    _instrumentation_info = None
    _is_announced = True

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: Sequence[Link],
        start_time: int,
        target: SpanTarget,
    ) -> None:
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._attributes: Any = attributes
        self._links: Any = links
        self._start_time = start_time
        self._target = target

    @property
    def resource(self) -> Resource:
        """See `ReadableSpan`; so for the next one."""
        return self._target.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._target.scope

    def get_span_context(self) -> SpanContext:
        """See `opentelemetry.trace.Span`; so for the methods below."""
        return cast(SpanContext, self._context)

    def is_recording(self) -> bool:
        return self._end_time is None

    def _bounded(self) -> BoundedAttributes:
        found = self._attributes
        if not isinstance(found, BoundedAttributes):
            limits = self._target.limits
            found = self._attributes = BoundedAttributes(
                limits.max_span_attributes,
                found,
                immutable=False,
                max_value_len=limits.max_span_attribute_length,
            )
        return found

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if self._end_time is None:
            self._bounded()[key] = value

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if self._end_time is None and len(self._events) < (self._target.limits.max_events or 128):
            limits = self._target.limits
            bounded = BoundedAttributes(
                limits.max_event_attributes, attributes, max_value_len=limits.max_attribute_length
            )
            self._events = (*self._events, SpanEvent(name, bounded, timestamp))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        if self._end_time is None:
            self._links = (*self._links, Link(context, attributes))

    def update_name(self, name: str) -> None:
        if self._end_time is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if self._end_time is None and self._status.status_code is not StatusCode.OK:
            self._status = status if isinstance(status, Status) else Status(status, description)

    def announce(self) -> None:
        """Let the processors know that it began, where they were not told at once."""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        from tachograph.summary import failure

        self._record(failure(exception), timestamp, attributes)

    def _record(self, why: Failure, timestamp: int | None, more: Attributes = None) -> None:
        found: dict[str, AnyValue] = {"exception.type": why.type, "exception.message": why.message}
        if why.stack is not None:
            found["exception.stacktrace"] = why.stack
        self.add_event("exception", {**found, **(more or {})}, timestamp)

    def close(self, end_time: int, attributes: Mapping[str, Any], why: Failure | None = None) -> None:
        """End the span with what is known only now, and hand it to the provider's processors."""
        if self._end_time is not None:
            return
        if not self._is_announced:
            self.announce()
        known = self._attributes
        known.update(attributes)
        if why is not None:
            known[semconv.ERROR_TYPE] = why.type
            self._record(why, end_time)
            self._status = Status(StatusCode.ERROR, why.message)
        self.end(end_time)

    def end(self, end_time: int | None = None) -> None:
        if self._end_time is None:
            import time

            self._end_time = time.time_ns() if end_time is None else end_time
            self._target.processor.on_end(self)


class StepSpan(LiveSpan):
    """A step's span, told by the step itself: its attributes and links are made when somebody looks, or at its end."""

    _made_attributes: Any = None
    _made_links: Any = None

    def __init__(
        self, context: SpanContext, parent: SpanContext, step: StepRef, run: _Run, start_time: int, target: SpanTarget
    ) -> None:
        self._name = step.name
        self._context = context
        self._parent = parent
        self._step = step
        self._run = run
        self._start_time = start_time
        self._target = target

    @property
    def _attributes(self) -> Any:
        found = self._made_attributes
        if found is None:
            found = self._made_attributes = _step_attributes(self._run, self._step)
        return found

    @_attributes.setter
    def _attributes(self, attributes: Any) -> None:
        self._made_attributes = attributes

    @property
    def _links(self) -> Any:
        found = self._made_links
        if found is None:
            found = self._made_links = _links_of(self._run, self._step.links, self._target.limits.max_links)
        return found

    @_links.setter
    def _links(self, links: Any) -> None:
        self._made_links = links

    def announce(self) -> None:
        """Let the processors know that it began."""
        self._is_announced = True
        self._target.processor.on_start(cast(Any, self), parent_context=self._run.context)


class SpanTarget:
    """Where spans go: what a provider's tracer offers beyond the API, or nothing of it.

    An SDK provider shows its sampler, processor and resource; any other kind only `start_span`, and then its spans have
    ids of its own instead of those in the timeline.
    """

    def __init__(self, provider: trace.TracerProvider) -> None:
        self.tracer = provider.get_tracer(semconv.SCOPE)
        self.provider = provider
        self.is_native = hasattr(self.tracer, "span_processor") and hasattr(self.tracer, "sampler")
        self.processor: SpanProcessor = getattr(self.tracer, "span_processor", SpanProcessor())
        self.sampler: Sampler = getattr(self.tracer, "sampler", ALWAYS_OFF)
        self.limits = SpanLimits()
        # Known from the sampler's own description: then it need not be asked again for every step.
        description = self.sampler.get_description()
        self.keeps_children = type(self.sampler) is ParentBased and "localParentSampled:AlwaysOnSampler" in description
        self.scope = InstrumentationScope(semconv.SCOPE)

    @property
    def resource(self) -> Resource:
        """The provider's resource, as it is now (it changes in a forked child)."""
        found: Resource = self.tracer.resource  # type: ignore[attr-defined]
        return found

    def start(
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
        """A span under ``parent``, sampled and announced as the provider would."""
        if not self.is_native:
            return self.tracer.start_span(name, parent, kind, attributes, links, start_time)
        found = trace.get_current_span(parent).get_span_context()
        parent_context = found if found.is_valid else None
        if self.keeps_children and parent_context and not found.is_remote and found.trace_flags.sampled:
            context = SpanContext(trace_id, int(span_id, 16), False, _SAMPLED, found.trace_state)
        else:
            result = self.sampler.should_sample(parent, trace_id, name, kind, attributes, links)
            flags = _SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.get_default()
            context = SpanContext(trace_id, int(span_id, 16), False, flags, result.trace_state)
            if result.decision is Decision.DROP:
                return NonRecordingSpan(context)
            if result.attributes and len(result.attributes) > len(attributes):
                attributes.update(result.attributes)
        span = LiveSpan(name, context, parent_context, kind, attributes, links, start_time, self)
        self.processor.on_start(cast(Any, span), parent_context=parent)
        return span


class _Run:
    """The open spans of one execution."""

    __slots__ = (
        "attempts", "base", "context", "contexts", "is_kept", "of_root", "root", "spent", "state", "steps", "trace_id",
    )  # fmt: skip

    def __init__(self, ref: ExecutionRef, root: trace.Span, context: Context, keeps_children: bool) -> None:
        self.trace_id = int(ref.trace_id, 16)
        self.root = root
        self.of_root = root.get_span_context()
        self.state = self.of_root.trace_state
        # Its steps' spans are sampled because it is: nobody needs to be asked.
        self.is_kept = keeps_children and self.of_root.trace_flags.sampled and not self.of_root.is_remote
        self.context = context
        self.base = _execution_attributes(ref)
        self.steps: dict[str, trace.Span] = {}
        self.attempts: dict[tuple[str, int], trace.Span] = {}
        self.contexts: dict[str, SpanContext] = {}
        self.spent: dict[str, dict[str, Any]] = {}


def _step_attributes(run: _Run, step: StepRef) -> dict[str, Any]:
    name, step_id = step.name, step.step_id
    return {
        **run.base,
        semconv.STEP_NAME: name,
        semconv.TASK_NAME: name,
        semconv.STEP_ID: step_id,
        semconv.STEP_TYPE: step.step_type,
        semconv.TASK_RUN_ID: f"{step.execution.execution_id}/{step_id}",
    }


def _links_of(run: _Run, span_ids: Sequence[str], limit: int | None) -> Sequence[Link]:
    if not span_ids:
        return ()
    contexts = run.contexts
    links = []
    for span_id in span_ids[: limit or 128]:
        context = contexts.get(span_id)
        if context is None:
            context = SpanContext(run.trace_id, int(span_id, 16), False, _SAMPLED)
        links.append(Link(context))
    return links


def _execution_attributes(ref: ExecutionRef) -> dict[str, Any]:
    return {
        semconv.WORKFLOW_NAME: ref.workflow,
        semconv.WORKFLOW_ID: ref.workflow_id,
        semconv.WORKFLOW_VERSION: ref.version,
        semconv.WORKSPACE: ref.workspace,
        semconv.EXECUTION_ID: ref.execution_id,
        semconv.PIPELINE_NAME: ref.workflow,
        semconv.PIPELINE_RUN_ID: ref.execution_id,
    }


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

    def __init__(self, provider: trace.TracerProvider | None, *, deferred: bool = False) -> None:
        self.target = SpanTarget(provider) if provider is not None else None
        self.is_deferred = deferred
        self._keeps_children = self.target is not None and self.target.is_native and self.target.keeps_children
        self.ledger = Ledger()
        self._runs: dict[str, _Run] = {}
        # Traces the sampler dropped, the newest of them.
        self._unsampled: dict[str, None] = {}

    # --- at once, in the step's own context -------------------------------------------------------------------------

    def begin(self, event: ExecutionStarted | StepStarted) -> None:
        """Begin the span and make it the current one in the context this is called in."""
        if type(event) is StepStarted:
            span = self._begin_step(event)
        else:
            span = self._begin_run(event.execution, event.time_ns).root
        otel_context.attach(Context({**otel_context.get_current(), _SPAN_KEY: span}))

    def _begin_run(self, ref: ExecutionRef, time_ns: int) -> _Run:
        parent = _parent_context(ref.trace_id, ref.parent_span_id) if ref.parent_span_id else Context()
        root = self._start(
            semconv.run_span_name(ref.workflow),
            ref.span_id,
            int(ref.trace_id, 16),
            parent,
            SpanKind.SERVER,
            _execution_attributes(ref),
            (),
            time_ns,
        )
        run = _Run(ref, root, set_span_in_context(root, parent), self._keeps_children)
        self._runs[ref.execution_id] = run
        if not root.get_span_context().trace_flags.sampled:
            self._unsampled[ref.trace_id] = None
            if len(self._unsampled) > UNSAMPLED:
                self._unsampled.pop(next(iter(self._unsampled)))
        return run

    def _run(self, ref: ExecutionRef) -> _Run:
        """The execution's spans; when it began in another process, that one's root stands in as a remote parent."""
        run = self._runs.get(ref.execution_id)
        if run is None:
            context = _parent_context(ref.trace_id, ref.span_id)
            run = _Run(ref, trace.get_current_span(context), context, self._keeps_children)
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

    def _start_step(self, run: _Run, step: StepRef, time_ns: int) -> trace.Span:
        span_id = step.span_id
        if run.is_kept and step.parent_span_id == step.execution.span_id:
            context = SpanContext(run.trace_id, int(span_id, 16), False, _SAMPLED, run.state)
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
            _step_attributes(run, step),
            _links_of(run, step.links, self.target.limits.max_links if self.target is not None else 0),
            time_ns,
        )
        run.steps[step.span_id] = span
        if self.target is not None:
            run.contexts[step.span_id] = span.get_span_context()
        return span

    def _start_attempt(self, run: _Run, step: StepRef, span: trace.Span, attempt: int, time_ns: int) -> trace.Span:
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
            return NonRecordingSpan(SpanContext(trace_id, int(span_id, 16), False, _SAMPLED))
        return self.target.start(name, span_id, trace_id, parent, kind, attributes, links, start_time)

    # --- later, on the lane -----------------------------------------------------------------------------------------

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
            self.ledger.note(ref.execution_id, step_id, found[status], found.get(semconv.STEP_ATTEMPT, 0), duration)

    def is_sampled(self, trace_id: str) -> bool:
        """Whether spans of a trace are kept: True unless the sampler dropped its root here."""
        return trace_id not in self._unsampled

    # --- life -------------------------------------------------------------------------------------------------------

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
    return set_span_in_context(NonRecordingSpan(SpanContext(int(trace_id, 16), span, True, _SAMPLED)), Context())
