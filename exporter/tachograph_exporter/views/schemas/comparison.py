"""Comparison of executions: response types."""

from __future__ import annotations

import msgspec


class ComparedRun(msgspec.Struct, kw_only=True):
    """An execution as one side of a comparison."""

    execution_id: str
    status: str
    started_at: str | None
    duration_seconds: float | None
    critical_path_seconds: float
    queued_seconds: float | None
    cost_usd: float | None
    tokens_in: int
    tokens_out: int
    error_message: str | None


class Baseline(msgspec.Struct, kw_only=True):
    """The usual as one side of a comparison: the completed executions of a range.

    ``average_cost_usd`` is null if none of them says what it cost.
    """

    start: str
    end: str
    execution_count: int
    average_duration_seconds: float | None
    p50: float | None
    p95: float | None
    average_cost_usd: float | None


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
    """One step, compared with the other execution or with the baseline; ``step_id`` is null if it is not in this one.

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

    step_id: str | None
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
    not_in_reference: bool
    retry_count: int
    queue_seconds: float | None
    scheduled_seconds: float | None
    blame: float | None
    cpu_seconds: float | None = None
    reference_cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    reference_peak_memory_bytes: int | None = None
    read_bytes: int | None = None
    reference_read_bytes: int | None = None
    written_bytes: int | None = None
    reference_written_bytes: int | None = None
    below: list[ComparedSpans] | None = None


class ExecutionComparison(msgspec.Struct, kw_only=True):
    """An execution compared with another one or with a baseline; steps with the largest blame first.

    ``culprit`` is the step to look at first, null if none stands out; ``sentence`` is the result in words.
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
