"""What the API answers, as types. Field names are a contract; durations are seconds, times RFC 3339 UTC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from tachograph.workflow.errors import Fault

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    """A page of a list: ``total`` is how many there are in all."""

    items: list[T]
    total: int
    skip: int
    limit: int


class WorkspaceInfo(msgspec.Struct, kw_only=True):
    """A workspace."""

    id: str
    slug: str
    name: str
    created_at: str


class ProjectInfo(msgspec.Struct, kw_only=True):
    """A project of a workspace."""

    id: str
    slug: str
    name: str
    workspace_id: str
    created_at: str


class NewWorkspace(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A workspace (or project) to be made. The slug is its name in addresses and cannot change."""

    slug: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?$")]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


class NewToken(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A token to be made. Without a workspace it is for all of them."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    scopes: Annotated[list[Literal["read", "write", "ingest", "admin"]], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["read"]
    )
    workspace: str | None = None
    expires_in_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] | None = None


class TokenInfo(msgspec.Struct, kw_only=True):
    """A token, without the token itself. ``state`` is active, expired or revoked."""

    id: str
    name: str
    scopes: list[str]
    workspace: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    state: str


class CreatedToken(TokenInfo, kw_only=True):
    """A token just made, with the token: shown this once."""

    token: str


class ExecutionPage(msgspec.Struct):
    """A page of executions. ``next`` is the cursor of the page after this one (``after=``), null on the last."""

    items: list[WorkflowExecutionResponse]
    total: int
    skip: int
    limit: int
    next: str | None


class WorkflowSummary(msgspec.Struct, kw_only=True):
    """A workflow in a list."""

    id: str
    name: str
    description: str
    version: str
    workspace_id: str
    project_id: str
    is_runnable: bool
    created_at: str
    updated_at: str


class WorkflowDetail(WorkflowSummary, kw_only=True):
    """A workflow with its definition. ``is_runnable`` is False where only runs recorded elsewhere are known of it."""

    timeout_seconds: float | None = None
    max_retries: int = 0
    config: Any = {}
    metadata: Any = {}
    variables: list[Any] = []
    steps: list[Any] = []
    warnings: list[Fault] = []


class ValidationResult(msgspec.Struct):
    """What validation found."""

    is_valid: bool
    errors: list[Fault]
    warnings: list[Fault]


class Submitted(msgspec.Struct, kw_only=True):
    """An execution was accepted."""

    execution_id: str
    workflow_id: str
    trace_id: str
    status: str = "submitted"
    message: str = "the execution was accepted"


class Cancelling(msgspec.Struct, kw_only=True):
    """An execution will be cancelled."""

    execution_id: str
    workflow_id: str
    status: str = "cancelling"
    message: str = "the execution is being cancelled"


class Attempt(msgspec.Struct, kw_only=True, gc=False):
    """One attempt of a step. The waits are those before this attempt."""

    attempt: int
    status: str
    started_at: str
    completed_at: str | None
    duration_seconds: float | None
    queue_seconds: float
    backoff_seconds: float
    error_type: str | None = None
    error_message: str | None = None


class Wait(msgspec.Struct, gc=False):
    """Where a step's time went while it was not running, in seconds over all its attempts."""

    dependency: float
    queue: float
    backoff: float


class Measure(msgspec.Struct):
    """A value a step reported."""

    name: str
    value: float
    unit: str
    at: str


class LogLine(msgspec.Struct):
    """A line a step logged."""

    level: str
    message: str
    at: str


class Cost(msgspec.Struct):
    """What a step reported as spent, added up."""

    usd: float
    tokens_in: int
    tokens_out: int
    models: list[str]


class WorkflowStepTimelineEntry(msgspec.Struct, kw_only=True, gc=False):
    """One step of a timeline.

    ``duration_seconds`` runs from the start of the first attempt to the end of the last; ``run_seconds`` counts only
    the attempts. ``wait_seconds`` is all waiting; with ``run_seconds`` it adds up to the time from the start of the
    run to the end of the step.
    """

    step_id: str
    step_name: str
    step_type: str
    step_order: int
    status: str
    started_at: str | None
    completed_at: str | None
    duration_seconds: float | None
    elapsed_seconds: float | None
    run_seconds: float | None
    retry_count: int
    error_type: str | None
    error_message: str | None
    error_stack: str | None
    skip_reason: str | None
    input_summary: msgspec.Raw | None
    output_summary: msgspec.Raw | None
    wait_seconds: float | None
    wait: Wait | None
    depends_on: Sequence[str]
    parent_step_id: str | None
    attempts: tuple[Attempt, ...]
    on_critical_path: bool
    slack_seconds: float | None
    trace_id: str
    span_id: str
    measures: tuple[Measure, ...]
    cost: Cost | None
    logs: tuple[LogLine, ...]


