"""A step's span, which writes its attributes and links only when they are read."""

from __future__ import annotations

from typing import Any

from opentelemetry.trace import SpanContext

from tachograph.identity import StepRef
from tachograph.spans.attributes import step_attributes
from tachograph.spans.execution_spans import ExecutionSpans
from tachograph.spans.live_span import LiveSpan
from tachograph.spans.target import SpanTarget


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
