"""Reconciliation: whether the views of an execution agree."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.process import identity
from tachograph.recording.listener_queue import ListenerQueue
from tachograph.recording.recorder import Recorder
from tachograph.spans.attributes import attempt_span_id
from tachograph.spans.listener import SpanListener
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, RECORDER, WORKERS, Workspace, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.api.scrape import SCRAPER
from tachograph_exporter.ingest.announcements import Announced
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.span_rows import announced_of, of_trace, trace_rows
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.trace_groups import Together
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics
from tachograph_exporter.store import event_log, execution_list
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.deadline import Deadline
from tachograph_exporter.store.event_log import LoggedExecution
from tachograph_exporter.store.execution_list import ExecutionFilter
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.rollups.checking import CountedRow, count_row
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.series.checking import CheckedSeries, check_series
from tachograph_exporter.store.trace_groups import traces_beside
from tachograph_exporter.views.otlp_spans import ended_span
from tachograph_exporter.views.reconcile import Evidence, ExportedSpans, reconcile
from tachograph_exporter.views.schemas.reconciliation import Reconciliation
from tachograph_exporter.views.series_differences import SeriesEvidence, shown_differences

FLUSH_SECONDS: Final = 1.0
"""How long to wait for listeners that are behind, each time."""
MAX_AT_ONCE: Final = 1_000
"""Executions of a workflow that were created in the same nanosecond and are searched for one of them."""
MAX_TRACE_SPANS: Final = 20_000
"""Stored spans of a trace that are read."""
_LAST_NS: Final = (1 << 63) - 1
_EARLIER_NS: Final = 5 * NS
_LATER_NS: Final = 600 * NS
"""How long before an execution was created, and after it ended, its events may have been committed."""
_LOOKS: Final = 5
_REFRESH_SECONDS: Final = 3.0


async def compare_views(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/reconcile``: do all views of the execution agree?"""
    Query(request).done()
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]
    recorder, database = request.app[RECORDER], request.app[DATABASE]
    metrics = request.app[SCRAPER].workflow_metrics
    result = await request.app[WORKERS].run(
        lambda: reconcile_execution(recorder, database, workspace, execution_id, metrics)
    )
    return web.Response(body=msgspec.json.encode(result), content_type="application/json")


def reconcile_execution(
    recorder: Recorder,
    database: Database,
    workspace: Workspace,
    execution_id: str,
    metrics: WorkflowMetrics | None = None,
) -> Reconciliation:
    """Read an execution from the database and from this process's listeners, and compare its views.

    Raises `QueryTimeout` if reading takes longer than the database's ``read_seconds``.

    ``metrics``: what shows the series of the database in this process.
    """
    # What was recorded before the rows are read must be in all views: one that is merely behind does not differ.
    read = functools.partial(_read, workspace_id=workspace.id, execution_id=execution_id)
    behind = _flush(recorder.queues)
    deadline = Deadline(database.read_seconds)
    look = functools.partial(database.look, read, deadline)
    stored = look()
    behind |= _flush(recorder.queues)
    stored, series = _series(stored, metrics, look)
    evidence = Evidence(
        run=stored.run,
        workspace=workspace.slug,
        listed=stored.listed,
        counted=stored.counted,
        logged=stored.logged,
        spans=_spans(recorder, stored, behind),
        series=series,
    )
    return reconcile(evidence, time.time_ns())


def _flush(queues: Mapping[str, ListenerQueue]) -> set[str]:
    """Wait until the listeners have what was recorded so far. Returns the names of those that are still behind."""
    deadline = time.monotonic() + FLUSH_SECONDS
    return {name for name, queue in queues.items() if not queue.flush(max(0.01, deadline - time.monotonic()))}


class _Stored(NamedTuple):
    """What the database has of an execution; a text says why it has not.

    ``arrived``: the spans that came by OTLP. ``is_announced``: listeners have received all that these say.
    ``checked``: the series it is counted in.
    """

    run: StoredRun
    listed: Row[Any] | str
    counted: CountedRow | str
    logged: LoggedExecution | str
    arrived: Sequence[SpanRecord] | str
    is_announced: bool
    workspace_id: str
    checked: CheckedSeries | None = None

    @property
    def is_ingested(self) -> bool:
        return getattr(self.run.execution, "process", None) == INGESTED_PROCESS

    @property
    def is_archived(self) -> bool:
        return hasattr(self.run.execution, "archive")


def _read(connection: Connection, workspace_id: str, execution_id: str) -> _Stored:
    run = find_run(connection, workspace_id, execution_id)
    stored = _Stored(run, _listed(connection, workspace_id, run), "", "", (), True, workspace_id)
    if stored.is_archived:
        reason = "archived"
        return stored._replace(counted="archived: its day is not counted again", logged=reason, arrived=reason)
    execution = run.execution
    arrived: list[SpanRecord] | str = []
    trace_ids = traces_beside(connection, workspace_id, execution.trace_id) if execution.trace_id else []
    rows = trace_rows(connection, workspace_id, trace_ids)
    span_count = sum(row.span_count for row in rows.values())
    if span_count > MAX_TRACE_SPANS:
        arrived = f"its trace has {span_count} spans: too many to compare"
    else:
        by_trace = {i: of_trace(connection, workspace_id, i, is_slim=True) for i in trace_ids}
        arrived = Together(by_trace, BUILT_IN).read(by_trace)
    is_announced = True
    if stored.is_ingested:
        announced = [state for i in trace_ids for state in announced_of(connection, workspace_id, i).values()]
        is_announced = all(state is Announced.EVERYTHING for state in announced)
        is_announced &= not any(row.untold for row in rows.values())
    if execution.finished_ns is None:
        counted: CountedRow | str = "it has not ended"
    else:
        key = (workspace_id, execution.workflow_id)
        counted = count_row(connection, key, execution_id, execution.finished_ns)
    checked = _checked(connection, (workspace_id, execution.workflow_id), execution.execution_id)
    stored = stored._replace(counted=counted, arrived=arrived, is_announced=is_announced, checked=checked)
    return stored._replace(logged=_logged(connection, stored))


