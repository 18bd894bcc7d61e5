"""The spans that ended, as they were handed to the provider's processors, kept of the newest executions."""

from __future__ import annotations

from typing import Final, NamedTuple

from tachograph.spans.live_span import LiveSpan

MAX_SPANS: Final = 50_000
"""Spans that are kept of one execution."""
MAX_SPANS_IN_ALL: Final = 100_000
"""Spans that are kept of all executions that have ended."""


class EndedSpan(NamedTuple):
    """A span as it ended. ``status`` is that of its execution, step or attempt; None if span limits cut it off."""

    start_ns: int
    end_ns: int
    is_error: bool
    status: str | None


class EndedSpans:
    """The ended spans of one execution. ``is_cut``: it has more than `MAX_SPANS`."""

    __slots__ = ("_spans", "is_cut", "is_whole")

    def __init__(self) -> None:
        self.is_whole = self.is_cut = False
        # Plain tuples: creating an `EndedSpan` for each span would cost more than everything else here.
        self._spans: dict[int, tuple[int, int, bool, str | None]] = {}

    def add(self, span: LiveSpan) -> None:
        """Keep a span that has ended."""
        if len(self._spans) < MAX_SPANS:
            self._spans[span.get_span_context().span_id] = span.outcome()
        else:
            self.is_cut = True

    def __len__(self) -> int:
        return len(self._spans)

    def by_id(self) -> dict[str, EndedSpan]:
        """The spans by id, 16 hex digits."""
        return {f"{span_id:016x}": EndedSpan(*span) for span_id, span in self._spans.copy().items()}
