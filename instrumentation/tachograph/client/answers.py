"""The service's answers, as its OpenAPI document describes them.

Written by tools/client_answers.py; do not edit. Times are RFC 3339 in UTC, durations are seconds. Fields that a newer
service adds are left out, and what an older one does not send is None.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Attempt(msgspec.Struct, kw_only=True):
    """One attempt of a step. ``queue_seconds`` and ``backoff_seconds`` are the waits before this attempt."""

    attempt: int
    status: str
    started_at: str
    completed_at: str | None = None
    duration_seconds: float | None = None
    queue_seconds: float
    backoff_seconds: float
    error_type: str | None = None
    error_message: str | None = None
    resources: ResourceUse | None = None
    failure_group: str | None = None


class AverageUse(msgspec.Struct, kw_only=True):
    """What a run of a step used of the machine on average. Null: not known.

    ``count`` is how many runs say so. ``busy_share`` is processor time per running time, at most 1; the rest was
    waiting. ``peak_memory_bytes`` is the average of the runs' peaks, and without those that shared their process.
    """

    count: int
    cpu_seconds: float | None = None
    max_cpu_seconds: float | None = None
    busy_share: float | None = None
    peak_memory_bytes: int | None = None
    max_peak_memory_bytes: int | None = None
    read_bytes: int
    written_bytes: int
    gc_seconds: float


class Baseline(msgspec.Struct, kw_only=True):
    """The usual as one side of a comparison: the completed executions of a range.

    ``average_cost_usd`` is null if none of them says what it cost.
    """

    start: str
    end: str
    execution_count: int
    average_duration_seconds: float | None = None
    p50: float | None = None
    p95: float | None = None
    average_cost_usd: float | None = None


class Claim(msgspec.Struct, kw_only=True):
    """One sentence about a run.

    ``kind`` says what it is about, and ``subject`` names it: a step, a workflow, an input, a span's name; see
    docs/why.md.
    """

    kind: str
    subject: str | None = None
    text: str
    certainty: str
    evidence: Evidence


class ComparedRun(msgspec.Struct, kw_only=True):
    """An execution as one side of a comparison."""

    execution_id: str
    status: str
    started_at: str | None = None
    duration_seconds: float | None = None
    critical_path_seconds: float
    queued_seconds: float | None = None
    cost_usd: float | None = None
    tokens_in: int
    tokens_out: int
    error_message: str | None = None


class ComparedSpans(msgspec.Struct, kw_only=True):
    """Spans of a name below a step that took longer than on the other side; their self times (see the timeline).

    For a baseline, the other side is the median of the last completed executions that have spans.
    ``difference_seconds`` is by how much longer they took of the step's time: spans beside each other count once.
    """

    name: str
    seconds: float
    reference_seconds: float
    count: int
    reference_count: int
    difference_seconds: float


class ComparedStep(msgspec.Struct, kw_only=True):
    """One step, compared with the other execution or with the baseline; ``step_id`` is null if it is not in this
    one.

    ``seconds`` is its duration plus the time it waited for a slot and for its scheduled time; ``reference_seconds`` is
    the same on the other side (for a baseline: the median). ``percentile`` is the percentage of its baseline runs that
    were faster, null without a baseline. ``not_in_reference``: it ran here, but not in the other execution, or in less
    than half of the baseline's. ``blame`` is the share of the execution's slowdown that the step explains, from 0 to 1
    in steps of 0.01; null if the execution was not notably slower. A step without a duration on the other side is not
    blamed. ``cpu_seconds``, ``peak_memory_bytes``, ``read_bytes`` and ``written_bytes`` (from and to storage) are what
    the step used of the machine; for a baseline, the other side is the average of its completed runs. ``below`` is what
    below the step took longer, of the steps that got slower most; null if nothing did, or if both sides have no spans
    to compare. Null: not known.
    """

    step_id: str | None = None
    step_name: str
    repetition: int
    status: str | None = None
    reference_status: str | None = None
    seconds: float | None = None
    reference_seconds: float | None = None
    reference_p95: float | None = None
    difference_seconds: float | None = None
    ratio: float | None = None
    percentile: float | None = None
    on_critical_path: bool
    not_in_reference: bool
    retry_count: int
    queue_seconds: float | None = None
    scheduled_seconds: float | None = None
    blame: float | None = None
    cpu_seconds: float | None = None
    reference_cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    reference_peak_memory_bytes: int | None = None
    read_bytes: int | None = None
    reference_read_bytes: int | None = None
    written_bytes: int | None = None
    reference_written_bytes: int | None = None
    below: list[ComparedSpans] | None = None


class Cost(msgspec.Struct, kw_only=True):
    """What a step spent: the sum of all its reports. ``usd`` is null if nothing says what it cost."""

    usd: float | None = None
    tokens_in: int
    tokens_out: int
    models: list[str]


class CriticalStep(msgspec.Struct, kw_only=True):
    """A step on the critical path. ``scheduled_seconds``: how long the run waited before it for its scheduled time."""

    step_id: str
    step_name: str
    duration_seconds: float
    scheduled_seconds: float = 0.0


class DistributionBucket(msgspec.Struct, kw_only=True):
    """Number of executions that took between ``low`` (exclusive) and ``high`` (inclusive) seconds."""

    low: float
    high: float
    count: int


class DurationSummary(msgspec.Struct, kw_only=True):
    """Summary of durations in seconds; null where nothing ended."""

    count: int
    total_duration_seconds: float
    average_duration_seconds: float | None = None
    min_duration_seconds: float | None = None
    max_duration_seconds: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class ErrorDetails(msgspec.Struct, kw_only=True):
    """What failed. ``error_stack`` is null in lists."""

    error_type: str
    error_stack: str | None = None


class Evidence(msgspec.Struct, kw_only=True):
    """What a claim rests on: the figures, and the path of the API that has them."""

    url: str
    values: dict[str, str | int | float | bool]


class ExecutionComparison(msgspec.Struct, kw_only=True):
    """An execution compared with another one or with a baseline; steps with the largest blame first.

    ``culprit`` is the step to look at first, null if none stands out; ``sentence`` is the result in words.
    """

    execution: ComparedRun
    reference: ComparedRun | None = None
    baseline: Baseline | None = None
    difference_seconds: float | None = None
    ratio: float | None = None
    percentile: float | None = None
    culprit: str | None = None
    sentence: str
    steps: list[ComparedStep]


class ExecutionPage(msgspec.Struct, kw_only=True):
    """A page of executions. ``next`` is the cursor of the next page (``after=``), null on the last page."""

    items: list[WorkflowExecutionResponse]
    total: int
    skip: int
    limit: int
    next: str | None = None


class ExecutionResults(msgspec.Struct, kw_only=True):
    """Outputs and statuses of the steps that have ended, by step id; summarised as in the timeline."""

    step_outputs: dict[str, Any]
    step_statuses: dict[str, str]


class FailureCounts(msgspec.Struct, kw_only=True):
    """How often something failed of one cause, within the window.

    ``failures`` is how often it happened: ``attempts``, and executions that failed by themselves outside of any step.
    ``attempts`` failed, whether or not another one followed; ``steps`` failed for good; ``executions`` failed because
    of it. A step or an execution that failed because something inside it did is not counted as a failure again.
    """

    failures: int
    attempts: int
    steps: int
    executions: int


class FailureExample(msgspec.Struct, kw_only=True):
    """The newest failure of a group. The texts are null if its execution is archived."""

    execution_id: str
    workflow_name: str
    step_name: str | None = None
    attempt: int
    at: str
    error_message: str | None = None
    error_stack: str | None = None


class FailureGroupSummary(msgspec.Struct, kw_only=True):
    """Failures of one cause: one type of error, one message but for values, the same own functions of the stack.

    ``message`` is the message with ``<*>`` for values; ``location`` the innermost function of one's own. ``state`` is
    ``open``, ``muted``, ``resolved`` or ``regressed`` (it has failed since somebody resolved it). ``is_new``: first
    seen within the last 24 hours. ``new_since_version``: the workflow's version that it came with; null where that is
    not known. ``trend`` are the failures in equal parts of the window, oldest first. ``rules_version``: of the rules
    that told causes apart.
    """

    id: str
    error_type: str
    message: str
    location: str | None = None
    state: str
    is_new: bool
    new_since_version: str | None = None
    state_changed_at: str | None = None
    state_changed_by: str | None = None
    note: str | None = None
    first_seen_at: str
    last_seen_at: str | None = None
    counts: FailureCounts
    trend: list[int]
    places: list[FailurePlace]
    example: FailureExample | None = None
    rules_version: int


class FailurePage(msgspec.Struct, kw_only=True):
    """Groups of failures. ``is_complete`` is false while failures of before an upgrade are still being grouped."""

    items: list[FailureGroupSummary]
    total: int
    skip: int
    limit: int
    window_from: str
    window_to: str
    is_complete: bool


class FailurePlace(msgspec.Struct, kw_only=True):
    """A workflow and a step in which a group happens. ``step_name`` is null outside of any step."""

    workflow_id: str
    workflow_name: str
    step_name: str | None = None
    failures: int


class Fault(msgspec.Struct, kw_only=True):
    """A fault of a document: a stable ``code``, the place (``steps[3].name``), and a message with the way out."""

    code: str
    at: str
    message: str


class FoldedSteps(msgspec.Struct, kw_only=True):
    """What repetitions of a step add up to that share one entry of the timeline.

    ``count`` is all of them, ``running`` those that run now. ``run_seconds`` is the running time of all attempts,
    ``busy_seconds`` the time in which at least one repetition ran. ``p50``, ``p95`` and ``max`` are of their durations.
    ``resources`` are what a repetition used on average.
    """

    count: int
    completed: int
    failed: int
    cancelled: int
    lost: int
    running: int
    retry_count: int
    run_seconds: float
    busy_seconds: float
    average_seconds: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None
    measures: list[MeasureSummary]
    resources: AverageUse | None = None


class LogEntry(msgspec.Struct, kw_only=True):
    """A log line of an execution.

    ``step_id`` is the step whose span, or whose span below, it was written in; null: none of them. ``severity`` is
    OpenTelemetry's number (1 to 24; 0: not said), and ``level`` its name. ``source`` is ``recorded`` for lines that the
    step wrote (records of `logging`, what its command wrote, and what it logged itself), ``otlp`` for those that
    arrived by OTLP. ``attempt`` is the attempt of the step that wrote it, null if that is not known. ``logger`` is the
    name of the logger of a record of `logging`.
    """

    at: str
    level: str
    severity: int
    message: str
    step_id: str | None = None
    step_name: str | None = None
    trace_id: str
    span_id: str
    source: str
    attempt: int | None = None
    service: str = ""
    event_name: str = ""
    attributes: Any = None
    error_type: str | None = None
    error_message: str | None = None
    error_stack: str | None = None
    logger: str = ""


class LogLine(msgspec.Struct, kw_only=True):
    """A line that a step logged."""

    level: str
    message: str
    at: str


class LogPage(msgspec.Struct, kw_only=True):
    """Log lines in order of time. ``next`` continues after them; with ``last``, it is null.

    ``has_older``: with ``last``, whether there are older lines. ``dropped_count``: lines of the run that were not kept.
    """

    items: list[LogEntry]
    next: str | None = None
    dropped_count: int
    has_older: bool = False


class Measure(msgspec.Struct, kw_only=True):
    """A value that a step reported."""

    name: str
    value: float
    unit: str
    at: str


class MeasureSummary(msgspec.Struct, kw_only=True):
    """Summary of the values that steps reported under one name."""

    name: str
    unit: str
    count: int
    sum: float
    average: float
    min: float
    max: float


class ProblemDetails(msgspec.Struct, kw_only=True):
    """An error (RFC 9457). ``code`` is stable, ``detail`` is for people; ``errors`` lists each fault with its place."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[Fault] = []


