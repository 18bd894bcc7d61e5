"""The spans of one execution: a step's span writes out its attributes and links only when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from tachograph.identity import ExecutionRef, StepRef
from tachograph.spans.attributes import execution_attributes, step_attributes
from tachograph.spans.live_span import LiveSpan
from tachograph.spans.target import SAMPLED, SpanTarget


class StepSpan(LiveSpan):
    """A step's span, told by the step itself: its attributes and links are made when somebody looks, or at its end."""

    _made_attributes: Any = None
    _made_links: Any = None

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
        found = self._made_attributes
        if found is None:
            found = self._made_attributes = step_attributes(self._run.base, self._step)
        return found

    @_attributes.setter
    def _attributes(self, attributes: Any) -> None:
        self._made_attributes = attributes

    @property
    def _links(self) -> Any:
        found = self._made_links
        if found is None:
            found = self._made_links = links_to(self._run, self._step.links, self._target.limits.max_links)
        return found

    @_links.setter
    def _links(self, links: Any) -> None:
        self._made_links = links

    def announce(self) -> None:
        """Let the processors know that it began."""
        self._is_announced = True
        self._target.processor.on_start(cast(Any, self), parent_context=self._run.context)


class ExecutionSpans:
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
        self.base = execution_attributes(ref)
        self.steps: dict[str, trace.Span] = {}
        self.attempts: dict[tuple[str, int], trace.Span] = {}
        self.contexts: dict[str, SpanContext] = {}
        self.spent: dict[str, dict[str, Any]] = {}


def links_to(run: ExecutionSpans, span_ids: Sequence[str], limit: int | None) -> Sequence[Link]:
    if not span_ids:
        return ()
    contexts = run.contexts
    links = []
    for span_id in span_ids[: limit or 128]:
        context = contexts.get(span_id)
        if context is None:
            context = SpanContext(run.trace_id, int(span_id, 16), False, SAMPLED)
        links.append(Link(context))
    return links
