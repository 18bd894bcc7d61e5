"""An overview of a workspace: what failed and why, what is slower than usual, what runs too long, and its workflows."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import overview as rows
from tachograph_exporter.store.failure_groups.reading import group_of_executions
from tachograph_exporter.store.failure_groups.template import template_of
from tachograph_exporter.store.rollups import read as rollups
from tachograph_exporter.store.rollups.periods import DAY, FIVE_MINUTES, floor
from tachograph_exporter.store.totals import Totals, WorkflowTotals
from tachograph_exporter.times import rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.metrics import COMPLETED, MAX_DISTRIBUTION_BUCKETS, failures, success_rate
from tachograph_exporter.views.schemas.executions import ExecutionPage
from tachograph_exporter.views.schemas.metrics import DistributionBucket
from tachograph_exporter.views.schemas.overview import (
    FailingWorkflow,
    FailureGroup,
    LateWorkflow,
    LongRun,
    Overview,
    OverviewWorkflow,
    RunGlance,
    SlowWorkflow,
    UsualDuration,
    WorkflowRow,
    WorkflowRows,
)

USUAL_SECONDS: Final = 30 * DAY
"""How far back it is looked to know what is usual."""
TREND_SECONDS: Final = 7 * DAY
MIN_USUAL: Final = 5
"""Completed executions below which nothing is called unusual."""
MIN_YOUNG: Final = 10
"""Completed executions of the last 7 days from which these are the usual ones, while there are none from before."""
MIN_RATIO: Final = 1.5
"""How much longer than the median an execution takes that is called slow."""
MIN_RATIO_HIGH: Final = 1.2
"""How much longer than the 95th percentile it takes, too; the 75th if nothing is known from before the range."""
MIN_SUSTAINED: Final = 3
MIN_SUSTAINED_RATIO: Final = 1.25
"""A workflow is slower, too, when the median of at least so many is so much above the usual 75th percentile."""
USUAL_SHARE: Final = 0.1
"""Share of slow executions up to which a workflow is not called slower: of 20 usual ones, one is above the 95th."""
MAX_ACTIVE: Final = 200
"""Workflows of which it is read what is usual: the last active ones."""
MAX_WORKFLOWS: Final = 1_000
MAX_LISTED: Final = 50
STRIP: Final = 20


@functools.lru_cache(1024)
def cause_of(message: str | None) -> str:
    """A message without what differs from one failure to the next, as failure groups have it."""
    return template_of(message or "")


def glance(row: Row[Any], now_ns: int) -> RunGlance:
    """An execution at a glance."""
    started = row.started_ns if row.started_ns is not None else row.created_ns
    ended = row.finished_ns if row.finished_ns is not None else now_ns
    return RunGlance(
        execution_id=row.execution_id,
        status=row.status,
        started_at=rfc3339(started),
        completed_at=rfc3339_or_none(row.finished_ns),
        duration_seconds=seconds(max(0, ended - started)),
        error_message=row.error_message,
    )


def failure_groups(
    failed: Mapping[str, Sequence[Row[Any]]],
    newest: Mapping[str, Sequence[Row[Any]]],
    step_names: Mapping[str, str],
    now_ns: int,
    group_ids: Mapping[str, str] = MappingProxyType({}),
) -> list[FailureGroup]:
    """Failures grouped by cause: those that still fail first, then the latest.

    Args:
        failed: failed executions by workflow id, the newest first.
        newest: the newest executions of these workflows, the newest first.
        step_names: the step that failed first, by execution id.
        group_ids: the failure group of what an execution failed with, by its id; others are told apart by message.
    """
    groups: dict[tuple[str, str | None, str], dict[str, list[Row[Any]]]] = {}
    for workflow_id, of_workflow in failed.items():
        for row in of_workflow:
            group_id = group_ids.get(row.execution_id)
            key: tuple[str, str | None, str] = (row.status, None, group_id or "")
            if group_id is None:
                key = (row.status, row.error_type or "", cause_of(row.error_message))
            groups.setdefault(key, {}).setdefault(workflow_id, []).append(row)
    result = []
    for (status, error_type, cause), by_workflow in groups.items():
        workflows = [
            _failing(of_workflow, newest.get(workflow_id, ()), step_names, now_ns)
            for workflow_id, of_workflow in by_workflow.items()
        ]
        workflows.sort(key=lambda workflow: (workflow.state != "failing", workflow.workflow_name))
        all_rows = [row for of_workflow in by_workflow.values() for row in of_workflow]
        last = max(all_rows, key=lambda row: row.finished_ns)
        result.append(
            FailureGroup(
                status=status,
                error_type=last.error_type,
                error_message=last.error_message,
                failure_group=cause if error_type is None else None,
                count=len(all_rows),
                is_failing=workflows[0].state == "failing",
                first_at=rfc3339(min(row.finished_ns for row in all_rows)),
                last_at=rfc3339(last.finished_ns),
                workflows=workflows,
            )
        )
    result.sort(key=lambda group: group.last_at, reverse=True)
    result.sort(key=lambda group: not group.is_failing)
    return result


def _failing(
    failed: Sequence[Row[Any]], newest: Sequence[Row[Any]], step_names: Mapping[str, str], now_ns: int
) -> FailingWorkflow:
    """A workflow's failures of one cause (the newest first), and what came after them."""
    last = max(failed, key=lambda row: row.created_ns)
    later = [row for row in newest if row.created_ns > last.created_ns]
    completed = [row for row in later if row.status == COMPLETED]
    ended = [row for row in later if row.status == COMPLETED or row.status in UNSUCCESSFUL]
    is_recovered = bool(ended) and ended[0].status == COMPLETED
    running = [row for row in later if row.finished_ns is None and row.status not in UNSUCCESSFUL]
    return FailingWorkflow(
        workflow_id=last.workflow_id,
        workflow_name=last.workflow,
        count=len(failed),
        state="recovered" if is_recovered else "failing",
        step_name=step_names.get(last.execution_id),
        last=glance(last, now_ns),
        recovered_by=glance(completed[-1], now_ns) if is_recovered else None,
        running=glance(running[0], now_ns) if running else None,
    )


