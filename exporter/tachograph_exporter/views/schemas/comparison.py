"""Runs compared, as the API answers it."""

from __future__ import annotations

import msgspec


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
