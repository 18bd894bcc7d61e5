"""What a report holds: the answers of the API about one run, at one moment."""

from __future__ import annotations

from typing import Final

import msgspec

from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.logs import LogEntry
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.why import WhyAnswer
from tachograph_exporter.views.schemas.workflows import WorkflowDetail

MAX_LINES: Final = 2_000
"""Log lines of a run, the newest ones."""


class Contents(msgspec.Struct, kw_only=True):
    """A run and what is known of it.

    ``made_at`` is when that was. ``address`` is the page of a service that has the run, ``trace_url`` the URL of a
    trace in a viewer with ``{trace_id}`` in it. ``definition`` is there while the run is open, for the steps that it
    has not reached. ``omitted`` says, in sentences, what was left out.
    """

    made_at: str
    version: str
    timeline: WorkflowExecutionTimeline
    comparison: ExecutionComparison | None
    why: WhyAnswer | None
    metrics: WorkflowMetricsSummary | None
    definition: WorkflowDetail | None
    lines: list[LogEntry]
    are_older_lines: bool
    address: str | None = None
    trace_url: str | None = None
    omitted: list[str] = []
