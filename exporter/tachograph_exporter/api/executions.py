"""Executions: list, detail, status, cancel, statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.errors import ExecutionNotFound
from tachograph.events import ExecutionStatus, StepStatus
from tachograph_exporter.api import problems
from tachograph_exporter.api.caching import compress
from tachograph_exporter.api.large_runs import json_of_runs
from tachograph_exporter.api.query import Query, encode_cursor
from tachograph_exporter.api.request import (
    DATABASE,
    EXECUTOR,
    Workspace,
    find_workflow,
    json_response,
    project_of,
    workspace_of,
)
from tachograph_exporter.api.routes import PAGE, Parameter, Route
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.execution_list import ExecutionFilter, Order, Position
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.overview import open_step_counts
from tachograph_exporter.store.rollups import read as read_rollups
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.steps import progress_of
from tachograph_exporter.store.tokens import WRITE
from tachograph_exporter.views.executions import (
    MAX_RESULT_STEPS,
    execution_detail,
    execution_state,
    execution_stats,
    execution_summary,
    large_execution_state,
    page_of_executions,
)
from tachograph_exporter.views.expected_end import (
    UNKNOWN,
    ExpectedEnd,
    read_expected_end,
    read_expected_ends,
    read_large_expected_end,
)
from tachograph_exporter.views.schemas.executions import (
    Cancelling,
    ExecutionPage,
    ExecutionState,
    ExecutionStats,
    WorkflowExecutionDetailedResponse,
)

_RECENT_NS: Final = 24 * 3600 * NS
_STREAM_PAGE: Final = 1_000
"""Rows read at a time for a response in NDJSON."""


async def list_executions(request: web.Request) -> web.StreamResponse:
    """``GET /api/workflows/{workflow_id}/executions``: a workflow's executions, newest first.

    Includes archived executions. With ``format=ndjson`` (or ``Accept: application/x-ndjson``) the response is not one
    page but all matching executions, one JSON object per line.
    """
    query = Query(request)
    return await _list(request, query, await workspace_of(request), request.match_info["workflow_id"])


async def list_all(request: web.Request) -> web.StreamResponse:
    """``GET /api/workflows/executions``: the executions of all workflows of a workspace, newest first.

    Takes the same parameters as the list of one workflow.
    """
    query = Query(request)
    return await _list(request, query, await workspace_of(request), None)


async def _list(request: web.Request, query: Query, workspace: Workspace, workflow: str | None) -> web.StreamResponse:
    """The executions of a workflow (its id or name), or of all of a workspace."""
    skip, limit = query.page()
    sort = query.choice("sort", _SORTS, "-created")
    order = Order(sort.removeprefix("-"), sort.startswith("-"))
    format_name = query.choice("format", ("json", "ndjson"), "json")
    after = query.cursor("after", sort)
    conditions: dict[str, Any] = {
        "status": query.execution_statuses(),
        "from_ns": query.time("from"),
        "to_ns": query.time("to"),
        "min_duration_ns": query.duration("min_duration"),
        "max_duration_ns": query.duration("max_duration"),
        "step": query.text("step"),
        "step_status": tuple(sorted(query.step_statuses("step_status"))),
        "error": query.text("error"),
        "text": query.text("q"),
        "input": query.text("input"),
        "id": query.text("id"),
        "failure": query.text("failure"),
    }
    query.done()
    conditions["project"] = await project_of(request, workspace)

    def selection(connection: Connection) -> ExecutionFilter:
        workflow_id = find_workflow(connection, workspace, workflow).id if workflow is not None else None
        return ExecutionFilter(workspace=workspace.id, workflow_id=workflow_id, **conditions)

    if format_name == "ndjson" or "application/x-ndjson" in request.headers.get("Accept", ""):
        return await _stream(request, selection, order, after)

    return json_response(
        await request.app[DATABASE].read(
            lambda c: read_page(c, selection(c), limit, skip=skip, order=order, after=after)
        )
    )


def read_page(
    connection: Connection,
    selection: ExecutionFilter,
    limit: int,
    *,
    skip: int = 0,
    order: Order = Order(),  # noqa: B008 - immutable
    after: Position | None = None,
) -> ExecutionPage:
    """A page of a list of executions, with the cursor of the next one."""
    # One row more than requested tells whether there is a next page.
    rows = execution_list.executions(connection, selection, skip, limit + 1, order, after)
    # Where the page has all of them, they need not be counted.
    is_all = after is None and len(rows) <= limit and (rows or not skip)
    total = skip + len(rows) if is_all else execution_list.count_executions(connection, selection)
    sort = f"{'-' if order.descending else ''}{order.by}"
    cursor = encode_cursor(sort, _position(rows[limit - 1])) if len(rows) > limit else None
    now_ns = time.time_ns()
    items = page_of_executions(
        rows[:limit],
        open_step_counts(connection, rows[:limit]),
        read_expected_ends(connection, rows[:limit], now_ns),
        now_ns,
    )
    return ExecutionPage(items, total, skip, limit, cursor)


def _position(row: Row[Any]) -> Position:
    return Position(row.sorted_by, row.execution_id)


async def _stream(
    request: web.Request,
    selection: Callable[[Connection], ExecutionFilter],
    order: Order,
    after: Position | None,
) -> web.StreamResponse:
    """All matching executions in NDJSON, read page by page; each page is as the database was when it was read."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    # Compressed data has an end, which a response to HEAD must not have.
    if request.method != "HEAD":
        compress(request, response)
    position = after
    execution_filter: ExecutionFilter | None = None
    while True:

        def read(
            connection: Connection,
            known: ExecutionFilter | None = execution_filter,
            position: Position | None = position,
        ) -> tuple[ExecutionFilter, Sequence[Row[Any]], dict[str, ExpectedEnd]]:
            # The workflow is looked up once: it may be renamed while its executions are read.
            chosen = known if known is not None else selection(connection)
            page = execution_list.executions(connection, chosen, 0, _STREAM_PAGE, order, position)
            return chosen, page, read_expected_ends(connection, page, time.time_ns())

        execution_filter, rows, ends = await request.app[DATABASE].read(read)
        if not response.prepared:
            # Headers go out after the first read, so that its errors can still become problems.
            await response.prepare(request)
        if request.method == "HEAD":
            break
        now = time.time_ns()
        lines = [msgspec.json.encode(execution_summary(row, now, ends.get(row.execution_id, UNKNOWN))) for row in rows]
        if lines:
            await response.write(b"\n".join(lines) + b"\n")
        if len(rows) < _STREAM_PAGE:
            break
        position = _position(rows[-1])
    await response.write_eof()
    return response


