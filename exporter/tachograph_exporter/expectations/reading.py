"""Reads what is expected of workflows and what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.events import UNSUCCESSFUL
from tachograph.expectation import Expectation
from tachograph_exporter.expectations.history import WINDOWS, Count, History, Hour, LongStep, Run, RunningStep
from tachograph_exporter.expectations.limits import SOURCES, Limits, combined, limits_of
from tachograph_exporter.store import facts
from tachograph_exporter.store.expectations import ANY, Said
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.totals import Totals, WorkflowTotals

MIN_USUAL: Final = 5
"""So many completed executions say what is usual."""
FORTNIGHT_HOURS: Final = 14 * 24
MAX_STEPS: Final = 100
"""Steps of workflows with more are not compared with what is usual: reading weeks of them takes too long."""

MAX_RECENT: Final = 20
MAX_RECENT_STEPS: Final = 1_000
RECENT_NS: Final = 86_400 * NS
"""Steps that took too long are looked for in so many of the newest executions, of at most so many steps, that are open
or ended within this time."""


class Expected(NamedTuple):
    """What is expected of a workflow (a name), by the places that say so, and since when its schedule is."""

    workspace_id: str
    workflow: str
    said: Mapping[str, Expectation]
    limits: Limits
    known_ns: int

    @property
    def schedule_source(self) -> str | None:
        """The place whose schedule counts: the strongest that says one."""
        places = [source for source, expectation in self.said.items() if expectation.schedule is not None]
        return places[-1] if places else None


class Expectations:
    """What all places say, to look up what holds for a workflow."""

    def __init__(self, said: Iterable[Said]) -> None:
        self._said: dict[tuple[str, str], dict[str, Said]] = {}
        for entry in said:
            self._said.setdefault((entry.workspace_id, entry.workflow), {})[entry.source] = entry

    def of(self, workspace_id: str, workflow: str) -> Expected:
        """What holds for a workflow. What is said for a workspace is stronger than what is said for all."""
        said: dict[str, Said] = {}
        for place in ((ANY, ANY), (ANY, workflow), (workspace_id, workflow)):
            said |= self._said.get(place, {})
        ordered = {source: said[source] for source in SOURCES if source in said}
        by_source = {source: entry.expectation for source, entry in ordered.items()}
        schedules = [entry for entry in ordered.values() if entry.expectation.schedule is not None]
        known = schedules[-1].since_ns if schedules else 0
        return Expected(workspace_id, workflow, by_source, limits_of(combined(by_source)), known)

    def names(self) -> set[tuple[str, str]]:
        """(workspace id or "", workflow) of all that something is said of."""
        return {place for place in self._said if place != (ANY, ANY)}


def read_history(
    connection: Connection,
    key: Key,
    limits: Limits,
    running: Sequence[Row[Any]],
    now_ns: int,
    *,
    hours: bool = True,
    usual_steps: Mapping[str, float] | None = None,
) -> History:
    """What is known of a workflow.

    ``running``: its open executions. ``hours``: with those that say what is usual. ``usual_steps``: how long its steps
    usually take, where that is known already.
    """
    rows = {row.execution_id: row for row in [*facts.newest_executions(connection, key), *running]}
    runs = [
        Run(row.execution_id, row.started_ns, row.finished_ns, row.status)
        for row in rows.values()
        if row.started_ns is not None
    ]
    runs.sort(key=lambda run: (run.started_ns, run.execution_id))
    if not runs and (ended_ns := facts.last_ended_ns(connection, key)) is not None:
        # They have been deleted; so much is known of the last one.
        runs = [Run("", ended_ns, ended_ns, "cancelled")]
    most_steps = max((row.step_count for row in rows.values()), default=0)
    waiting = [row.created_ns for row in running if row.started_ns is None]
    open_ids = [run.execution_id for run in runs if run.finished_ns is None]
    # Reading what is usual of steps takes a while, and no step is past it as long as no execution has run for so long.
    oldest_ns = min((run.started_ns for run in runs if run.finished_ns is None), default=now_ns)
    needs_steps = limits.deadline_seconds is None and now_ns - oldest_ns > limits.stuck_seconds * NS
    needs_steps = needs_steps and usual_steps is None and most_steps <= MAX_STEPS
    totals = WorkflowTotals()
    if open_ids or limits.stale_seconds:
        totals = facts.usual_totals(connection, key, now_ns, steps=needs_steps)
    completed = totals.executions.get("completed")
    if usual_steps is None:
        by_name = ((name, _usual_p95(step.by_status.get("completed"))) for name, step in totals.steps.items())
        usual_steps = {name: p95 for name, p95 in by_name if p95 is not None}
    return History(
        runs=runs,
        steps=[RunningStep(*row) for row in facts.running_steps(connection, open_ids)] if open_ids else (),
        long_steps=_long_steps(connection, limits, list(rows.values()), now_ns),
        waiting_ns=min(waiting, default=None),
        usual_p95_seconds=_usual_p95(completed),
        usual_steps=usual_steps,
        counts=_counts(connection, key, now_ns) if limits.has_target else {},
        hours=_hours(connection, key, now_ns) if hours and most_steps <= MAX_STEPS else (),
        last_success_ns=completed.last_ns if completed is not None else None,
    )


def _usual_p95(completed: Totals | None) -> float | None:
    """The 95th percentile of durations; None if too few are known."""
    return completed.histogram().quantile(0.95) if completed is not None and completed.count >= MIN_USUAL else None


def _long_steps(connection: Connection, limits: Limits, rows: Sequence[Row[Any]], now_ns: int) -> Sequence[LongStep]:
    """The steps that took longer than their deadline, of the newest executions that are open or ended lately."""
    limits_ns = {
        name: round(step.deadline_seconds * NS)
        for name, step in limits.steps.items()
        if step.deadline_seconds is not None
    }
    recent = [
        row
        for row in sorted(rows, key=lambda row: row.created_ns, reverse=True)
        if row.step_count <= MAX_RECENT_STEPS and (row.finished_ns is None or row.finished_ns > now_ns - RECENT_NS)
    ][:MAX_RECENT]
    if not limits_ns or not recent:
        return ()
    ids = [row.execution_id for row in recent]
    steps = facts.long_steps(connection, ids, list(limits_ns), min(limits_ns.values()))
    return [LongStep(*row) for row in steps if row[3] - row[2] > limits_ns[row[1]]]


def _counts(connection: Connection, key: Key, now_ns: int) -> dict[int, Count]:
    """How many executions completed or failed in each of `WINDOWS`, in whole five minutes."""
    buckets = facts.five_minute_totals(connection, key, now_ns, max(WINDOWS))
    counts = {}
    for window in WINDOWS:
        judged = failed = 0
        for start, totals in buckets.items():
            if start * NS > now_ns - window * NS - 300 * NS:
                for status, of_status in totals.executions.items():
                    judged += of_status.count if status == "completed" or status in UNSUCCESSFUL else 0
                    failed += of_status.count if status in UNSUCCESSFUL else 0
        counts[window] = Count(judged, failed)
    return counts


def _hours(connection: Connection, key: Key, now_ns: int) -> list[Hour]:
    hours = []
    for start, totals in sorted(facts.hourly_totals(connection, key, now_ns, FORTNIGHT_HOURS).items()):
        if not totals.executions:
            continue
        cost = sum(of_status.cost_nano_usd for of_status in totals.executions.values()) / NS
        steps = {}
        for name, step in totals.steps.items():
            completed = step.by_status.get("completed")
            if completed is not None and completed.count:
                steps[name] = completed.sum_ns / NS / completed.count
        hours.append(Hour(start, cost, steps))
    return hours
