"""Recording spans with ids and times of our choosing, for the provider's own processors and exporters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AnyValue, Attributes

from tachograph.events import (
    Failure,
)
from tachograph.spans import semconv
from tachograph.spans.target import SAMPLED, SpanTarget

_UNSET: Final = Status(StatusCode.UNSET)


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


def start_span(
    target: SpanTarget,
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
    if not target.is_native:
        return target.tracer.start_span(name, parent, kind, attributes, links, start_time)
    found = trace.get_current_span(parent).get_span_context()
    parent_context = found if found.is_valid else None
    if target.keeps_children and parent_context and not found.is_remote and found.trace_flags.sampled:
        context = SpanContext(trace_id, int(span_id, 16), False, SAMPLED, found.trace_state)
    else:
        result = target.sampler.should_sample(parent, trace_id, name, kind, attributes, links)
        flags = SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.get_default()
        context = SpanContext(trace_id, int(span_id, 16), False, flags, result.trace_state)
        if result.decision is Decision.DROP:
            return NonRecordingSpan(context)
        if result.attributes and len(result.attributes) > len(attributes):
            attributes.update(result.attributes)
    span = LiveSpan(name, context, parent_context, kind, attributes, links, start_time, target)
    target.processor.on_start(cast(Any, span), parent_context=parent)
    return span