class Usual:
    """What a workflow usually takes, from its totals before a range and in it."""

    def __init__(self, before: WorkflowTotals | None, lately: WorkflowTotals | None) -> None:
        self.lately = _completed(lately)
        before_it = _completed(before)
        self.all = Totals()
        self.all.add(before_it)
        self.all.add(self.lately)
        is_known = before_it.count >= MIN_USUAL
        reference = before_it if is_known else self.all
        self.count = reference.count
        histogram = reference.histogram()
        self.p50, self.p95 = (histogram.quantile(q) or 0.0 for q in (0.5, 0.95))
        # Among the executions themselves the slow ones must not hide each other.
        p75 = histogram.quantile(0.75) or 0.0
        self._high = self.p95 if is_known else p75
        median = self.lately.histogram().quantile(0.5) or 0.0
        bound = MIN_SUSTAINED_RATIO * p75
        self._sustained = bound if is_known and self.lately.count >= MIN_SUSTAINED and median > bound else None

    @property
    def limit(self) -> float | None:
        """Seconds above which an execution takes longer than usual; None while too few have completed."""
        return max(MIN_RATIO_HIGH * self._high, MIN_RATIO * self.p50) if self.count >= MIN_USUAL and self.p50 else None

    @property
    def slow_limit(self) -> float | None:
        """`limit` for the executions of the range: lower when most of them take longer than before."""
        return self._sustained if self._sustained is not None and self.count >= MIN_USUAL else self.limit

    def count_slow(self) -> int:
        """How many of the range took longer than usual."""
        limit = self.slow_limit
        if limit is None or self.lately.max_ns <= limit * NS:
            return 0
        rank = self.lately.histogram().rank(limit)
        return max(1, round(self.lately.count * (1 - (rank or 0.0))))

    def is_slower(self) -> bool:
        """Whether more executions of the range than usual took longer than usual."""
        return self.count_slow() > USUAL_SHARE * self.lately.count

    def summary(self) -> UsualDuration | None:
        """For display: all completed executions of the last 30 days."""
        if not self.all.count:
            return None
        histogram = self.all.histogram()
        return UsualDuration(
            count=self.all.count,
            p50=histogram.quantile(0.5),
            p95=histogram.quantile(0.95),
            distribution=[DistributionBucket(*bar) for bar in histogram.bars(MAX_DISTRIBUTION_BUCKETS)],
        )


def _completed(totals: WorkflowTotals | None) -> Totals:
    return (totals.executions.get(COMPLETED) if totals is not None else None) or Totals()


