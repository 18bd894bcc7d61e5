"""A timeline as Trace Event Format JSON, which Perfetto, speedscope and chrome://tracing open.

Format: "Trace Event Format" (complete events ``X``, metadata ``M``); times are microseconds. A row of the picture is a
thread, so steps that overlap in time are put on different threads.
"""

from __future__ import annotations

import heapq
from typing import Any

from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline


def chrome_trace(run: StoredRun, timeline: WorkflowExecutionTimeline) -> dict[str, Any]:
    """The trace of the steps the timeline lists. An open step reaches to when the run was last seen."""
    entries = {entry.step_id: entry for entry in timeline.step_timeline}
    start = run.execution.started_ns or run.execution.created_ns
    end = run.execution.finished_ns or run.execution.last_seen_ns
    steps = sorted(
        (step for step in run.steps if step.step_id in entries and step.started_ns is not None),
        key=lambda step: (step.started_ns or 0, -(step.finished_ns or end)),
    )
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": timeline.workflow_name}},
        {"ph": "M", "pid": 1, "tid": 0, "name": "thread_name", "args": {"name": "run"}},
        _complete(0, f"run {timeline.workflow_name}", start, start, max(end, start), {"status": timeline.status}),
    ]
    free: list[tuple[int, int]] = []
    rows = 0
    for step in steps:
        started = step.started_ns or start
        ended = max(started, step.finished_ns if step.finished_ns is not None else end)
        if free and free[0][0] <= started:
            _, row = heapq.heappop(free)
        else:
            rows += 1
            row = rows
            name = {"name": f"steps {row}"}
            events.append({"ph": "M", "pid": 1, "tid": row, "name": "thread_name", "args": name})
        heapq.heappush(free, (ended, row))
        entry = entries[step.step_id]
        details = {
            "status": entry.status,
            "attempts": step.attempt,
            "wait_seconds": entry.wait_seconds,
            "on_critical_path": entry.on_critical_path,
            "span_id": entry.span_id,
        }
        if entry.error_message is not None:
            details["error"] = entry.error_message
        name_shown = entry.step_name
        if entry.folded is not None:
            name_shown += f" ×{entry.folded.count:,} more"
            details["repetitions"] = entry.folded.count
        events.append(_complete(row, name_shown, start, started, ended, details))
    other = {"trace_id": timeline.trace_id, "execution_id": timeline.execution_id}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _complete(row: int, name: str, origin: int, started: int, ended: int, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": 1,
        "tid": row,
        "name": name,
        "cat": details["status"],
        "ts": (started - origin) / 1000,
        "dur": (ended - started) / 1000,
        "args": details,
    }