async def _response(
    request: web.Request,
    view: Callable[[StoredRun, int, ExpectedEnd], Any],
    view_of_row: Callable[[Connection, Row[Any], int], Any | None] | None = None,
) -> web.Response:
    """A view of the execution in the path, at this time; of its row alone, where that has one.

    Raises `ExecutionNotFound`, `ArchiveError`.
    """
    workspace, execution_id = await workspace_of(request), request.match_info["execution_id"]

    def read(connection: Connection) -> bytes:
        # Built and encoded off the event loop too: ten thousand steps take a while.
        if view_of_row is not None:
            row = execution_rows.execution(connection, workspace.id, execution_id)
            viewed = view_of_row(connection, row, time.time_ns()) if row is not None else None
            if viewed is not None:
                return msgspec.json.encode(viewed)
        run, now_ns = find_run(connection, workspace.id, execution_id), time.time_ns()
        return msgspec.json.encode(view(run, now_ns, read_expected_end(connection, run.execution, run.steps, now_ns)))

    return await json_of_runs(request, workspace.id, read, execution_id)


async def detail(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}``: the execution with its timeline."""
    Query(request).done()
    return await _response(request, execution_detail)


async def status(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/status``: status, progress and running steps."""
    Query(request).done()
    return await _response(request, execution_state, _large_state)


def _large_state(connection: Connection, row: Row[Any], now_ns: int) -> ExecutionState | None:
    """The state of an execution of very many steps, without reading these: whoever waits for its end asks often."""
    if row.step_count <= MAX_RESULT_STEPS:
        return None
    progress = progress_of(connection, row.execution_id)
    if progress.counts.total() <= MAX_RESULT_STEPS:
        return None
    return large_execution_state(row, progress, now_ns, read_large_expected_end(connection, row, now_ns))


