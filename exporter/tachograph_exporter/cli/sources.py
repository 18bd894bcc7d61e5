"""Where commands read: a database, or a service that has one. The same questions, and the same answers.

`opening.open_source` chooses; a command asks the `Source` and never knows which it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol

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
    from tachograph_exporter.views.schemas.stacks import ExecutionStacks
    from tachograph_exporter.views.schemas.timeline import SpansBelow
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


class LogQuery(NamedTuple):
    """Which lines of a run: of a step (name or id), a level or above, with a text, of an attempt."""

    step: str | None = None
    level: str | None = None
    text: str | None = None
    attempt: int | None = None


class Source(Reader, Protocol):
    """Answers about runs and workflows. Each method prints an error and exits if it has no answer, unless it says so.

    ``name`` is the database or the address, for messages. ``url`` is the address of a service, None of a database.
    """

    url: str | None

    def logs(self, execution_id: str, query: LogQuery, limit: int) -> tuple[list[LogEntry], bool]:
        """(the newest lines of a run that are asked for, in order; whether there are older ones)."""

    def below(self, execution_id: str) -> dict[str, list[SpansBelow]]:
        """What lies below the steps of a run that have spans below them, by step id."""

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

    def stacks(self, execution_id: str, names: Collection[str], *, is_asked: bool) -> ExecutionStacks:
        """What the steps of a run do now (``is_asked``) and were seen doing; only those with these names or ids."""
        ...

    def cancel(self, execution_id: str) -> Any:
        """Cancel a run; what the service answered."""