class ResourceUse(msgspec.Struct, kw_only=True):
    """What attempts used of the machine, with all processes that they waited for. Null or absent: not known.

    ``cpu_seconds`` is user and system time, ``thread_cpu_seconds`` that of the attempt's own thread; ``busy_seconds``
    and ``waiting_seconds`` divide the running time: at most all of it was busy, even if several threads were.
    ``peak_memory_bytes`` is the largest resident set of any one process (exact if the process never was as large
    before; otherwise the larger of the sizes before and after), ``memory_growth_bytes`` how much larger it was after
    than before. ``read_bytes`` and ``written_bytes`` went from and to storage. ``gc_seconds``, ``gc_full_seconds`` and
    ``gc_count`` are pauses by Python's garbage collector. A step that waits gives its processor up: a voluntary switch;
    an involuntary one means that there were too few processors. ``is_shared``: its process did other recorded work at
    the same time, so ``cpu_seconds`` is that of its thread alone, and memory and pauses are those of the process.
    """

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    thread_cpu_seconds: float | None = None
    busy_seconds: float | None = None
    waiting_seconds: float | None = None
    memory_growth_bytes: int | None = None
    gc_seconds: float | None = None
    gc_full_seconds: float | None = None
    gc_count: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    is_shared: bool = False


class RunUse(msgspec.Struct, kw_only=True):
    """What the steps of a run used of the machine. What a step used includes what steps inside it did: it counts
    once.

    ``peak_memory_bytes`` is the largest resident set of any one process while a step ran. ``is_partial``: some steps
    shared a process, so what only the process knows (threads they started, for instance) is in no sum.
    """

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    read_bytes: int
    written_bytes: int
    is_partial: bool


