"""Log lines of an execution, and its processes."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from sqlalchemy import Connection

from tachograph_exporter.api.large_runs import json_of_runs
from tachograph_exporter.api.query import Query, encode_cursor
from tachograph_exporter.api.request import workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.ingest.process_metrics import process_of
from tachograph_exporter.ingest.spans import attributes_of
from tachograph_exporter.store import execution_list, process_rows
from tachograph_exporter.store.log_rows import Position
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.trace_groups import traces_beside
from tachograph_exporter.views.logs import SEVERITIES, LineFilter, dropped_count, read_lines, read_newest_lines
from tachograph_exporter.views.processes import build_processes
from tachograph_exporter.views.schemas.logs import LogPage, ProcessPage

_SORT: Final = "time"
_LIMIT: Final = Parameter(
    name="limit", kind="integer", description="Maximum number of lines to return.", default=100, low=1, high=1000
)

_ATTEMPT: Final = Parameter(
    name="attempt", kind="integer", description="Only lines of this attempt of their steps.", low=1, high=(1 << 31) - 1
)
_LAST: Final = Parameter(
    name="last", kind="integer", description="So many lines, the newest; instead of a page.", low=1, high=1000
)


async def logs(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/logs``: log lines, those that steps recorded and those by OTLP.

    In order of time. A line belongs to the step whose span it was written in, or the nearest span above it. A line
    whose span is not known belongs to every execution of its trace, and to no step. Of what an attempt wrote while it
    ran, the last 200 lines are kept.
    """
    query = Query(request)
    choice = LineFilter(
        names=query.texts("step"),
        severity=SEVERITIES[level] if (level := query.choice("level", SEVERITIES, "")) else 0,
        text=query.text("text") or "",
        attempt=query.optional_integer("attempt"),
    )
    after = _position(query.cursor("after", _SORT))
    limit = query.integer("limit", _LIMIT.default, _LIMIT.low or 0, _LIMIT.high or 0)
    last = query.optional_integer("last")
    query.done()
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]

    def read(connection: Connection) -> bytes:
        run = find_run(connection, workspace.id, execution_id)
        dropped = dropped_count(connection, workspace.id, run)
        if last:
            newest, has_older = read_newest_lines(connection, workspace.id, run, choice, last)
            return msgspec.json.encode(LogPage(items=newest, next=None, dropped_count=dropped, has_older=has_older))
        lines = read_lines(connection, workspace.id, run, choice, limit + 1, after)
        end = lines[limit - 1].position if len(lines) > limit else None
        page = LogPage(
            items=[line.entry for line in lines[:limit]],
            next=encode_cursor(_SORT, _encoded(end)) if end is not None else None,
            dropped_count=dropped,
        )
        return msgspec.json.encode(page)

    return await json_of_runs(request, workspace.id, read, execution_id)


def _encoded(position: Position) -> execution_list.Position:
    return execution_list.Position(position.time_ns, f"{position.span_id}/{position.id}")


def _position(cursor: execution_list.Position | None) -> Position | None:
    if cursor is None:
        return None
    span_id, _, key = cursor.execution_id.partition("/")
    return Position(cursor.value, span_id, key)


async def processes(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/processes``: what its processes measured of themselves meanwhile.

    Processes are those whose spans the execution has, or the one that recorded it; their metrics arrive at
    `/v1/metrics`. Of every minute there is the latest, the lowest and the highest value.
    """
    Query(request).done()
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]

    def read(connection: Connection) -> bytes:
        execution = find_run(connection, workspace.id, execution_id).execution
        trace_ids = traces_beside(connection, workspace.id, execution.trace_id)
        resources = [r for i in trace_ids for r in process_rows.resources_of(connection, workspace.id, i)]
        described = [process_of(attributes_of(ResourceSpans.FromString(r).resource.attributes)) for r in resources]
        ids = sorted({process.id for process in described if process is not None})
        host, _, place = (execution.process or "").partition("/")
        pid = place.split("/")[1] if place.count("/") == 2 else ""
        rows = process_rows.of_processes(connection, workspace.id, ids, host, int(pid) if pid.isdecimal() else None)
        start = execution.started_ns if execution.started_ns is not None else execution.created_ns
        end = execution.finished_ns if execution.finished_ns is not None else execution.last_seen_ns
        windows = process_rows.windows_of(connection, workspace.id, [row.process_id for row in rows], start, end)
        return msgspec.json.encode(ProcessPage(build_processes(rows, windows)))

    return await json_of_runs(request, workspace.id, read, execution_id)


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/workflows/executions/{execution_id}/logs",
        handler=logs,
        query=(
            Parameter(name="step", kind="texts", description="Only lines of steps with these names or ids."),
            Parameter(name="level", description="Only lines of this level or above.", choices=tuple(SEVERITIES)),
            Parameter(
                name="text",
                description="Only lines with this text in the message, the exception or the logger's name; case does "
                "not matter.",
            ),
            _ATTEMPT,
            Parameter(name="after", description="`next` of the previous page."),
            _LIMIT,
            _LAST,
        ),
        response=LogPage,
        codes=("archive_unavailable",),
    ),
    Route(
        method="GET",
        path="/api/workflows/executions/{execution_id}/processes",
        handler=processes,
        response=ProcessPage,
        codes=("archive_unavailable",),
    ),
)
