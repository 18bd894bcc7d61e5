"""The night at one look: every run of a window, and the starts that were expected and did not come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph_exporter.expectations.limits import Limits
from tachograph_exporter.expectations.reading import read_history
from tachograph_exporter.expectations.schedules import EARLY_SECONDS, Learned, Schedule, schedule_of
from tachograph_exporter.expectations.views import workflow_places
from tachograph_exporter.store import facts
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.expected_end import UNKNOWN, read_expected_ends
from tachograph_exporter.views.schemas.expectations import Night, NightRun, NightStart, NightWorkflow

MAX_RUNS: Final = 5_000
"""So many of the newest runs of a window are read."""
MAX_STARTS: Final = 500
"""So many expected starts of a workflow are listed."""


def expected_starts(
    schedule: Schedule, limits: Limits, window_ns: tuple[int, int], starts_ns: Sequence[int], now_ns: int, known_ns: int
) -> Iterator[NightStart]:
    """The times of a window at which a workflow was due, each with what became of it.

    A start belongs to the last time before it. ``starts_ns`` are the workflow's, oldest first.
    """
    low, high = max(window_ns[0], known_ns), window_ns[1]
    grace = limits.grace_seconds
    early = EARLY_SECONDS
    if isinstance(schedule, Learned):
        grace = max(grace, schedule.spread_seconds if limits.has_grace else schedule.grace_seconds)
        early = max(early, schedule.spread_seconds)
    due = schedule.after(low - 1)
    for _ in range(MAX_STARTS):
        if due is None or due >= high:
            return
        following = schedule.after(due)
        gap = following - due if following is not None else 86_400 * NS
        begin = due - min(round(early * NS), gap // 4)
        end = begin + gap
        start = next((s for s in starts_ns if begin <= s < end), None)
        if start is not None:
            state = "late" if start > due + grace * NS else "started"
        elif now_ns <= due + grace * NS:
            state = "due"
        else:
            state = "missing"
        yield NightStart(at=rfc3339(due), state=state, started_at=rfc3339_or_none(start))
        due = following


def read_night(
    connection: Connection, workspace_id: str, own_workspace_id: str, window_ns: tuple[int, int], now_ns: int
) -> Night:
    """All workflows of a workspace that ran in a window, or were expected to; those with what is missing first."""
    expectations, places = workflow_places(connection, workspace_id, own_workspace_id)
    rows = facts.executions_within(connection, workspace_id, window_ns, MAX_RUNS + 1)
    by_workflow: dict[str, list[Row[Any]]] = {}
    for row in rows[:MAX_RUNS]:
        by_workflow.setdefault(row.workflow_id, []).append(row)
    running = facts.open_executions(connection)
    ends = read_expected_ends(connection, rows[:MAX_RUNS], now_ns)
    workflows = []
    for name, key in places:
        expected = expectations.of(workspace_id, name)
        runs = by_workflow.get(key[1], []) if key is not None else []
        starts = _starts(connection, expected.limits, key, running, window_ns, now_ns, expected.known_ns)
        if not runs and not starts:
            continue
        workflows.append(
            NightWorkflow(
                workflow=name,
                workflow_id=key[1] if key is not None else None,
                missing=sum(start.state == "missing" for start in starts),
                failed=sum(row.status in ("failed", "timeout", "lost") for row in runs),
                expected=starts,
                runs=[_run(row, ends.get(row.execution_id, UNKNOWN).end_ns) for row in runs],
            )
        )
    workflows.sort(key=lambda w: (-w.missing, -w.failed, w.runs[0].started_at or "" if w.runs else "", w.workflow))
    return Night(
        start=rfc3339(window_ns[0]),
        end=rfc3339(window_ns[1]),
        now=rfc3339(now_ns),
        workflows=workflows,
        is_complete=len(rows) <= MAX_RUNS,
    )


def _starts(
    connection: Connection,
    limits: Limits,
    key: Key | None,
    running: dict[Key, list[Row[Any]]],
    window_ns: tuple[int, int],
    now_ns: int,
    known_ns: int,
) -> list[NightStart]:
    if limits.schedule is None or limits.is_paused:
        return []
    starts: list[int] = []
    if key is not None:
        open_rows = running.get(key, ())
        history = read_history(connection, key, limits, open_rows, now_ns, hours=False)
        starts = [run.started_ns for run in history.runs]
    schedule = schedule_of(limits.schedule, limits.timezone, starts)
    if schedule is None:
        return []
    return [*expected_starts(schedule, limits, window_ns, starts, now_ns, known_ns)]


def _run(row: Row[Any], expected_end_ns: int | None) -> NightRun:
    return NightRun(
        execution_id=row.execution_id,
        status=row.status,
        started_at=rfc3339_or_none(row.started_ns),
        completed_at=rfc3339_or_none(row.finished_ns),
        expected_end_at=rfc3339_or_none(expected_end_ns),
        parent_execution_id=row.parent_execution_id,
    )