def _listed(connection: Connection, workspace_id: str, run: StoredRun) -> Row[Any] | str:
    execution = run.execution
    selection = ExecutionFilter(
        workspace=workspace_id,
        workflow_id=execution.workflow_id,
        from_ns=execution.created_ns,
        # No column holds a later time than the last one.
        to_ns=execution.created_ns + 1 if execution.created_ns < _LAST_NS else None,
    )
    rows = execution_list.executions(connection, selection, 0, MAX_AT_ONCE)
    for row in rows:
        if row.execution_id == execution.execution_id:
            return row
    return "too many executions were created at the same time" if len(rows) == MAX_AT_ONCE else "the list lacks it"


def _logged(connection: Connection, stored: _Stored) -> LoggedExecution | str:
    execution = stored.run.execution
    if not stored.is_announced:
        return "its spans may still change"
    is_open = execution.finished_ns is None
    if is_open and not event_log.has_listeners(connection):
        return "nobody follows the events"
    until = None if is_open or stored.is_ingested else execution.finished_ns + _LATER_NS
    return event_log.of_execution(connection, execution.execution_id, execution.created_ns - _EARLIER_NS, until)


def _spans(recorder: Recorder, stored: _Stored, behind: Collection[str]) -> ExportedSpans | Sequence[SpanRecord] | str:
    if stored.is_archived or isinstance(stored.arrived, str):
        return stored.arrived if isinstance(stored.arrived, str) else "archived"
    if stored.is_ingested:
        return stored.arrived or "its spans were deleted"
    execution = stored.run.execution
    listener = recorder.spans
    if isinstance(listener, SpanListener) and (ended := listener.ended.of(execution.execution_id)) is not None:
        if {"spans", "store"} & set(behind):
            return "a listener is behind"
        if listener.target is None:
            return "no spans are exported"
        if not listener.target.is_native:
            return "the tracer provider gives spans ids of its own"
        if not listener.is_sampled(execution.trace_id):
            return "the sampler dropped its trace"
        if ended.is_cut:
            return "it has too many spans to compare"
        return ExportedSpans(ended.by_id(), ended.is_whole)
    ids = {execution.span_id}
    for step in stored.run.steps:
        ids |= {step.span_id, *(attempt_span_id(step.span_id, number) for number in range(1, step.attempt + 1))}
    arrived = {span.span_id: ended_span(span) for span in stored.arrived if span.span_id in ids}
    return ExportedSpans(arrived, False) if arrived else _not_here(execution)


def _series(
    stored: _Stored, metrics: WorkflowMetrics | None, look: Callable[[], _Stored]
) -> tuple[_Stored, SeriesEvidence | str]:
    """The series beside what is shown of them, and the state that they are of: ``stored``, or a newer one.

    ``look``: reads what is stored.
    """
    if stored.is_archived:
        return stored, "archived: the series keep what was counted"
    if stored.checked is None:
        return stored, "its rows cannot be counted"
    if metrics is None:
        return stored, SeriesEvidence(stored.checked, "nothing here shows the series")
    if not metrics.are_shown and metrics.is_leader:
        # Nobody has scraped it for a while, so it has not looked whether it still shows them.
        metrics.refresh(_REFRESH_SECONDS)
    if not metrics.are_shown:
        return stored, SeriesEvidence(stored.checked, "another service shows the series")
    key = (stored.workspace_id, stored.run.execution.workflow_id)
    # First, whether what is shown is what was read; then whether that is still what is stored.
    shown, remembered, running = metrics.remembered(key)
    before = stored.checked._replace(current=remembered, wrong=[], running=running)
    if any(shown_differences(before, shown)):
        return stored, SeriesEvidence(before, shown)
    # What is shown is read a little later than the rows, and both change all the time: a difference must last.
    checked = stored.checked
    for _ in range(_LOOKS):
        if not metrics.refresh(_REFRESH_SECONDS):
            return stored, SeriesEvidence(checked, "the series could not be read in time to see what is shown of them")
        shown = metrics.shown_of(key)
        if not any(shown_differences(checked, shown)):
            break
        # All of it, since the execution may have changed, too.
        again = look()
        if again.checked is None:
            break
        stored, checked = again, again.checked
    return stored, SeriesEvidence(checked, shown)


def _checked(connection: Connection, key: tuple[str, str], execution_id: str) -> CheckedSeries | None:
    try:
        return check_series(connection, key, execution_id)
    except (KeyError, TypeError, ValueError):
        return None  # A row that nothing here writes, such as a step that ended at no time.


def _not_here(execution: Row[Any]) -> str:
    if getattr(execution, "process", None) in (identity(), INGESTED_PROCESS):
        return "no longer known here: too long ago, or before a restart"
    return "another process recorded it"


ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions/{execution_id}/reconcile", handler=compare_views,
          response=Reconciliation, codes=("archive_unavailable",)),
)  # fmt: skip
