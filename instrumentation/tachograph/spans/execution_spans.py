"""The open spans of one execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from tachograph.identity import ExecutionRef
from tachograph.spans.attributes import execution_attributes
from tachograph.spans.ended_spans import EndedSpans
from tachograph.spans.target import SAMPLED


class ExecutionSpans:
    """The open spans of one execution."""

    __slots__ = (
        "attempts", "attributes", "context", "costs", "ended", "keeps_steps", "root", "root_context", "step_contexts",
        "steps", "trace_id", "trace_state",
    )  # fmt: skip

    def __init__(
        self, ref: ExecutionRef, root: trace.Span, context: Context, keeps_children: bool, ended: EndedSpans
    ) -> None:
        self.trace_id = int(ref.trace_id, 16)
        self.ended = ended
        self.root = root
        self.root_context = root.get_span_context()
        self.trace_state = self.root_context.trace_state
        # The steps' spans are sampled because the root is; the sampler need not be asked.
        self.keeps_steps = keeps_children and self.root_context.trace_flags.sampled and not self.root_context.is_remote
        self.context = context
        self.attributes = execution_attributes(ref)
        # By span id; attempts by the step's span id and their number; costs by step id.
        self.steps: dict[str, trace.Span] = {}
        self.step_contexts: dict[str, SpanContext] = {}
        self.attempts: dict[tuple[str, int], trace.Span] = {}
        self.costs: dict[str, dict[str, Any]] = {}

    def links_to(self, span_ids: Sequence[str]) -> Sequence[Link]:
        """Links to the spans of steps, in the given order."""
        if not span_ids:
            return ()
        contexts = self.step_contexts
        return [
            Link(contexts.get(span_id) or SpanContext(self.trace_id, int(span_id, 16), False, SAMPLED))
            for span_id in span_ids
        ]