class SampleOfRuns(msgspec.Struct, kw_only=True):
    """The runs that were compared. ``tested`` is how many values were."""

    start: str | None = None
    end: str | None = None
    run_count: int
    odd_count: int
    usual_count: int
    tested: int
    max_false_discovery_rate: float


class SpansBelow(msgspec.Struct, kw_only=True):
    """The spans below a step that share a name: those under its own spans, at any depth. Ids in names are folded.

    ``seconds`` is their self time: the time of each of them in which none of its own children ran. Spans beside each
    other count each; ``elapsed_seconds`` is the time in which at least one of them ran. ``name`` is null for all those
    that are not told apart.
    """

    name: str | None = None
    seconds: float
    count: int
    elapsed_seconds: float | None = None


class StepMetrics(msgspec.Struct, kw_only=True):
    """Metrics of one step. Skipped runs count in ``by_status`` only.

    ``wait`` is the average per run, ``retry_rate`` the retries per run, ``critical_path_share`` the step's share of the
    time on the critical paths of all executions. ``resources`` is what a run used on average, null if nothing measured
    it.
    """

    count: int
    total_duration_seconds: float
    average_duration_seconds: float | None = None
    min_duration_seconds: float | None = None
    max_duration_seconds: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    step_name: str
    by_status: dict[str, int]
    success_rate: float | None = None
    last_completed_at: str | None = None
    retry_count: int
    retry_rate: float | None = None
    wait: Wait | None = None
    critical_path_seconds: float
    critical_path_share: float | None = None
    cost_usd: float | None = None
    tokens_in: int
    tokens_out: int
    measures: list[MeasureSummary]
    resources: AverageUse | None = None


