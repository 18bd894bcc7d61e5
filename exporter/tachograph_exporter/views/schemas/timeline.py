"""Timeline of an execution: response types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tachograph_exporter.views.schemas.common import AverageUse, MeasureSummary, Wait


class ResourceUse(msgspec.Struct, gc=False, omit_defaults=True):
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

    cpu_seconds: float | None
    peak_memory_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None
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


class RunUse(msgspec.Struct, gc=False):
    """What the steps of a run used of the machine. What a step used includes what steps inside it did: it counts once.

    ``peak_memory_bytes`` is the largest resident set of any one process while a step ran. ``is_partial``: some steps
    shared a process, so what only the process knows (threads they started, for instance) is in no sum.
    """

    cpu_seconds: float | None
    peak_memory_bytes: int | None
    read_bytes: int
    written_bytes: int
    is_partial: bool


class Attempt(msgspec.Struct, gc=False):
    """One attempt of a step. ``queue_seconds`` and ``backoff_seconds`` are the waits before this attempt."""

    attempt: int
    status: str
    started_at: str
    completed_at: str | None
    duration_seconds: float | None
    queue_seconds: float
    backoff_seconds: float
    error_type: str | None = None
    error_message: str | None = None
    resources: ResourceUse | None = None
    failure_group: str | None = None


class Measure(msgspec.Struct):
    """A value that a step reported."""

    name: str
    value: float
    unit: str
    at: str


class LogLine(msgspec.Struct):
    """A line that a step logged."""

    level: str
    message: str
    at: str


class Cost(msgspec.Struct):
    """What a step spent: the sum of all its reports. ``usd`` is null if nothing says what it cost."""

    usd: float | None
    tokens_in: int
    tokens_out: int
    models: list[str]


class FoldedSteps(msgspec.Struct, kw_only=True, gc=False):
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
    average_seconds: float | None
    p50: float | None
    p95: float | None
    max: float | None
    measures: list[MeasureSummary]
    resources: AverageUse | None = None


class SpansBelow(msgspec.Struct, gc=False):
    """The spans below a step that share a name: those under its own spans, at any depth. Ids in names are folded.

    ``seconds`` is their self time: the time of each of them in which none of its own children ran. Spans beside each
    other count each; ``elapsed_seconds`` is the time in which at least one of them ran. ``name`` is null for all those
    that are not told apart.
    """

    name: str | None
    seconds: float
    count: int
    elapsed_seconds: float | None


class WorkflowStepTimelineEntry(msgspec.Struct, gc=False):
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
    ``failure_group`` is the id of the [group](failures.md) of its failure. ``below`` is what lies below it: spans by
    name, the longest first; null unless it is asked for, or if the trace has no spans here, or too many.
    """

    step_id: str
    step_name: str
    step_index: int | str | None
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
    depends_on_count: int
    parent_step_id: str | None
    child_execution_id: str | None
    attempts: tuple[Attempt, ...]
    on_critical_path: bool
    slack_seconds: float | None
    outside_run_seconds: float
    trace_id: str
    span_id: str
    measures: tuple[Measure, ...]
    cost: Cost | None
    logs: tuple[LogLine, ...]
    folded: FoldedSteps | None = None
    resources: ResourceUse | None = None
    failure_group: str | None = None
    below: list[SpansBelow] | None = None


class CriticalStep(msgspec.Struct, gc=False):
    """A step on the critical path. ``scheduled_seconds``: how long the run waited before it for its scheduled time."""

    step_id: str
    step_name: str
    duration_seconds: float
    scheduled_seconds: float = 0.0


class WorkflowExecutionTimeline(msgspec.Struct, kw_only=True):
    """Timeline of an execution. Filters shorten ``step_timeline`` only; counts cover the whole execution.

    ``unaccounted_seconds`` is the time in which no step of the critical path ran: waits for a slot or for a scheduled
    time, and what the program did itself; together with ``critical_path_seconds`` it is the whole time of the run.
    ``cost_usd`` is what its steps spent, null if nothing says so; it and the tokens are without those of executions
    inside this one. ``parent_execution_id`` and ``parent_step_id`` name the execution and its step that this one ran
    inside. ``expected_end_at`` and ``usual_duration_seconds``: see `WorkflowExecutionResponse`. ``failure_group``
    is the id of the group of the failure that the execution failed with.
    """

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
    parent_execution_id: str | None
    parent_step_id: str | None
    critical_path: list[CriticalStep]
    critical_path_seconds: float
    unaccounted_seconds: float | None
    work_seconds: float
    parallelism: float | None
    cost_usd: float | None
    tokens_in: int
    tokens_out: int
    step_timeline: list[WorkflowStepTimelineEntry]
    expected_end_at: str | None = None
    usual_duration_seconds: float | None = None
    failure_group: str | None = None
    resources: RunUse | None = None


class ChromeTrace(msgspec.Struct, kw_only=True):
    """An execution in the Trace Event Format of Perfetto, speedscope and chrome://tracing. Times are microseconds."""

    displayTimeUnit: str  # noqa: N815 - named by the format
    traceEvents: list[Any]  # noqa: N815
    otherData: dict[str, Any]  # noqa: N815


class OtlpTraces(msgspec.Struct, kw_only=True):
    """Spans in the JSON encoding of OTLP."""

    resourceSpans: list[Any]  # noqa: N815 - named by the format
