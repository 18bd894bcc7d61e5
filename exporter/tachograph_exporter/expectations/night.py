"""The night at one look: every run of a window, what was expected and did not come, and who waited for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph_exporter.expectations.evaluation import evaluate
from tachograph_exporter.expectations.expected_starts import Known, expected_starts
from tachograph_exporter.expectations.findings import OVERDUE, STUCK
from tachograph_exporter.expectations.history import History
from tachograph_exporter.expectations.reading import Expected, read_history
from tachograph_exporter.expectations.relations import read_relations
from tachograph_exporter.expectations.schedules import EARLY_SECONDS
from tachograph_exporter.expectations.views import workflow_places
from tachograph_exporter.store import facts
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.windows import executions_within
from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.expected_end import UNKNOWN, read_expected_ends
from tachograph_exporter.views.schemas.night import Night, NightRun, NightStart, NightWorkflow

MAX_RUNS: Final = 5_000
"""So many of the newest runs of a window are read."""
_EARLY_NS: Final = round(EARLY_SECONDS * NS)


def read_night(
    connection: Connection, workspace_id: str, own_workspace_id: str, window_ns: tuple[int, int], now_ns: int
) -> Night:
    """All workflows of a workspace that ran in a window, or were expected to; those with what is missing first."""
    expectations, places = workflow_places(connection, workspace_id, own_workspace_id)
    # A start shortly before the window may be the first that is expected in it.
    rows, whole_since_ns = executions_within(
        connection, workspace_id, (window_ns[0] - _EARLY_NS, window_ns[1]), MAX_RUNS
    )
    by_workflow: dict[str, list[Row[Any]]] = {}
    for row in rows:
        by_workflow.setdefault(row.workflow_id, []).append(row)
    running = facts.open_executions(connection)
    shown = [row for row in rows if row.finished_ns is None or row.finished_ns >= window_ns[0]]
    ends = read_expected_ends(connection, shown, now_ns)
    shown_ids = {row.execution_id for row in shown}
    is_whole = whole_since_ns is None
    workflows = []
    for name, key in places:
        expected = expectations.of(workspace_id, name)
        mine = by_workflow.get(key[1], []) if key is not None else []
        starts, are_all = _starts(connection, expected, key, running, mine, (window_ns, whole_since_ns), now_ns)
        runs = [row for row in mine if row.execution_id in shown_ids]
        is_whole = is_whole and are_all
        if not runs and not starts:
            continue
        workflows.append(
            NightWorkflow(
                workflow=name,
                workflow_id=key[1] if key is not None else None,
                missing=sum(start.state == "missing" for start in starts),
                failed=sum(row.status in ("failed", "timeout", "lost") for row in runs),
                running=sum(row.finished_ns is None for row in runs),
                expected=starts,
                runs=[_run(row, ends.get(row.execution_id, UNKNOWN).end_ns) for row in runs],
            )
        )
    workflows.sort(key=_rank)
    edges, are_all = read_relations(connection, workspace_id, shown)
    return Night(
        start=rfc3339(window_ns[0]),
        end=rfc3339(window_ns[1]),
        now=rfc3339(now_ns),
        workflows=workflows,
        edges=edges,
        is_complete=is_whole and are_all,
    )


def _rank(entry: NightWorkflow) -> tuple[int, int, bool, str, str]:
    first = min([start.at for start in entry.expected[:1]] + [run.started_at or "" for run in entry.runs[:1]])
    return (-entry.missing, -entry.failed, not entry.running, first, entry.workflow)


def _starts(
    connection: Connection,
    expected: Expected,
    key: Key | None,
    running: dict[Key, list[Row[Any]]],
    rows: Sequence[Row[Any]],
    window: tuple[tuple[int, int], int | None],
    now_ns: int,
) -> tuple[list[NightStart], bool]:
    limits, (window_ns, whole_since_ns) = expected.limits, window
    if limits.schedule is None or limits.is_paused:
        return [], True
    runs: dict[str, int] = {row.execution_id: row.started_ns for row in rows if row.started_ns is not None}
    hung: list[tuple[int, int]] = []
    since_ns = whole_since_ns or 0
    history = History()
    if key is not None:
        history = read_history(connection, key, limits, running.get(key, ()), now_ns, hours=False)
    evaluation = evaluate(limits, history, window_ns[0], now_ns, known_ns=expected.known_ns)
    if evaluation.schedule is None:
        return [], True
    if history.runs and key is not None:
        runs |= {run.execution_id: run.started_ns for run in history.runs}
        hanging = {finding.execution_id for finding in evaluation.findings if finding.kind in (OVERDUE, STUCK)}
        hung = [(run.started_ns, run.finished_ns or now_ns) for run in history.runs if run.execution_id in hanging]
        if len(history.runs) >= facts.NEWEST and not since_ns:
            # The starts since then are known, and those of the window.
            since_ns = min(window_ns[0] - _EARLY_NS, history.runs[0].started_ns)
        if history.runs[0].started_ns > window_ns[1]:
            # What was due shortly before the end of the window may have started after it.
            runs |= facts.first_start_since(connection, key, window_ns[1])
    known = Known(sorted(runs.values()), since_ns, hung)
    return expected_starts(evaluation.schedule, limits, window_ns, known, now_ns, expected.known_ns)


def _run(row: Row[Any], expected_end_ns: int | None) -> NightRun:
    return NightRun(
        execution_id=row.execution_id,
        status=row.status,
        started_at=rfc3339_or_none(row.started_ns),
        completed_at=rfc3339_or_none(row.finished_ns),
        expected_end_at=rfc3339_or_none(expected_end_ns),
        parent_execution_id=row.parent_execution_id,
    )