async def cancel(request: web.Request) -> web.Response:
    """``POST /api/workflows/executions/{execution_id}/cancel``: cancel it; 409 if it is not running in this process."""
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]
    row = await request.app[DATABASE].read(lambda c: execution_rows.execution(c, workspace.id, execution_id))
    if row is None:
        raise ExecutionNotFound(execution_id)
    executor, reason = request.app[EXECUTOR], "cancelled through the API"
    if not executor.cancel(execution_id, reason) and not await executor.cancel_elsewhere(execution_id, reason):
        raise problems.not_running(execution_id, row.status)
    return json_response(Cancelling(execution_id=execution_id, workflow_id=row.workflow_id), 202)


async def statistics(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/stats``: the workspace's executions, counted by status and workflow."""
    Query(request).done()
    workspace = await workspace_of(request)
    active = request.app[EXECUTOR].open_executions

    def read(connection: Connection) -> ExecutionStats:
        workflows, _ = definition_rows.definitions(connection, workspace.id, None, 0, 100_000)
        recent = ExecutionFilter(workspace=workspace.id, from_ns=time.time_ns() - _RECENT_NS)
        return execution_stats(
            read_rollups.totals(connection, workspace.id),
            execution_rows.open_by_workflow(connection, workspace.id),
            {row.id: row.name for row in workflows},
            execution_list.count_executions(connection, recent),
            active,
        )

    return json_response(await request.app[DATABASE].read(read))


_SORTS: Final = tuple(sign + name for name in execution_list.SORTS for sign in ("-", ""))
_FILTERS: Final = (
    *PAGE,
    Parameter(name="after", description="Cursor: `next` of the previous page. Costs the same for every page."),
    Parameter(name="sort", description="Sort order; a minus sorts in descending order.", choices=_SORTS,
              default="-created"),
    Parameter(name="format", description="`ndjson`: all matching executions, one per line.", choices=("json", "ndjson"),
              default="json"),
    Parameter(
        name="status", kind="texts", description="Only executions with one of these statuses.",
        choices=tuple(ExecutionStatus), example="failed,timeout",
    ),
    Parameter(name="from", kind="time", description="Only executions created at or after this time.", example="24h"),
    Parameter(name="to", kind="time", description="Only executions created before this time."),
    Parameter(name="min_duration", kind="duration", description="Only executions that took at least this long.",
              example="1.5h"),
    Parameter(name="max_duration", kind="duration", description="Only executions that took at most this long."),
    Parameter(name="step", description="Only executions with a step of this name or id."),
    Parameter(
        name="step_status", kind="texts",
        description="Only executions with a step (see `step`) in one of these states.",
        choices=tuple(StepStatus),
    ),
    Parameter(name="error", description="Only executions whose error type or message contains this text."),
    Parameter(name="q", description="Only executions with this text in their id, workflow's name or error.",
              example="01a2291d"),
    Parameter(name="input", description="Only executions with this input: `name=value`, or any text.",
              example="region=eu"),
    Parameter(name="id", description="Only executions whose id begins or ends with this text.", example="8ea96f"),
    Parameter(name="failure", description="Only executions with a failure of this group (its id)."),
)  # fmt: skip

ROUTES: Final = (
    Route(method="GET", path="/api/workflows/executions", handler=list_all, query=_FILTERS, response=ExecutionPage,
          media=("application/x-ndjson",), codes=("project_not_found",)),
    Route(method="GET", path="/api/workflows/executions/stats", handler=statistics, response=ExecutionStats),
    Route(method="GET", path="/api/workflows/executions/{execution_id}", handler=detail,
          response=WorkflowExecutionDetailedResponse, codes=("archive_unavailable",)),
    Route(method="GET", path="/api/workflows/executions/{execution_id}/status", handler=status, response=ExecutionState,
          codes=("archive_unavailable",)),
    Route(method="POST", path="/api/workflows/executions/{execution_id}/cancel", handler=cancel, scope=WRITE,
          response=Cancelling, status=202, codes=("not_cancellable",)),
    Route(method="GET", path="/api/workflows/{workflow_id}/executions", handler=list_executions, query=_FILTERS,
          response=ExecutionPage, media=("application/x-ndjson",), codes=("project_not_found",)),
)  # fmt: skip
