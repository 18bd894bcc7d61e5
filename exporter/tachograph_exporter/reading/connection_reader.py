"""A reader of one connection to a database: all its answers are of the same moment."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.errors import ExecutionNotFound, TachographError
from tachograph.events import ExecutionStatus
from tachograph_exporter.expectations.night import read_night
from tachograph_exporter.reading.queries import FailureQuery, RunQuery
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.failure_groups.reading import Range
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.views.causes.reading import read_why
from tachograph_exporter.views.executions import execution_summary
from tachograph_exporter.views.failures import MAX_WINDOW_SECONDS, WINDOW_SECONDS, read_failure, read_failures
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse
from tachograph_exporter.views.schemas.failures import DEFAULT_STATES, FailureGroupDetail, FailurePage
from tachograph_exporter.views.schemas.night import Night
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.schemas.why import WhyAnswer
from tachograph_exporter.views.step_below import read_comparison
from tachograph_exporter.views.timeline import build_timeline
from tachograph_exporter.views.trends import bucket_range, read_trends

_ALL = 1_000_000


class WindowError(TachographError):
    """The window ends before it begins, or is longer than what is read at once."""


class ConnectionReader:
    """Answers of one workspace. See `reader.Reader`.

    ``own_workspace_id`` is the workspace that files of expectations are about, ``now_ns`` the time of every answer.
    Raises `ExecutionNotFound` for a run that the workspace does not have, and `WindowError`.
    """

    name: str = "this workspace"

    def __init__(self, connection: Connection, workspace_id: str, own_workspace_id: str, now_ns: int) -> None:
        self._connection = connection
        self._workspace = workspace_id
        self._own = own_workspace_id
        self._now = now_ns

    def runs(self, query: RunQuery, limit: int) -> tuple[list[WorkflowExecutionResponse], int]:
        """See `Reader`."""
        connection = self._connection
        workflow_id = None
        if query.workflow is not None:
            row = definition_rows.find_definition(connection, self._workspace, query.workflow)
            if row is None:
                return [], 0
            workflow_id = str(row.id)
        selection = ExecutionFilter(
            workspace=self._workspace, workflow_id=workflow_id, error=query.error, id=query.id,
            status=tuple(map(ExecutionStatus, query.statuses)), from_ns=query.from_ns, to_ns=query.to_ns,
        )  # fmt: skip
        rows = execution_list.executions(connection, selection, 0, limit)
        total = len(rows) if len(rows) < limit else execution_list.count_executions(connection, selection)
        return [execution_summary(row, self._now) for row in rows], total

    def timeline(self, execution_id: str) -> WorkflowExecutionTimeline | None:
        """See `Reader`."""
        try:
            run = find_run(self._connection, self._workspace, execution_id)
        except ExecutionNotFound:
            return None
        return build_timeline(run, now_ns=self._now)

    def compare(self, execution_id: str, other: str | None, baseline_ns: int) -> ExecutionComparison:
        """See `Reader`."""
        run = find_run(self._connection, self._workspace, execution_id)
        reference = find_run(self._connection, self._workspace, other) if other is not None else None
        return read_comparison(self._connection, self._workspace, run, reference, baseline_ns)

    def why(self, execution_id: str, baseline_ns: int) -> WhyAnswer:
        """See `Reader`."""
        return read_why(self._connection, self._workspace, execution_id, baseline_ns, self._now)

    def failures(self, query: FailureQuery, limit: int) -> FailurePage | None:
        """See `Reader`."""
        workflow_id = None
        if query.workflow is not None:
            row = definition_rows.find_definition(self._connection, self._workspace, query.workflow)
            if row is None:
                return None
            workflow_id = str(row.id)
        within = self._range(query.from_ns, query.to_ns, workflow_id)
        states = query.states or DEFAULT_STATES
        return read_failures(self._connection, within, self._now, states=states, sort=query.sort, limit=limit)

    def failure(self, group_id: str, from_ns: int | None, limit: int) -> FailureGroupDetail | None:
        """See `Reader`."""
        return read_failure(self._connection, self._range(from_ns, None), group_id, self._now, limit=limit)

    def trends(self, workflow: str, bucket: str, from_ns: int | None, step: str | None) -> WorkflowTrends | None:
        """See `Reader`."""
        low_s, high_s = bucket_range(bucket, from_ns, self._now)
        row = definition_rows.find_definition(self._connection, self._workspace, workflow)
        if row is None:
            return None
        return read_trends(self._connection, (row.workspace_id, row.id), row, bucket, low_s, high_s, step)

    def night(self, from_ns: int, to_ns: int) -> Night:
        """See `Reader`."""
        return read_night(self._connection, self._workspace, self._own, (from_ns, to_ns), self._now)

    def names(self) -> Sequence[str]:
        """See `Reader`."""
        rows, _ = definition_rows.definitions(self._connection, self._workspace, None, 0, _ALL)
        return [row.name for row in rows]

    def _range(self, from_ns: int | None, to_ns: int | None, workflow_id: str | None = None) -> Range:
        high = to_ns if to_ns is not None else self._now + 1
        low = from_ns if from_ns is not None else high - WINDOW_SECONDS * NS
        if not 0 < high - low <= MAX_WINDOW_SECONDS * NS + NS:
            raise WindowError("the window ends before it begins, or is longer than 90 days")
        return Range(self._workspace, low, high, workflow_id)
