"""Where spans go: what a tracer provider offers beyond the API."""

from __future__ import annotations

from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceFlags

from tachograph.spans import semconv

SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


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
