"""Where commands read: a database, or a service that has one. The same questions, and the same answers.

`opening.open_source` chooses; a command asks the `Source` and never knows which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol

import typer

from tachograph.variables import DATABASE_VARIABLE
from tachograph_exporter.defaults import DEFAULT_DATABASE, DEFAULT_LISTEN, URL_VARIABLE

if TYPE_CHECKING:
    from tachograph_exporter.views.schemas.comparison import ExecutionComparison
    from tachograph_exporter.views.schemas.executions import ExecutionStats, WorkflowExecutionResponse
    from tachograph_exporter.views.schemas.expectations import WorkflowExpectation
    from tachograph_exporter.views.schemas.failures import FailureGroupDetail, FailurePage
    from tachograph_exporter.views.schemas.logs import LogEntry
    from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
    from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline
    from tachograph_exporter.views.schemas.trends import WorkflowTrends
    from tachograph_exporter.views.schemas.why import WhyAnswer
    from tachograph_exporter.views.schemas.workflows import WorkflowDetail, WorkflowSummary

DEFAULT_URL: Final = f"http://{DEFAULT_LISTEN}"

ReadDatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        help=f"Database URL: sqlite:///FILE or postgresql://… [env: {DATABASE_VARIABLE}] [default: {DEFAULT_DATABASE}]",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help=f"Ask this service instead of a database, with the token in TACHOGRAPH_TOKEN. [env: {URL_VARIABLE}]",
        show_default=False,
    ),
]


class RunQuery(NamedTuple):
    """Which runs: of a workflow (id or name), with one of these statuses, created in a range of unix nanoseconds.

    ``error`` is text in the error's type or message. ``id`` is the beginning or the end of the run's id.
    """

    workflow: str | None = None
    statuses: tuple[str, ...] = ()
    from_ns: int | None = None
    to_ns: int | None = None
    error: str | None = None
    id: str | None = None


class FailureQuery(NamedTuple):
    """Which failure groups: of a workflow (id or name), in a range of unix nanoseconds, in one of these states."""

    workflow: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    states: tuple[str, ...] = ()
    sort: str = "-last_seen"


class Source(Protocol):
    """Answers about runs and workflows. Each method prints an error and exits if it has no answer, unless it says so.

    ``name`` is the database or the address, for messages. ``url`` is the address of a service, None of a database.
    """

    name: str
    url: str | None

    def runs(self, query: RunQuery, limit: int) -> tuple[list[WorkflowExecutionResponse], int]:
        """(the newest runs, the number of all). Without such a workflow: none."""

    def timeline(self, execution_id: str) -> WorkflowExecutionTimeline | None:
        """A run by its whole id, or None."""

    def logs(self, execution_id: str, step: str | None, level: str | None, limit: int) -> tuple[list[LogEntry], bool]:
        """(the newest lines of a run, or of one of its steps, in order; whether there are older ones)."""

    def failures(self, query: FailureQuery, limit: int) -> FailurePage | None:
        """The groups of failures; None without such a workflow."""

    def failure(self, group_id: str, from_ns: int | None, limit: int) -> FailureGroupDetail | None:
        """A group with its newest failures since a time; None without such a group."""

    def change_failure(self, group_id: str, action: str, note: str) -> FailureGroupDetail | None:
        """Mute, unmute, resolve or reopen a group; None without such a group."""

    def metrics(self, workflow: str, from_ns: int | None, to_ns: int | None) -> WorkflowMetricsSummary | None:
        """A workflow's metrics over the runs that ended in a range; None without such a workflow."""

    def trends(self, workflow: str, bucket: str, from_ns: int | None, step: str | None) -> WorkflowTrends | None:
        """A workflow's trends until now; None without such a workflow."""

    def compare(self, execution_id: str, other: str | None, baseline_ns: int) -> ExecutionComparison:
        """A run compared with another one, or with those of its workflow before it. Both are whole ids."""

    def why(self, execution_id: str, baseline_ns: int) -> WhyAnswer:
        """Why a run, by its whole id, was slow or failed, compared with those of its workflow before it."""

    def workflows(self) -> Sequence[WorkflowSummary]:
        """All workflows of the workspace by name, without their definitions."""

    def workflow(self, name: str) -> WorkflowDetail | None:
        """A workflow by name or id, or None."""

    def expectation(self, name: str) -> WorkflowExpectation:
        """What is expected of a workflow, and who says so."""
        ...

    def statistics(self) -> ExecutionStats:
        """The workspace's runs, counted by status and workflow."""

    def delete_workflow(self, name: str) -> None:
        """Delete a workflow with all its runs, unless one of them is open."""

    def cancel(self, execution_id: str) -> Any:
        """Cancel a run; what the service answered."""