class CriticalStep(msgspec.Struct, gc=False):
    """A step on the critical path."""

    step_id: str
    step_name: str
    duration_seconds: float


class WorkflowExecutionTimeline(msgspec.Struct, kw_only=True):
    """A run's timeline. Counts are those of the whole run, whatever the filters leave of ``step_timeline``."""

    execution_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    status: str
    started_at: str | None
    completed_at: str | None
    total_duration_seconds: float | None
    elapsed_seconds: float | None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    running_step_count: int
    error_type: str | None
    error_message: str | None
    input_summary: msgspec.Raw | None
    queued_seconds: float | None
    last_seen_at: str | None
    trace_id: str
    span_id: str
    critical_path: list[CriticalStep]
    critical_path_seconds: float
    work_seconds: float
    parallelism: float | None
    cost_usd: float
    step_timeline: list[WorkflowStepTimelineEntry]


class ChromeTrace(msgspec.Struct, kw_only=True):
    """A run in the Trace Event Format, as Perfetto, speedscope and chrome://tracing read it. Times are microseconds."""

    displayTimeUnit: str  # noqa: N815 - the format's own name
    traceEvents: list[Any]  # noqa: N815
    otherData: dict[str, Any]  # noqa: N815


class OtlpTraces(msgspec.Struct, kw_only=True):
    """Spans in OTLP's JSON."""

    resourceSpans: list[Any]  # noqa: N815 - the format's own name


class WorkflowExecutionResponse(msgspec.Struct, kw_only=True):
    """An execution in a list."""

    id: str
    execution_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    project_id: str
    status: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    duration_seconds: float | None
    elapsed_seconds: float | None
    error_type: str | None
    error_message: str | None
    trace_id: str
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    critical_path_seconds: float | None
    work_seconds: float | None
    is_archived: bool = False


class WorkflowExecutionDetailedResponse(WorkflowExecutionResponse, kw_only=True):
    """An execution with its inputs, its stack if it failed, and its timeline."""

    error_stack: str | None
    input_summary: msgspec.Raw | None
    last_seen_at: str | None
    timeline: WorkflowExecutionTimeline


class ExecutionState(msgspec.Struct, kw_only=True):
    """Where an execution stands."""

    execution_id: str
    workflow_id: str
    status: str
    started_at: str | None
    completed_at: str | None
    elapsed_seconds: float | None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    running_steps: list[str]
    error_message: str | None


class Figures(msgspec.Struct, kw_only=True):
    """Durations of what ended, in seconds; null when nothing did."""

    count: int
    total_duration_seconds: float
    average_duration_seconds: float | None
    min_duration_seconds: float | None
    max_duration_seconds: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class Bar(msgspec.Struct):
    """How many of something took between ``low`` (exclusive) and ``high`` (inclusive) seconds."""

    low: float
    high: float
    count: int


class MeasureFigures(msgspec.Struct, kw_only=True):
    """What steps reported under one name."""

    name: str
    unit: str
    count: int
    sum: float
    average: float
    min: float
    max: float


class StepFigures(Figures, kw_only=True):
    """Figures over one step. Skipped ones count in ``by_status`` only.

    ``wait`` is waiting per run on the average; ``retry_rate`` retries per run; ``critical_path_share`` the step's part
    of all time that executions spent on their critical paths.
    """

    step_name: str
    by_status: dict[str, int]
    success_rate: float | None
    last_completed_at: str | None
    retry_count: int
    retry_rate: float | None
    wait: Wait | None
    critical_path_seconds: float
    critical_path_share: float | None
    cost_usd: float
    tokens_in: int
    tokens_out: int
    measures: list[MeasureFigures]


