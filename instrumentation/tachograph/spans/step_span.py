"""The spans of one execution; a step's span writes its attributes and links only when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from tachograph.identity import ExecutionRef, StepRef
from tachograph.spans.attributes import execution_attributes, step_attributes
from tachograph.spans.live_span import LiveSpan
from tachograph.spans.target import SAMPLED, SpanTarget


class StepSpan(LiveSpan):
    """A step's span. Its attributes and links are written when somebody reads them, at the latest when it ends.

    By then the step is over, so writing them costs its own thread nothing.
    """

    _written_attributes: Any = None
    _written_links: Any = None

    def __init__(
        self,
        context: SpanContext,
        parent: SpanContext,
        step: StepRef,
        run: ExecutionSpans,
        start_time: int,
        target: SpanTarget,
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
        attributes = self._written_attributes
        if attributes is None:
            attributes = step_attributes(self._run.attributes, self._step)
            if self._target.limits_own_attributes:
                attributes = self._target.span_attributes(attributes)
            attributes = self.__dict__.setdefault("_written_attributes", attributes)
        return attributes

    @_attributes.setter
    def _attributes(self, attributes: Any) -> None:
        self._written_attributes = attributes

    @property
    def _links(self) -> Any:
        links = self._written_links
        if links is None:
            links = self._target.links(self._run.links_to(self._step.links))
            links = self.__dict__.setdefault("_written_links", links)
        return links

    @_links.setter
    def _links(self, links: Any) -> None:
        self._written_links = links


class ExecutionSpans:
    """The open spans of one execution."""

    __slots__ = (
        "attempts", "attributes", "context", "costs", "keeps_steps", "root", "root_context", "step_contexts", "steps",
        "trace_id", "trace_state",
    )  # fmt: skip

    def __init__(self, ref: ExecutionRef, root: trace.Span, context: Context, keeps_children: bool) -> None:
        self.trace_id = int(ref.trace_id, 16)
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