class Wait(msgspec.Struct, kw_only=True):
    """Seconds that a step waited for its dependencies, for a slot, and between attempts.

    ``unaccounted`` is the time between the end of what it depends on and the moment something asked for it: nothing
    says what the program did then. ``scheduled`` is the time between that moment and the time it was asked for: a
    countdown, or a start that whoever asked for it had chosen.
    """

    dependency: float
    queue: float
    backoff: float
    unaccounted: float = 0.0
    scheduled: float = 0.0


class WhatDiffers(msgspec.Struct, kw_only=True):
    """A value of the run that splits the odd runs (slow, or failed) from the usual ones of its workflow.

    Of texts and booleans, ``odd_with`` of ``with_count`` runs that have the value are odd, and ``odd_without`` of
    ``without_count`` others; these are null for numbers, which have the medians of both groups instead. ``effect`` goes
    from 0 (tells nothing) to 1 (tells the groups apart without exception). ``false_discovery_rate`` is the rate at
    which the difference is announced. Of two values that matter only together (``kind`` is ``pair``), ``key`` and
    ``value`` have both, with an ampersand between them.
    """

    key: str
    kind: str
    value: str | float | bool
    effect: float
    false_discovery_rate: float
    odd_with: int | None = None
    with_count: int | None = None
    odd_without: int | None = None
    without_count: int | None = None
    odd_median: float | None = None
    usual_median: float | None = None
    is_outcome: bool
    text: str


