"""What a reader of runs is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tachograph_exporter.reading.queries import FailureQuery, RunQuery

if TYPE_CHECKING:
    from tachograph_exporter.views.schemas.comparison import ExecutionComparison
    from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse
    from tachograph_exporter.views.schemas.failures import FailureGroupDetail, FailurePage
    from tachograph_exporter.views.schemas.night import Night
    from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline
    from tachograph_exporter.views.schemas.trends import WorkflowTrends
    from tachograph_exporter.views.schemas.why import WhyAnswer


class Reader(Protocol):
    """Answers about the runs of one workspace, always with what the API answers.

    ``name`` says where they are, for messages.
    """

    name: str

    def runs(self, query: RunQuery, limit: int) -> tuple[list[WorkflowExecutionResponse], int]:
        """(the newest runs, the number of all). Without such a workflow: none."""

    def timeline(self, execution_id: str) -> WorkflowExecutionTimeline | None:
        """A run by its whole id, or None."""

    def compare(self, execution_id: str, other: str | None, baseline_ns: int) -> ExecutionComparison:
        """A run compared with another one, or with those of its workflow before it. Both are whole ids."""

    def why(self, execution_id: str, baseline_ns: int) -> WhyAnswer:
        """Why a run, by its whole id, was slow or failed, compared with those of its workflow before it."""

    def failures(self, query: FailureQuery, limit: int) -> FailurePage | None:
        """The groups of failures; None without such a workflow."""

    def failure(self, group_id: str, from_ns: int | None, limit: int) -> FailureGroupDetail | None:
        """A group with its newest failures since a time; None without such a group."""

    def trends(self, workflow: str, bucket: str, from_ns: int | None, step: str | None) -> WorkflowTrends | None:
        """A workflow's trends until now; None without such a workflow."""

    def night(self, from_ns: int, to_ns: int) -> Night:
        """All workflows of a window: what ran, and what was expected and did not come."""

    def names(self) -> Sequence[str]:
        """The names of all workflows."""
