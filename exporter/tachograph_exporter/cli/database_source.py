"""A database as a `Source`."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.identity import workspace_id
from tachograph_exporter.cli.common import fail
from tachograph_exporter.cli.sources import LogQuery
from tachograph_exporter.expectations.views import read_workflow_expectation
from tachograph_exporter.reading.asking import POLL_SECONDS, Asking
from tachograph_exporter.reading.connection_reader import ConnectionReader
from tachograph_exporter.reading.queries import FailureQuery, RunQuery
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list, locking
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.failure_groups import backfill
from tachograph_exporter.store.failure_groups.reading import Range
from tachograph_exporter.store.removal import remove_workflow
from tachograph_exporter.store.rollups import read as read_rollups
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.views.executions import execution_stats
from tachograph_exporter.views.failures import WINDOW_SECONDS, change_failure, read_failure
from tachograph_exporter.views.logs import SEVERITIES, LineFilter, read_newest_lines
from tachograph_exporter.views.metrics import read_metrics
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.executions import ExecutionStats, WorkflowExecutionResponse
from tachograph_exporter.views.schemas.expectations import WorkflowExpectation
from tachograph_exporter.views.schemas.failures import FailureGroupDetail, FailurePage
from tachograph_exporter.views.schemas.logs import LogEntry
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.night import Night
from tachograph_exporter.views.schemas.stacks import ExecutionStacks
from tachograph_exporter.views.schemas.timeline import SpansBelow, WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.schemas.why import WhyAnswer
from tachograph_exporter.views.schemas.workflows import WorkflowDetail, WorkflowSummary
from tachograph_exporter.views.stacks import Request, read_stacks
from tachograph_exporter.views.step_below import read_below
from tachograph_exporter.views.workflows import workflow_detail, workflow_list

if TYPE_CHECKING:
    pass

T = TypeVar("T")

_ALL = 1_000_000
_RECENT_NS = 86_400 * NS
_GROUPING_SECONDS = 20.0


class DatabaseSource:
    """Reads a workspace of a database."""

    url: str | None = None

    def __init__(self, database: Database, workspace: str) -> None:
        self._database = database
        self._slug = workspace
        self._workspace = workspace_id(workspace)
        self.name = database.name if workspace == "default" else f'workspace "{workspace}" of {database.name}'

    def runs(self, query: RunQuery, limit: int) -> tuple[list[WorkflowExecutionResponse], int]:
        """See `Source`."""
        return self._ask(lambda reader: reader.runs(query, limit))

    def timeline(self, execution_id: str) -> WorkflowExecutionTimeline | None:
        """See `Source`."""
        return self._ask(lambda reader: reader.timeline(execution_id))

    def logs(self, execution_id: str, query: LogQuery, limit: int) -> tuple[list[LogEntry], bool]:
        """See `Source`."""
        choice = LineFilter(
            names=frozenset({query.step} if query.step is not None else ()),
            severity=SEVERITIES[query.level] if query.level is not None else 0,
            text=query.text or "",
            attempt=query.attempt,
        )

        def read(connection: Connection) -> tuple[list[LogEntry], bool]:
            run = find_run(connection, self._workspace, execution_id)
            return read_newest_lines(connection, self._workspace, run, choice, limit)

        return self._database.look(read)

    def below(self, execution_id: str) -> dict[str, list[SpansBelow]]:
        """See `Source`."""

        def read(connection: Connection) -> dict[str, list[SpansBelow]]:
            run = find_run(connection, self._workspace, execution_id)
            return read_below(connection, self._workspace, run, run.steps)

        return self._database.look(read)

    def report(self, execution_id: str) -> bytes:
        """See `Source`."""
        # Only this command makes documents.
        from tachograph_exporter.report_file import reading
        from tachograph_exporter.report_file.document import document

        now_ns = time.time_ns()
        return document(self._database.look(lambda c: reading.read_all(c, self._workspace, execution_id, now_ns)))

    def failures(self, query: FailureQuery, limit: int) -> FailurePage | None:
        """See `Source`."""
        self._group_failures()
        return self._ask(lambda reader: reader.failures(query, limit))

    def failure(self, group_id: str, from_ns: int | None, limit: int) -> FailureGroupDetail | None:
        """See `Source`."""
        return self._ask(lambda reader: reader.failure(group_id, from_ns, limit))

    def change_failure(self, group_id: str, action: str, note: str) -> FailureGroupDetail | None:
        """See `Source`. It is noted which user of this machine did so."""
        now = time.time_ns()
        within = Range(self._workspace, now + 1 - WINDOW_SECONDS * NS, now + 1)
        try:
            by = getpass.getuser()
        except (OSError, KeyError, ImportError):
            by = ""

        def save(connection: Connection) -> FailureGroupDetail | None:
            locking.lock(connection)
            if not change_failure(connection, self._workspace, group_id, action, by, note, now):
                return None
            return read_failure(connection, within, group_id, now)

        return self._database.run(save)

    def _ask(self, question: Callable[[ConnectionReader], T]) -> T:
        now = time.time_ns()
        # Files of expectations belong to a service; what the API and code say is in the database.
        own = workspace_id("default")
        return self._database.look(lambda c: question(ConnectionReader(c, self._workspace, own, now)))

    def _group_failures(self) -> None:
        """Group what failed before an upgrade, for a moment: no service may ever run on this database."""
        until = time.monotonic() + _GROUPING_SECONDS
        if not self._database.look(backfill.is_complete):
            while self._database.run(backfill.group_some) and time.monotonic() < until:
                pass

    def metrics(self, workflow: str, from_ns: int | None, to_ns: int | None) -> WorkflowMetricsSummary | None:
        """See `Source`."""
        now = time.time_ns()
        return self._database.look(lambda c: read_metrics(c, self._workspace, workflow, from_ns, to_ns, now))

    def trends(self, workflow: str, bucket: str, from_ns: int | None, step: str | None) -> WorkflowTrends | None:
        """See `Source`."""
        return self._ask(lambda reader: reader.trends(workflow, bucket, from_ns, step))

    def compare(self, execution_id: str, other: str | None, baseline_ns: int) -> ExecutionComparison:
        """See `Source`."""
        return self._ask(lambda reader: reader.compare(execution_id, other, baseline_ns))

    def why(self, execution_id: str, baseline_ns: int) -> WhyAnswer:
        """See `Source`."""
        return self._ask(lambda reader: reader.why(execution_id, baseline_ns))

    def night(self, from_ns: int, to_ns: int) -> Night:
        """See `Source`."""
        return self._ask(lambda reader: reader.night(from_ns, to_ns))

    def names(self) -> Sequence[str]:
        """See `Source`."""
        return self._ask(lambda reader: reader.names())

    def workflows(self) -> Sequence[WorkflowSummary]:
        """See `Source`."""
        rows, _ = self._database.look(lambda c: definition_rows.definitions(c, self._workspace, None, 0, _ALL))
        return workflow_list(rows, with_definitions=False)

    def workflow(self, name: str) -> WorkflowDetail | None:
        """See `Source`."""
        row = self._database.look(lambda c: definition_rows.find_definition(c, self._workspace, name))
        return workflow_detail(row) if row is not None else None

    def expectation(self, name: str) -> WorkflowExpectation:
        """See `Source`."""
        return self._database.look(lambda c: read_workflow_expectation(c, self._workspace, name))

    def statistics(self) -> ExecutionStats:
        """See `Source`."""

        def read(connection: Connection) -> ExecutionStats:
            workflows, _ = definition_rows.definitions(connection, self._workspace, None, 0, _ALL)
            recent = ExecutionFilter(workspace=self._workspace, from_ns=time.time_ns() - _RECENT_NS)
            return execution_stats(
                read_rollups.totals(connection, self._workspace),
                execution_rows.open_by_workflow(connection, self._workspace),
                {row.id: row.name for row in workflows},
                execution_list.count_executions(connection, recent),
                0,
            )

        return self._database.look(read)

    def delete_workflow(self, name: str) -> None:
        """See `Source`."""

        def delete(connection: Connection) -> int:
            row = definition_rows.find_definition(connection, self._workspace, name)
            return remove_workflow(connection, self._workspace, row.id).total if row is not None else 0

        if open_count := self._database.run(delete):
            fail(f'workflow "{name}" has {open_count} open run(s); nothing was deleted')

    def stacks(self, execution_id: str, names: Collection[str], *, is_asked: bool) -> ExecutionStacks:
        """See `Source`."""
        asking = Asking(self._workspace, execution_id)
        asked: Request | None = None
        if is_asked and self._database.look(asking.is_open):
            self._database.run(asking.ask)
            while not asking.is_done:
                time.sleep(POLL_SECONDS)
                self._database.look(asking.look)
            asked = asking.request
        now = time.time_ns()
        return self._database.look(lambda c: read_stacks(c, self._workspace, execution_id, names, asked, now))

    def cancel(self, execution_id: str) -> NoReturn:
        """A database runs nothing."""
        fail(
            f"a database cannot cancel a run; ask the service that runs {execution_id} with --url, "
            "or interrupt the program"
        )
