"""Reading what a report of a run holds."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.version import version
from tachograph_exporter.report_file.contents import MAX_LINES, Contents
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.trace_groups import spans_beside
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes.reading import BACK_SECONDS, read_why
from tachograph_exporter.views.comparison import BASELINE_SECONDS, read_baseline_comparison
from tachograph_exporter.views.expected_end import read_expected_end
from tachograph_exporter.views.logs import LineFilter, read_newest_lines
from tachograph_exporter.views.metrics import read_metrics
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.why import WhyAnswer
from tachograph_exporter.views.schemas.workflows import WorkflowDetail
from tachograph_exporter.views.step_below import MAX_STEPS_BELOW, read_below
from tachograph_exporter.views.timeline import build_timeline
from tachograph_exporter.views.workflows import workflow_detail

_USUAL_SECONDS: Final = 30 * 86_400
"""How far back the durations go that a run's own is drawn among, as on the page."""


def read_contents(connection: Connection, workspace_id: str, execution_id: str, now_ns: int) -> Contents:
    """What is known of a run of a workspace, by its whole id, without what other runs explain.

    Raises `ExecutionNotFound` and `ArchiveError`.
    """
    run = find_run(connection, workspace_id, execution_id)
    lines, are_older = read_newest_lines(connection, workspace_id, run, LineFilter(), MAX_LINES)
    workflow_id = run.execution.workflow_id
    since_ns = now_ns - _USUAL_SECONDS * NS
    metrics = read_metrics(connection, workspace_id, workflow_id, since_ns, None, now_ns, with_steps=False)
    expected = read_expected_end(connection, run.execution, run.steps, now_ns)
    traces = spans_beside(connection, workspace_id, run.execution.trace_id)
    timeline = build_timeline(run, now_ns=now_ns, expected=expected, traces=traces)
    if len(run.steps) <= MAX_STEPS_BELOW:
        entries = {entry.step_id: entry for entry in timeline.step_timeline}
        for step_id, below in read_below(connection, workspace_id, run, run.steps).items():
            if step_id in entries:
                entries[step_id].below = below
    return Contents(
        made_at=rfc3339(now_ns), version=version(),
        timeline=timeline,
        comparison=None, why=None, metrics=metrics, definition=_definition(connection, workspace_id, run),
        lines=lines, are_older_lines=are_older, omitted=[],
    )  # fmt: skip


def _definition(connection: Connection, workspace_id: str, run: StoredRun) -> WorkflowDetail | None:
    if run.execution.finished_ns is not None:
        return None
    row = definition_rows.find_definition(connection, workspace_id, run.execution.workflow_id)
    return workflow_detail(row) if row is not None else None


def read_comparison(connection: Connection, workspace_id: str, execution_id: str) -> ExecutionComparison:
    """How a run compares with usual ones. Raises as `read_contents` does."""
    run = find_run(connection, workspace_id, execution_id)
    return read_baseline_comparison(connection, workspace_id, run, BASELINE_SECONDS * NS)


def read_reasons(connection: Connection, workspace_id: str, execution_id: str, now_ns: int) -> WhyAnswer:
    """Why a run was slow or failed. Raises as `read_contents` does."""
    return read_why(connection, workspace_id, execution_id, BACK_SECONDS * NS, now_ns)


def read_all(connection: Connection, workspace_id: str, execution_id: str, now_ns: int) -> Contents:
    """Everything that a report of a run holds, of one moment. Raises as `read_contents` does."""
    contents = read_contents(connection, workspace_id, execution_id, now_ns)
    contents.comparison = read_comparison(connection, workspace_id, execution_id)
    contents.why = read_reasons(connection, workspace_id, execution_id, now_ns)
    return contents