def _ratio(row: RunGlance, usual: Usual) -> float:
    return (row.duration_seconds or 0.0) / usual.p50


def read_overview(
    connection: Connection, workspace_id: str, since_ns: int, now_ns: int, runs: ExecutionPage
) -> Overview:
    """The overview of a workspace: of what ended since a time, which is rounded down to five minutes.

    ``runs``: the page of the newest executions.
    """
    since_s = floor(since_ns // NS, FIVE_MINUTES)
    since_ns = since_s * NS
    heads = rollups.heads(connection, workspace_id, MAX_ACTIVE)
    low_ns = floor(since_s - USUAL_SECONDS, DAY) * NS
    before = rollups.totals_of(connection, workspace_id, heads, low_ns, since_ns)
    active = {workflow_id: head for workflow_id, head in heads.items() if head >= since_s}
    lately = rollups.totals_of(connection, workspace_id, active, since_ns)
    usual = {workflow_id: Usual(before.get(workflow_id), lately.get(workflow_id)) for workflow_id in heads}
    counts = {workflow_id: _counts(totals) for workflow_id, totals in lately.items()}
    open_rows = rows.open_runs(connection, workspace_id)
    definitions = definition_rows.names(connection, workspace_id, MAX_WORKFLOWS)
    return Overview(
        at=rfc3339(now_ns),
        since=rfc3339(since_ns),
        failure_count=sum(failures(of_workflow) for of_workflow in counts.values()),
        ended_count=sum(sum(of_workflow.values()) for of_workflow in counts.values()),
        open_count=len(open_rows),
        failures=_read_failures(connection, workspace_id, counts, since_ns, now_ns),
        late=_read_late(connection, workspace_id, {row.name: row.id for row in definitions}),
        slower=_read_slower(connection, workspace_id, usual, since_ns, now_ns),
        running_too_long=running_too_long(open_rows, usual, now_ns),
        workflows=[
            OverviewWorkflow(
                workflow_id=row.id,
                workflow_name=row.name,
                usual=usual[row.id].summary() if row.id in usual else None,
            )
            for row in definitions
        ],
        runs=runs,
    )


def _counts(totals: WorkflowTotals) -> dict[str, int]:
    return {status: of_status.count for status, of_status in totals.executions.items()}


def _read_failures(
    connection: Connection, workspace_id: str, counts: Mapping[str, Mapping[str, int]], since_ns: int, now_ns: int
) -> list[FailureGroup]:
    failing = [workflow_id for workflow_id, of_workflow in counts.items() if failures(of_workflow)]
    failed = rows.failures(connection, workspace_id, failing, since_ns)
    newest = rows.newest(connection, workspace_id, failed, STRIP)
    ids = [row.execution_id for of_workflow in failed.values() for row in of_workflow]
    group_ids = group_of_executions(connection, ids)
    groups = failure_groups(failed, newest, {}, now_ns, group_ids)[:MAX_LISTED]
    # The steps of the executions that are shown alone: a failed run may have thousands.
    shown = [workflow for group in groups for workflow in group.workflows][: 2 * MAX_LISTED]
    step_names = rows.first_failed_steps(connection, [workflow.last.execution_id for workflow in shown])
    for workflow in shown:
        workflow.step_name = step_names.get(workflow.last.execution_id)
    return groups


def _read_late(connection: Connection, workspace_id: str, workflow_ids: Mapping[str, str]) -> list[LateWorkflow]:
    return [
        LateWorkflow(
            workflow_id=workflow_ids.get(row.workflow),
            workflow_name=row.workflow,
            kind=row.kind,
            severity=row.severity,
            text=row.text,
            since=rfc3339(row.opened_ns),
            execution_id=row.execution_id,
        )
        for row in rows.late(connection, workspace_id)
    ]


def _read_slower(
    connection: Connection, workspace_id: str, usual: Mapping[str, Usual], since_ns: int, now_ns: int
) -> list[SlowWorkflow]:
    slower = {workflow_id: of_workflow for workflow_id, of_workflow in usual.items() if of_workflow.is_slower()}
    limits_ns = {workflow_id: round((of_workflow.slow_limit or 0) * NS) for workflow_id, of_workflow in slower.items()}
    result = []
    for workflow_id, slow in rows.longer_than(connection, workspace_id, limits_ns, since_ns, 1).items():
        of_workflow, last = slower[workflow_id], glance(slow[0], now_ns)
        result.append(
            SlowWorkflow(
                workflow_id=workflow_id,
                workflow_name=slow[0].workflow,
                count=of_workflow.count_slow(),
                of=of_workflow.lately.count,
                usual_p50=of_workflow.p50,
                usual_p95=of_workflow.p95,
                ratio=_ratio(last, of_workflow),
                last=last,
            )
        )
    return sorted(result, key=lambda workflow: -workflow.ratio)[:MAX_LISTED]


def running_too_long(open_rows: Iterable[Row[Any]], usual: Mapping[str, Usual], now_ns: int) -> list[LongRun]:
    """The open executions that already take longer than usual, those that exceed it most first."""
    result = []
    for row in open_rows:
        of_workflow = usual.get(row.workflow_id)
        limit = of_workflow.limit if of_workflow is not None else None
        run = glance(row, now_ns)
        if of_workflow is None or limit is None or row.started_ns is None or (run.duration_seconds or 0) <= limit:
            continue
        result.append(
            LongRun(
                workflow_id=row.workflow_id,
                workflow_name=row.workflow,
                usual_p50=of_workflow.p50,
                usual_p95=of_workflow.p95,
                ratio=_ratio(run, of_workflow),
                run=run,
            )
        )
    return sorted(result, key=lambda long: -long.ratio)[:MAX_LISTED]


def read_workflows(connection: Connection, workspace_id: str, now_ns: int) -> WorkflowRows:
    """The workflows of a workspace with their newest executions and what they take."""
    heads = rollups.heads(connection, workspace_id)
    now_s = floor(now_ns // NS, FIVE_MINUTES)
    low_ns, previous_ns = (floor(now_s - weeks * TREND_SECONDS, 3600) * NS for weeks in (1, 2))
    lately = rollups.totals_of(connection, workspace_id, heads, low_ns)
    previous = rollups.totals_of(connection, workspace_id, heads, previous_ns, low_ns)
    ever = rollups.totals_of(connection, workspace_id, heads)
    open_counts: dict[str, int] = {}
    opened: dict[str, int] = {}
    for workflow_id, _, _, count, start_ns in execution_rows.open_by_workflow(connection, workspace_id):
        open_counts[workflow_id] = open_counts.get(workflow_id, 0) + count
        opened[workflow_id] = max(opened.get(workflow_id, 0), (start_ns or now_ns) // NS)
    definitions = definition_rows.names(connection, workspace_id, 100_000)
    active = sorted(definitions, key=lambda row: (-max(heads.get(row.id, 0), opened.get(row.id, 0)), row.name))[
        :MAX_WORKFLOWS
    ]
    strips = rows.newest(connection, workspace_id, [row.id for row in active], STRIP)
    items = [
        _workflow_row(
            row,
            [glance(run, now_ns) for run in reversed(strips.get(row.id, ()))],
            tuple(totals.get(row.id, WorkflowTotals()) for totals in (ever, lately, previous)),
            open_counts.get(row.id, 0),
        )
        for row in active
    ]
    return WorkflowRows(at=rfc3339(now_ns), items=items, total=len(definitions))


def _workflow_row(
    row: Row[Any], strip: list[RunGlance], totals: tuple[WorkflowTotals, ...], open_count: int
) -> WorkflowRow:
    ever, lately, previous = totals
    counts = _counts(lately)
    now, then = _completed(lately), _completed(previous)
    p50, previous_p50 = now.histogram().quantile(0.5), then.histogram().quantile(0.5)
    reference = previous_p50 if then.count >= MIN_USUAL else p50 if now.count >= MIN_YOUNG else None
    newest = [run.duration_seconds or 0.0 for run in strip if run.status == COMPLETED][-MIN_USUAL:]
    return WorkflowRow(
        workflow_id=row.id,
        workflow_name=row.name,
        is_runnable=bool(row.is_runnable),
        total_executions=sum(_counts(ever).values()) + open_count,
        open_executions=open_count,
        recent_executions=sum(counts.values()),
        success_rate=success_rate(counts),
        p50=p50,
        usual_seconds=reference,
        trend=statistics.median(newest) / reference if reference and len(newest) == MIN_USUAL else None,
        last=strip[-1] if strip else None,
        strip=strip,
    )
