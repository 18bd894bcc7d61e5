"""Recording spans with ids and times of our choosing, for the provider's own processors and exporters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AnyValue, Attributes

from tachograph.events import Failure
from tachograph.spans import semconv
from tachograph.spans.attributes import exception_attributes
from tachograph.spans.target import SAMPLED, SpanTarget
from tachograph.summary import failure as summarise_failure

_UNSET: Final = Status(StatusCode.UNSET)


class LiveSpan(trace.Span, ReadableSpan):
    """A recording span with ids and times of our choosing, for the provider's own processors and exporters.

    It keeps the provider's span limits as the SDK's own span does. It costs less, because our own attributes are known
    to be plain values and are not checked again, and because bounded containers are only made once they are needed.
    """

    # What most spans have until they end.
    _kind = SpanKind.INTERNAL
    _events: Any = ()
    _end_time: int | None = None
    _status = _UNSET
    _instrumentation_info = None

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        links: Sequence[Link],
        start_time: int,
        target: SpanTarget,
    ) -> None:
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._attributes: Any = target.span_attributes(attributes) if target.limits_own_attributes else attributes
        self._links: Any = target.links(links)
        self._start_time = start_time
        self._target = target

    @property
    def resource(self) -> Resource:
        return self._target.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._target.scope

    def get_span_context(self) -> SpanContext:
        return cast(SpanContext, self._context)

    def is_recording(self) -> bool:
        return self._end_time is None

    # Handlers and the recorder add to a span from threads of their own. `setdefault` is atomic, so that both get the
    # same container.

    def _bounded_attributes(self) -> BoundedAttributes:
        attributes = self._attributes
        if not isinstance(attributes, BoundedAttributes):
            attributes = self.__dict__.setdefault("_bounded", self._target.span_attributes(attributes))
            self._attributes = attributes
        return cast(BoundedAttributes, attributes)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if self._end_time is None:
            self._bounded_attributes()[key] = value

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if self._end_time is None:
            event = SpanEvent(name, self._target.event_attributes(attributes), timestamp)
            self.__dict__.setdefault("_events", self._target.event_list()).append(event)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        # As the SDK: an invalid context is only linked to when the link says something else.
        if self._end_time is None and (context.is_valid or attributes or context.trace_state):
            links = self._links
            if not isinstance(links, BoundedList):
                links = self._links = self.__dict__.setdefault("_link_list", self._target.link_list(links))
            links.append(self._target.link(context, attributes))

    def update_name(self, name: str) -> None:
        if self._end_time is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        new = status if isinstance(status, Status) else Status(status, description)
        if self._end_time is None and not new.is_unset and self._status.status_code is not StatusCode.OK:
            self._status = new

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        recorded = exception_attributes(summarise_failure(exception))
        self.add_event(semconv.EXCEPTION_EVENT, {**recorded, **(attributes or {})}, timestamp)

    def close(self, end_time: int, attributes: Mapping[str, Any], failure: Failure | None = None) -> None:
        """End the span with what is only known now, and hand it to the provider's processors."""
        if self._end_time is not None:
            return
        all_attributes = self._attributes
        all_attributes.update(attributes)
        if failure is not None:
            all_attributes[semconv.ERROR_TYPE] = failure.type
            self.add_event(semconv.EXCEPTION_EVENT, exception_attributes(failure), end_time)
            self._status = Status(StatusCode.ERROR, failure.message)
        self.end(end_time)

    def outcome(self) -> tuple[int, int, bool, str | None]:
        """Start, end, whether its status is an error, and the status of its execution, step or attempt (if it has it).

        For a span that has ended.
        """
        attributes, status = self._attributes, self._status
        outcome = attributes.get(semconv.STEP_STATUS) or attributes.get(semconv.EXECUTION_STATUS)
        is_error = status is not _UNSET and status.status_code is StatusCode.ERROR
        return self._start_time or 0, self._end_time or 0, is_error, outcome

    def end(self, end_time: int | None = None) -> None:
        if self._end_time is None:
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
    current = trace.get_current_span(parent).get_span_context()
    parent_context = current if current.is_valid else None
    is_extended = False
    if target.keeps_children and parent_context and not current.is_remote and current.trace_flags.sampled:
        context = SpanContext(trace_id, int(span_id, 16), False, SAMPLED, current.trace_state)
    else:
        result = target.sampler.should_sample(parent, trace_id, name, kind, attributes, links)
        flags = SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.get_default()
        context = SpanContext(trace_id, int(span_id, 16), False, flags, result.trace_state)
        if result.decision is Decision.DROP:
            return NonRecordingSpan(context)
        is_extended = bool(result.attributes and len(result.attributes) > len(attributes))
        if is_extended:
            attributes.update(result.attributes or {})
    span = LiveSpan(name, context, parent_context, kind, attributes, links, start_time, target)
    if is_extended:
        span._bounded_attributes()
    target.processor.on_start(cast(Any, span), parent_context=parent)
    return span
