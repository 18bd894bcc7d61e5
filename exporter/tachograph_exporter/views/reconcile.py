"""Do the views of one run agree? Compares rows, events, spans and counters, and says where they differ.

They must not: each is made from the same events. A difference is a defect, or a loss that was counted as dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tachograph.critical_path import critical_path, path_lengths
from tachograph.outcomes import Entry, Outcomes
from tachograph.process import identity
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.views.schemas.reconciliation import Difference, Reconciliation


def reconcile(run: StoredRun, outcomes_by_listener: Mapping[str, Outcomes]) -> Reconciliation:
    """Compare a stored run with what each listener of this process noted of it (see `Ledger`).

    A view this process does not have (another process recorded the run, or it is too long ago) is None in ``views``.
    While the run goes on, only steps that have ended are compared.
    """
    execution_id = run.execution.execution_id
    views: dict[str, dict[str, Entry] | None] = {"rows": _rows(run)}
    for name, outcomes in outcomes_by_listener.items():
        views[name] = outcomes.execution(execution_id)
    present = {name: entries for name, entries in views.items() if entries is not None}
    is_open = run.execution.finished_ns is None
    # Of a run that another process began, this one's views hold only what came later.
    is_whole = run.execution.process == identity() and not is_open
    differences: list[Difference] = []
    for step_id in sorted({key for entries in present.values() for key in entries}):
        found = {name: entries.get(step_id) for name, entries in present.items()}
        if is_whole and None in found.values():
            differences.append(Difference(step_id, "presence", {n: e is not None for n, e in found.items()}))
        differences += _differences(step_id, {name: entry for name, entry in found.items() if entry is not None})
    if not is_open:
        differences += _totals(run)
    counts = {name: len(entries) - ("" in entries) if entries is not None else None for name, entries in views.items()}
    return Reconciliation(execution_id=execution_id, agrees=not differences, views=counts, differences=differences)


def _differences(step_id: str, found: Mapping[str, Entry]) -> list[Difference]:
    differences = []
    for field in Entry._fields:
        values = {name: getattr(entry, field) for name, entry in found.items()}
        if len(set(values.values())) > 1:
            differences.append(Difference(step_id, field, values))
    return differences


def _rows(run: StoredRun) -> dict[str, Entry]:
    entries = {}
    for row in run.steps:
        if row.finished_ns is not None:
            duration = row.finished_ns - (row.started_ns if row.started_ns is not None else row.finished_ns)
            entries[row.step_id] = Entry(row.status, row.attempt, duration)
    execution = run.execution
    if execution.finished_ns is not None:
        entries[""] = Entry(
            execution.status, 0, execution.finished_ns - (execution.started_ns or execution.finished_ns)
        )
    return entries


def _totals(run: StoredRun) -> list[Difference]:
    """What the execution's row says of all steps against the steps themselves, and the parts against the whole."""
    execution, differences = run.execution, []
    counted: dict[str, Any] = {
        "step_count": len(run.steps),
        "completed_step_count": sum(row.status == "completed" for row in run.steps),
        "failed_step_count": sum(row.status in ("failed", "timeout") for row in run.steps),
        "skipped_step_count": sum(row.status == "skipped" for row in run.steps),
        "work_ns": sum(row.run_ns or 0 for row in run.steps if row.parent_step_id is None),
        "critical_path_ns": sum(path_lengths(critical_path(run.steps))),
    }
    # A lost execution has no rows for steps it never came to; steps of forked processes are known by their rows only.
    if execution.status == "lost" or len(run.steps) > execution.step_count:
        counted.clear()
    for field, value in counted.items():
        said = getattr(execution, field)
        if said != value:
            differences.append(Difference("", field, {"execution": said, "steps": value}))
    last: dict[str, int] = {}
    for attempt in run.attempts:
        last[attempt.step_id] = max(last.get(attempt.step_id, 0), attempt.attempt)
    for row in run.steps:
        if row.step_id in last and last[row.step_id] != row.attempt:
            values = {"step": row.attempt, "attempts": last[row.step_id]}
            differences.append(Difference(row.step_id, "attempts", values))
    return differences