class WhyAnswer(msgspec.Struct, kw_only=True):
    """Why a run was slow or failed.

    ``verdict`` is usual, slow, failed, running, pending, cancelled, lost, or unknown (nothing to compare it with).
    ``claims`` say what happened, in the order of the sentence, ``causes`` why, the likeliest first. ``differences`` is
    all that differs, whether it is named as a cause or not.
    """

    execution_id: str
    workflow_id: str
    workflow_name: str
    status: str
    verdict: str
    sentence: str
    claims: list[Claim]
    causes: list[Claim]
    differences: list[WhatDiffers]
    sample: SampleOfRuns


class WorkflowExecutionResponse(msgspec.Struct, kw_only=True):
    """An execution in a list. One that ran inside a step of another execution names both of them.

    ``execution_number`` counts the executions of the workflow from 1, in the order in which they were first stored.
    ``duration`` is ``duration_seconds`` under the name that older clients read. ``updated_at`` is when the execution
    was last heard of. ``results`` is null in lists: outputs are stored with the steps.

    ``expected_end_at`` is when a running execution is expected to end, by what remains of its critical path and what is
    usual; null if nothing like it ever took so long. ``usual_duration_seconds`` is the median of the workflow's
    completed executions of the last four weeks; null for executions that have ended.
    """

    id: str
    execution_id: str
    execution_number: int | None = None
    workspace_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    project_id: str
    status: str
    created_at: str
    updated_at: str
    started_at: str | None = None
    completed_at: str | None = None
    duration_seconds: float | None = None
    duration: float | None = None
    elapsed_seconds: float | None = None
    input_variables: Any | None = None
    results: ExecutionResults | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_details: ErrorDetails | None = None
    trace_id: str
    parent_execution_id: str | None = None
    parent_step_id: str | None = None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    critical_path_seconds: float | None = None
    work_seconds: float | None = None
    is_archived: bool = False
    expected_end_at: str | None = None
    usual_duration_seconds: float | None = None


class WorkflowExecutionTimeline(msgspec.Struct, kw_only=True):
    """Timeline of an execution. Filters shorten ``step_timeline`` only; counts cover the whole execution.

    ``unaccounted_seconds`` is the time in which no step of the critical path ran: waits for a slot or for a scheduled
    time, and what the program did itself; together with ``critical_path_seconds`` it is the whole time of the run.
    ``cost_usd`` is what its steps spent, null if nothing says so; it and the tokens are without those of executions
    inside this one. ``parent_execution_id`` and ``parent_step_id`` name the execution and its step that this one ran
    inside. ``expected_end_at`` and ``usual_duration_seconds``: see `WorkflowExecutionResponse`. ``failure_group`` is
    the id of the group of the failure that the execution failed with.
    """

    execution_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    status: str
    started_at: str | None = None
    completed_at: str | None = None
    total_duration_seconds: float | None = None
    elapsed_seconds: float | None = None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    running_step_count: int
    error_type: str | None = None
    error_message: str | None = None
    input_summary: Any | None = None
    queued_seconds: float | None = None
    last_seen_at: str | None = None
    trace_id: str
    span_id: str
    parent_execution_id: str | None = None
    parent_step_id: str | None = None
    critical_path: list[CriticalStep]
    critical_path_seconds: float
    unaccounted_seconds: float | None = None
    work_seconds: float
    parallelism: float | None = None
    cost_usd: float | None = None
    tokens_in: int
    tokens_out: int
    step_timeline: list[WorkflowStepTimelineEntry]
    expected_end_at: str | None = None
    usual_duration_seconds: float | None = None
    failure_group: str | None = None
    resources: RunUse | None = None


