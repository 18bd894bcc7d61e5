"""A timeline as Trace Event Format JSON, which Perfetto, speedscope and chrome://tracing open.

Format: "Trace Event Format" (complete events ``X``, flow events ``s`` and ``f``, metadata ``M``); times are
microseconds. A row of the picture is a thread, so steps that overlap in time are put on different threads. The attempts
of a step that was retried, and the backoff between them, are inside the step. An arrow leads from a step to each that
waited for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Row

from tachograph.events import StepStatus
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import StoredStep, by_step
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry

_PROCESS: Final = 1
_RUN_ROW: Final = 0


class _Slice(NamedTuple):
    """A step in the picture. Times are unix nanoseconds."""

    row: int
    started_ns: int
    ended_ns: int


class _Try(NamedTuple):
    """An attempt. ``ended_ns`` is None while it runs; ``backoff_ns`` is the wait before it."""

    number: int
    status: str
    started_ns: int
    ended_ns: int | None
    backoff_ns: int
    error: str | None


def _tries_of(step: StoredStep, stored: Sequence[Row[Any]]) -> list[_Try]:
    """The attempts that have rows, and the current one (or the last one of a lost step), which has none."""
    tries = [
        _Try(row.attempt, row.status, row.started_ns, row.finished_ns, row.backoff_ns, row.error_type) for row in stored
    ]
    started_ns = step.attempt_started_ns
    is_retrying = step.status == StepStatus.RETRYING
    if started_ns is not None and not is_retrying and all(each.number != step.attempt for each in tries):
        backoff_ns = step.backoff_ns or 0
        tries.append(_Try(step.attempt, step.status, started_ns, step.finished_ns, backoff_ns, step.error_type))
    return tries


def chrome_trace(run: StoredRun, timeline: WorkflowExecutionTimeline, *, now_ns: int) -> dict[str, Any]:
    """The trace of the steps the timeline lists. What has not ended reaches to ``now_ns``, and says so."""
    return _Picture(run, timeline, now_ns).draw()


class _Picture:
    def __init__(self, run: StoredRun, timeline: WorkflowExecutionTimeline, now_ns: int) -> None:
        self._run = run
        self._timeline = timeline
        self._start = run.execution.started_ns or run.execution.created_ns
        finished_ns = run.execution.finished_ns
        self._is_open = finished_ns is None
        self._end = max(now_ns, run.execution.last_seen_ns) if finished_ns is None else finished_ns
        self._attempts = by_step(run.attempts)
        self._events: list[dict[str, Any]] = []

    def draw(self) -> dict[str, Any]:
        timeline = self._timeline
        name = f"run {timeline.workflow_name}"
        self._named("process_name", _RUN_ROW, timeline.workflow_name)
        self._named("thread_name", _RUN_ROW, "run")
        details = {"status": timeline.status, **({"open": True} if self._is_open else {})}
        self._complete(_RUN_ROW, name, self._start, max(self._end, self._start), details)
        entries = {entry.step_id: entry for entry in timeline.step_timeline}
        slices: dict[str, _Slice] = {}
        for step, place in self._placed(entries):
            slices[step.step_id] = place
            self._step(step, entries[step.step_id], place)
        for step in self._run.steps:
            if step.step_id in slices:
                self._arrows(step, slices)
        other = {"trace_id": timeline.trace_id, "execution_id": timeline.execution_id}
        return {"traceEvents": self._events, "displayTimeUnit": "ms", "otherData": other}

    def _placed(self, entries: Mapping[str, WorkflowStepTimelineEntry]) -> Iterator[tuple[StoredStep, _Slice]]:
        """The steps that started, each in a row that is free while it runs."""
        steps = sorted(
            (step for step in self._run.steps if step.step_id in entries and step.started_ns is not None),
            key=lambda step: (step.started_ns or 0, -(step.finished_ns or self._end)),
        )
        free: list[tuple[int, int]] = []
        rows = 0
        for step in steps:
            started = step.started_ns or self._start
            ended = max(started, step.finished_ns if step.finished_ns is not None else self._end)
            if free and free[0][0] <= started:
                _, row = heapq.heappop(free)
            else:
                rows += 1
                row = rows
                self._named("thread_name", row, f"steps {row}")
            heapq.heappush(free, (ended, row))
            yield step, _Slice(row, started, ended)

    def _step(self, step: StoredStep, entry: WorkflowStepTimelineEntry, place: _Slice) -> None:
        details: dict[str, Any] = {
            "status": entry.status,
            "attempts": step.attempt,
            "wait_seconds": entry.wait_seconds,
            "on_critical_path": entry.on_critical_path,
            "span_id": entry.span_id,
        }
        if step.finished_ns is None:
            details["open"] = True
        if entry.error_message is not None:
            details["error"] = entry.error_message
        name = entry.step_name
        if entry.folded is not None:
            name += f" ×{entry.folded.count:,} more"
            details["repetitions"] = entry.folded.count
        self._complete(place.row, name, place.started_ns, place.ended_ns, details)
        if entry.folded is None:
            self._tries(step, place)

    def _tries(self, step: StoredStep, place: _Slice) -> None:
        """The attempts of a step that was retried, and the backoff between them; all within the step."""
        tries = _tries_of(step, self._attempts.get(step.step_id, ()))
        if len(tries) < 2 and step.status != StepStatus.RETRYING:
            return
        before: _Try | None = None
        for each in tries:
            if before is not None and before.ended_ns is not None and each.backoff_ns:
                ended = min(before.ended_ns + each.backoff_ns, each.started_ns)
                self._within(place, "backoff", before.ended_ns, ended, {"status": "backoff"})
            details: dict[str, Any] = {"status": each.status, "attempt": each.number}
            if each.error is not None:
                details["error"] = each.error
            if each.ended_ns is None:
                details["open"] = True
            ended = place.ended_ns if each.ended_ns is None else each.ended_ns
            self._within(place, f"{step.name} attempt {each.number}", each.started_ns, ended, details)
            before = each
        if step.status == StepStatus.RETRYING and before is not None and before.ended_ns is not None:
            self._within(place, "backoff", before.ended_ns, place.ended_ns, {"status": "backoff", "open": True})

    def _arrows(self, step: StoredStep, slices: Mapping[str, _Slice]) -> None:
        """From the end of each dependency to the start of the step: a viewer finds the slices by row and time."""
        end = slices[step.step_id]
        for dependency in step.depends_on:
            start = slices.get(dependency)
            if start is None or start.started_ns > end.started_ns:
                continue
            # The last nanosecond of a slice belongs to it, its end no longer does.
            left = max(start.started_ns, min(start.ended_ns - 1, end.started_ns))
            flow = {"cat": "dependency", "name": "dependency", "id": f"{dependency}:{step.step_id}", "pid": _PROCESS}
            self._events.append({"ph": "s", "tid": start.row, "ts": self._us(left), **flow})
            self._events.append({"ph": "f", "bp": "e", "tid": end.row, "ts": self._us(end.started_ns), **flow})

    def _within(self, place: _Slice, name: str, started: int, ended: int, details: dict[str, Any]) -> None:
        """A slice inside another one: viewers nest by time."""
        started = min(max(started, place.started_ns), place.ended_ns)
        ended = min(max(ended, started), place.ended_ns)
        self._complete(place.row, name, started, ended, details)

    def _complete(self, row: int, name: str, started: int, ended: int, details: dict[str, Any]) -> None:
        self._events.append(
            {
                "ph": "X",
                "pid": _PROCESS,
                "tid": row,
                "name": name,
                "cat": details["status"],
                "ts": self._us(started),
                "dur": (ended - started) / 1000,
                "args": details,
            }
        )

    def _named(self, what: str, row: int, name: str) -> None:
        self._events.append({"ph": "M", "pid": _PROCESS, "tid": row, "name": what, "args": {"name": name}})

    def _us(self, time_ns: int) -> float:
        microseconds: float = (time_ns - self._start) / 1000
        return microseconds
