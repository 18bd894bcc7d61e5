"""Where commands read: a database, or a service that has one. The same questions, and the same answers.

`opening.open_source` chooses; a command asks the `Source` and never knows which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import typer

from tachograph.variables import DATABASE_VARIABLE
from tachograph_exporter.defaults import DEFAULT_DATABASE, DEFAULT_LISTEN, URL_VARIABLE
from tachograph_exporter.reading.reader import Reader

if TYPE_CHECKING:
    from tachograph_exporter.views.schemas.executions import ExecutionStats
    from tachograph_exporter.views.schemas.expectations import WorkflowExpectation
    from tachograph_exporter.views.schemas.failures import FailureGroupDetail
    from tachograph_exporter.views.schemas.logs import LogEntry
    from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
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


class Source(Reader, Protocol):
    """Answers about runs and workflows. Each method prints an error and exits if it has no answer, unless it says so.

    ``name`` is the database or the address, for messages. ``url`` is the address of a service, None of a database.
    """

    url: str | None

    def logs(self, execution_id: str, step: str | None, level: str | None, limit: int) -> tuple[list[LogEntry], bool]:
        """(the newest lines of a run, or of one of its steps, in order; whether there are older ones)."""

    def report(self, execution_id: str) -> bytes:
        """A run, by its whole id, as one HTML file."""
        ...

    def change_failure(self, group_id: str, action: str, note: str) -> FailureGroupDetail | None:
        """Mute, unmute, resolve or reopen a group; None without such a group."""

    def metrics(self, workflow: str, from_ns: int | None, to_ns: int | None) -> WorkflowMetricsSummary | None:
        """A workflow's metrics over the runs that ended in a range; None without such a workflow."""

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
