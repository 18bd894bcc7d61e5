"""Where spans go: what a tracer provider offers beyond the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, TraceFlags
from opentelemetry.util.types import Attributes

from tachograph.spans import semconv

SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
MAX_OWN_ATTRIBUTES: Final = 32
"""No span has more attributes than this, but for those that handlers, samplers and processors add."""


class SpanTarget:
    """A provider's tracer, and its sampler, processor, span limits and resource where it has them.

    An SDK provider has them. Any other kind only has `start_span`; its spans get ids of their own instead of those in
    the timeline.
    """

    def __init__(self, provider: trace.TracerProvider) -> None:
        self.tracer = provider.get_tracer(semconv.SCOPE)
        self.provider = provider
        self.is_native = hasattr(self.tracer, "span_processor") and hasattr(self.tracer, "sampler")
        self.processor: SpanProcessor = getattr(self.tracer, "span_processor", SpanProcessor())
        self.sampler: Sampler = getattr(self.tracer, "sampler", ALWAYS_OFF)
        self.limits: SpanLimits = getattr(self.tracer, "_span_limits", None) or SpanLimits()
        count = self.limits.max_span_attributes
        # Whether our own attributes may exceed the limits; otherwise a plain dict does until somebody else adds some.
        self.limits_own_attributes = (
            count is not None and count < MAX_OWN_ATTRIBUTES
        ) or self.limits.max_span_attribute_length is not None
        # Such a sampler samples the children of a sampled span, so it is not asked again for every step.
        description = self.sampler.get_description()
        self.keeps_children = type(self.sampler) is ParentBased and "localParentSampled:AlwaysOnSampler" in description
        self.scope = InstrumentationScope(semconv.SCOPE)

    @property
    def resource(self) -> Resource:
        """The provider's resource; a forked child has another."""
        return cast(Resource, self.tracer.resource)  # type: ignore[attr-defined]

    def span_attributes(self, attributes: Attributes) -> BoundedAttributes:
        """Attributes of a span within the limits; the oldest are dropped and counted. More can be added."""
        limits = self.limits
        return BoundedAttributes(
            limits.max_span_attributes, attributes, immutable=False, max_value_len=limits.max_span_attribute_length
        )

    def event_attributes(self, attributes: Attributes) -> BoundedAttributes:
        """Attributes of a span's event within the limits."""
        limits = self.limits
        return BoundedAttributes(limits.max_event_attributes, attributes, max_value_len=limits.max_attribute_length)

    def link(self, context: trace.SpanContext, attributes: Attributes) -> Link:
        """A link with its attributes within the limits."""
        limits = self.limits
        return Link(
            context,
            BoundedAttributes(limits.max_link_attributes, attributes, max_value_len=limits.max_attribute_length),
        )

    def links(self, links: Sequence[Link]) -> Sequence[Link]:
        """The links within the limit: as they are, or the last of them in a list that counts what was dropped."""
        limit = self.limits.max_links
        return links if limit is None or len(links) <= limit else self.link_list(links)

    def link_list(self, links: Sequence[Link]) -> BoundedList[Any]:
        """The links in a list that takes more, and drops and counts the oldest."""
        return BoundedList.from_seq(self.limits.max_links, links)

    def event_list(self) -> BoundedList[Any]:
        """An empty list for events, that drops and counts the oldest."""
        return BoundedList(self.limits.max_events)
