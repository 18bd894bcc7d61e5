"""Reconciliation: compares the rows, events, spans and counters of one execution.

All of them come from the same events, so they must agree. A difference is a defect, or events that were dropped (and
counted as dropped).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tachograph.critical_path import critical_path, path_lengths
from tachograph.outcomes import FOLDED, Entry, Outcomes
from tachograph.process import identity
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import status_counts
from tachograph_exporter.views.schemas.reconciliation import Difference, Reconciliation


def reconcile(run: StoredRun, outcomes_by_listener: Mapping[str, Outcomes]) -> Reconciliation:
    """Compare a stored execution with the outcomes that each listener of this process kept (see `Outcomes`).

    A view is None in ``views`` if this process does not have it: another process recorded the execution, or it was too
    long ago. While the execution is running, only steps that have ended are compared.
    """
    execution_id = run.execution.execution_id
    views: dict[str, dict[str, Entry] | None] = {"rows": _rows(run)}
    for name, outcomes in outcomes_by_listener.items():
        views[name] = outcomes.execution(execution_id)
    present = {name: entries for name, entries in views.items() if entries is not None}
    is_open = run.execution.finished_ns is None
    # If another process started the execution, the views of this one are incomplete.
    is_complete = run.execution.process == identity() and not is_open
    differences: list[Difference] = []
    for step_id in sorted({key for entries in present.values() for key in entries}):
        by_view = {name: entries.get(step_id) for name, entries in present.items()}
        if is_complete and None in by_view.values():
            differences.append(Difference(step_id, "presence", {n: e is not None for n, e in by_view.items()}))
        differences += _differences(step_id, {name: entry for name, entry in by_view.items() if entry is not None})
    if not is_open:
        differences += _totals(run)
    counts = {name: len(entries) - ("" in entries) if entries is not None else None for name, entries in views.items()}
    return Reconciliation(execution_id=execution_id, agrees=not differences, views=counts, differences=differences)


def _differences(step_id: str, by_view: Mapping[str, Entry]) -> list[Difference]:
    differences = []
    for field in Entry._fields:
        values = {name: getattr(entry, field) for name, entry in by_view.items()}
        if len(set(values.values())) > 1:
            differences.append(Difference(step_id, field, values))
    return differences


def _rows(run: StoredRun) -> dict[str, Entry]:
    entries = {}
    for row in run.steps:
        if row.finished_ns is not None:
            if (folded := row.folded) is not None:
                runs = folded.by_status.values()
                attempts = sum(r.count + r.retries for r in runs)
                entries[row.step_id] = Entry(FOLDED, attempts, sum(r.sum_ns for r in runs))
                continue
            duration = row.finished_ns - (row.started_ns if row.started_ns is not None else row.finished_ns)
            entries[row.step_id] = Entry(row.status, row.attempt, duration)
    execution = run.execution
    if execution.finished_ns is not None:
        entries[""] = Entry(
            execution.status, 0, execution.finished_ns - (execution.started_ns or execution.finished_ns)
        )
    return entries


def _totals(run: StoredRun) -> list[Difference]:
    """Differences between the totals in the execution's row and its steps, and between steps and their attempts."""
    execution, differences = run.execution, []
    counts = status_counts(run.steps)
    totals: dict[str, Any] = {
        "step_count": counts.total(),
        "completed_step_count": counts["completed"],
        "failed_step_count": counts["failed"] + counts["timeout"],
        "skipped_step_count": counts["skipped"],
        "work_ns": sum(row.run_ns or 0 for row in run.steps if row.parent_step_id is None),
        "critical_path_ns": sum(path_lengths(critical_path(run.steps))),
    }
    # A lost execution has no rows for steps it never reached; its row does not count the steps of forked processes.
    if execution.status == "lost" or counts.total() > execution.step_count:
        totals.clear()
    for field, value in totals.items():
        stored = getattr(execution, field)
        if stored != value:
            differences.append(Difference("", field, {"execution": stored, "steps": value}))
    last_attempts: dict[str, int] = {}
    for attempt in run.attempts:
        last_attempts[attempt.step_id] = max(last_attempts.get(attempt.step_id, 0), attempt.attempt)
    for row in run.steps:
        if row.step_id in last_attempts and last_attempts[row.step_id] != row.attempt:
            values = {"step": row.attempt, "attempts": last_attempts[row.step_id]}
            differences.append(Difference(row.step_id, "attempts", values))
    return differences