class WorkflowMetricsSummary(msgspec.Struct, kw_only=True):
    """Metrics of the executions of a workflow that ended in a range, and the number of open ones.

    ``success_rate`` is the percentage of completed executions among the completed and failed ones; cancelled ones do
    not count; 0 if there are neither. Durations are those of ended executions in seconds; if none ended, their average
    is 0 and the others are null. ``percentile_error`` is the maximum relative error of percentiles. ``distribution`` is
    a histogram of the completed executions' durations: at most 24 buckets of constant growth factor, without the empty
    ones. ``steps`` are sorted by share of the critical path, largest first.
    """

    workflow_id: str
    workflow_name: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    open_executions: int
    success_rate: float
    total_duration_seconds: float
    average_duration_seconds: float
    min_duration_seconds: float | None = None
    max_duration_seconds: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    percentile_error: float
    last_completed_at: str | None = None
    average_queued_seconds: float | None = None
    retry_count: int
    critical_path_seconds: float
    work_seconds: float
    cost_usd: float | None = None
    tokens_in: int
    tokens_out: int
    distribution: list[DistributionBucket]
    by_status: dict[str, DurationSummary]
    steps: list[StepMetrics]


class WorkflowStepTimelineEntry(msgspec.Struct, kw_only=True):
    """One step of a timeline.

    ``step_index`` tells steps of the same name apart (of a mapped task, a loop, a fan-out), else it is null.
    ``duration_seconds`` spans from the start of the first attempt to the end of the last; ``run_seconds`` is the time
    in attempts alone. ``wait_seconds`` is all waiting; together with ``run_seconds`` it covers the time from the start
    of the execution (for a step inside another one: of that step) to the end of the step.

    ``depends_on_count`` is how many steps it waited for; ``depends_on`` may name only some of them.
    ``child_execution_id`` is the execution that the step ran. ``outside_run_seconds`` is how far the step's own times
    lie after the end of the run or (negative) before its start, because its clock differs or it outlasted the run: its
    times are shown as they are; waits, work and the critical path are computed within the run. With ``folded``, the
    entry stands for many repetitions of the step: it spans from the start of the first to the end of the last, and
    ``run_seconds`` is their sum. ``resources`` are those of all attempts; null if nothing measured them.
    ``failure_group`` is the id of the [group](docs/failures.md) of its failure. ``below`` is what lies below it: spans
    by name, the longest first; null unless it is asked for, or if the trace has no spans here, or too many.
    """

    step_id: str
    step_name: str
    step_index: int | str | None = None
    step_type: str
    step_order: int
    status: str
    started_at: str | None = None
    completed_at: str | None = None
    duration_seconds: float | None = None
    elapsed_seconds: float | None = None
    run_seconds: float | None = None
    retry_count: int
    error_type: str | None = None
    error_message: str | None = None
    error_stack: str | None = None
    skip_reason: str | None = None
    input_summary: Any | None = None
    output_summary: Any | None = None
    wait_seconds: float | None = None
    wait: Wait | None = None
    depends_on: list[str]
    depends_on_count: int
    parent_step_id: str | None = None
    child_execution_id: str | None = None
    attempts: list[Attempt]
    on_critical_path: bool
    slack_seconds: float | None = None
    outside_run_seconds: float
    trace_id: str
    span_id: str
    measures: list[Measure]
    cost: Cost | None = None
    logs: list[LogLine]
    folded: FoldedSteps | None = None
    resources: ResourceUse | None = None
    failure_group: str | None = None
    below: list[SpansBelow] | None = None