class WorkflowMetricsSummary(msgspec.Struct, kw_only=True):
    """Figures over a workflow's executions that ended in a range, and those that are open.

    ``success_rate`` is a percentage of those that succeeded or failed; cancelled ones count neither way. Durations
    (seconds) are those of executions that ended, null when none did. Percentiles are at most ``percentile_error`` (a
    part of the value) from the exact ones. ``distribution`` counts the completed ones by how long they took, in at most
    24 buckets that grow by the same factor; those that hold nothing are left out. ``steps`` comes with the largest
    share of the critical path first.
    """

    workflow_id: str
    workflow_name: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    open_executions: int
    success_rate: float | None
    total_duration_seconds: float
    average_duration_seconds: float | None
    min_duration_seconds: float | None
    max_duration_seconds: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    percentile_error: float
    last_completed_at: str | None
    average_queued_seconds: float | None
    retry_count: int
    critical_path_seconds: float
    work_seconds: float
    cost_usd: float
    tokens_in: int
    tokens_out: int
    distribution: list[Bar]
    by_status: dict[str, Figures]
    steps: list[StepFigures]


class TrendBucket(msgspec.Struct, kw_only=True):
    """What ended in one stretch of time. For a step, its runs instead of executions."""

    start: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    average_duration_seconds: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    retry_count: int
    average_wait_seconds: float | None
    cost_usd: float
    tokens_in: int
    tokens_out: int
    measures: list[MeasureFigures]


class ChangePoint(msgspec.Struct, kw_only=True):
    """Since when something takes longer, or shorter: ``step_name`` null is the execution as a whole.

    ``ratio`` is the median after over the median before; ``until`` is the next change, null when it still holds.
    """

    step_name: str | None
    since: str
    until: str | None
    direction: str
    before_seconds: float
    after_seconds: float
    ratio: float
    sentence: str


class WorkflowTrends(msgspec.Struct, kw_only=True):
    """A workflow (or one of its steps) over time. Buckets in which nothing ended are left out."""

    workflow_id: str
    workflow_name: str
    step_name: str | None
    bucket: str
    start: str
    end: str
    buckets: list[TrendBucket]
    change_points: list[ChangePoint]


class ComparedRun(msgspec.Struct, kw_only=True):
    """One side of a comparison that is an execution."""

    execution_id: str
    status: str
    started_at: str | None
    duration_seconds: float | None
    critical_path_seconds: float
    queued_seconds: float | None
    error_message: str | None


class Baseline(msgspec.Struct, kw_only=True):
    """One side of a comparison that is what is usual: the completed executions of a range."""

    start: str
    end: str
    execution_count: int
    average_duration_seconds: float | None
    p50: float | None
    p95: float | None


class ComparedStep(msgspec.Struct, kw_only=True):
    """One step, seen against the other execution or against its usual.

    ``seconds`` is its duration with the time it waited for a slot, ``reference_seconds`` the same on the other side
    (of a baseline: the median duration). ``percentile`` says what part of its usual runs were faster (0 to 100), null
    without a baseline. ``blame`` is the part of the run's slowdown that it explains,
    null when the run was not slower by more than noise.
    """

    step_name: str
    repetition: int
    status: str | None
    reference_status: str | None
    seconds: float | None
    reference_seconds: float | None
    reference_p95: float | None
    difference_seconds: float | None
    ratio: float | None
    percentile: float | None
    on_critical_path: bool
    retry_count: int
    queue_seconds: float | None
    blame: float | None


class ExecutionComparison(msgspec.Struct, kw_only=True):
    """An execution against another, or against its usual; steps with the largest blame first.

    ``culprit`` is the step to look at first, null when nothing stands out; ``sentence`` says it in words.
    """

    execution: ComparedRun
    reference: ComparedRun | None
    baseline: Baseline | None
    difference_seconds: float | None
    ratio: float | None
    percentile: float | None
    culprit: str | None
    sentence: str
    steps: list[ComparedStep]


class WorkflowStats(msgspec.Struct, kw_only=True):
    """One workflow's share of a workspace's statistics."""

    workflow_id: str
    workflow_name: str
    total_executions: int
    running_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    last_ended_at: str | None


class ExecutionStats(msgspec.Struct, kw_only=True):
    """A workspace's executions, counted."""

    total_executions: int
    running_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    workflows: list[WorkflowStats]


class Difference(msgspec.Struct):
    """One thing two views of a run say differently."""

    step_id: str
    field: str
    values: dict[str, Any]


class Reconciliation(msgspec.Struct, kw_only=True):
    """Whether the views of a run agree. ``views`` says which could be compared and how many steps each has.

    Rows are always there; events, spans and counters only in the process that recorded the run, and only for a while.
    """

    execution_id: str
    agrees: bool
    views: dict[str, int | None]
    differences: list[Difference]
