"""Overview of a workspace: response types."""

from __future__ import annotations

import msgspec

from tachograph_exporter.views.schemas.executions import ExecutionPage
from tachograph_exporter.views.schemas.metrics import DistributionBucket


class RunGlance(msgspec.Struct, kw_only=True, gc=False):
    """An execution at a glance. ``duration_seconds`` is its duration so far while it is open."""

    execution_id: str
    status: str
    started_at: str
    completed_at: str | None
    duration_seconds: float | None
    error_message: str | None


class UsualDuration(msgspec.Struct, kw_only=True):
    """What a workflow usually takes: its completed executions of the last 30 days."""

    count: int
    p50: float | None
    p95: float | None
    distribution: list[DistributionBucket]


class OverviewWorkflow(msgspec.Struct, kw_only=True):
    """A workflow; ``usual`` is null if it has no completed executions lately, or is not among the last active 200."""

    workflow_id: str
    workflow_name: str
    usual: UsualDuration | None


class FailingWorkflow(msgspec.Struct, kw_only=True):
    """A workflow with failures of one cause.

    ``state``: ``failing``, if no execution has completed since the last of them, else ``recovered``. ``recovered_by``
    is the execution that completed first since then, as far as it is among the newest ones; ``running`` is one that was
    started since and has not ended. ``step_name``: the step that failed first in ``last``.
    """

    workflow_id: str
    workflow_name: str
    count: int
    state: str
    step_name: str | None
    last: RunGlance
    recovered_by: RunGlance | None
    running: RunGlance | None


class FailureGroup(msgspec.Struct, kw_only=True):
    """Executions that failed with one status and of one cause (``failure_group``: its id, null while it is not known;
    see `FailureGroupSummary`). Workflows that still fail come first.
    """

    status: str
    error_type: str | None
    error_message: str | None
    failure_group: str | None
    count: int
    is_failing: bool
    first_at: str
    last_at: str
    workflows: list[FailingWorkflow]


class SlowWorkflow(msgspec.Struct, kw_only=True):
    """A workflow of which more executions than usual took longer than usual, or most take longer than before.

    Longer than usual: than 1.2 times the 95th percentile (the 75th, if all of them are of the range) and 1.5 times the
    median; or most of at least 3 than 1.25 times the 75th percentile. ``count`` of ``of`` completed ones did; ``ratio``
    is that of the last of them to the median.
    """

    workflow_id: str
    workflow_name: str
    count: int
    of: int
    usual_p50: float
    usual_p95: float
    ratio: float
    last: RunGlance


class LongRun(msgspec.Struct, kw_only=True):
    """An open execution that already takes longer than usual, see `SlowWorkflow`."""

    workflow_id: str
    workflow_name: str
    usual_p50: float
    usual_p95: float
    ratio: float
    run: RunGlance


class LateWorkflow(msgspec.Struct, kw_only=True):
    """Something that is expected of a workflow and did not happen in time (see `GET /api/expectations`).

    ``kind`` is ``late`` (it did not start), ``overdue`` (it takes longer than its deadline) or ``stale`` (it has not
    succeeded for too long). ``workflow_id`` is null while nothing was recorded of the workflow.
    """

    workflow_id: str | None
    workflow_name: str
    kind: str
    severity: str
    text: str
    since: str
    execution_id: str | None


class Overview(msgspec.Struct, kw_only=True):
    """What someone on call looks at first.

    ``since``: the blocks are about what ended since this time. ``failure_count`` counts all failures since then,
    ``failures`` groups the newest 2,000. ``runs``: the newest executions, as in the list.
    """

    at: str
    since: str
    failure_count: int
    ended_count: int
    open_count: int
    failures: list[FailureGroup]
    late: list[LateWorkflow]
    slower: list[SlowWorkflow]
    running_too_long: list[LongRun]
    workflows: list[OverviewWorkflow]
    runs: ExecutionPage


class WorkflowRow(msgspec.Struct, kw_only=True):
    """A workflow in the list of workflows.

    ``last`` is its newest execution, ``strip`` its newest 20, oldest first. ``p50`` is the median of the completed
    executions of the last 7 days. ``trend`` is the median of the newest 5 completed ones, divided by ``usual_seconds``:
    the median of the 7 days before the last 7, or of the last 7 if nothing is older; null unless there are enough.
    ``success_rate`` is of the last 7 days.
    """

    workflow_id: str
    workflow_name: str
    is_runnable: bool
    total_executions: int
    open_executions: int
    recent_executions: int
    success_rate: float | None
    p50: float | None
    usual_seconds: float | None
    trend: float | None
    last: RunGlance | None
    strip: list[RunGlance]


class WorkflowRows(msgspec.Struct, kw_only=True):
    """The workflows of a workspace, the last active ones first."""

    at: str
    items: list[WorkflowRow]
    total: int
