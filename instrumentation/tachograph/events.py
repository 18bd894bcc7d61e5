"""The vocabulary: what can happen to an execution and its steps, as immutable values.

Every view of a run (spans, metrics, rows, stream) is made from these events and from nothing else. Applying an event
twice, or a later one first, must lead to the same final state, so a *finished* event repeats what the *started* one
said (times, waits, attempt).

Times are unix nanoseconds (``time_ns`` and every ``*_ns`` that names a moment) taken from one `AnchoredClock` per
execution; durations are nanoseconds too and equal the difference of the moments they lie between, so no view has to
choose between two clocks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol, TypeAlias

import msgspec

from tachograph.identity import ExecutionRef, StepRef


class ExecutionStatus(StrEnum):
    """Where an execution stands. ``lost``: its process died, no heartbeat came within the lease."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more can happen to the execution (``lost`` yields only to a real outcome)."""
        return self not in _OPEN_EXECUTION


class StepStatus(StrEnum):
    """Where a step stands. ``retrying``: an attempt failed and another one is due."""

    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more can happen to the step (``lost`` yields only to a real outcome)."""
        return self not in _OPEN_STEP


_OPEN_EXECUTION: Final = frozenset({ExecutionStatus.PENDING, ExecutionStatus.RUNNING})
_OPEN_STEP: Final = frozenset({StepStatus.PENDING, StepStatus.RUNNING, StepStatus.RETRYING})


class SkipReason(StrEnum):
    """Why a step never started."""

    CONDITION = "condition"
    """Its condition was false."""
    UPSTREAM_SKIPPED = "upstream_skipped"
    """Its trigger rule could not be met because steps before it were skipped."""
    UPSTREAM_FAILED = "upstream_failed"
    """Its trigger rule could not be met because steps before it failed."""
    FALLBACK_NOT_NEEDED = "fallback_not_needed"
    """It stands in for a step that did not fail."""
    EXECUTION_CANCELLED = "execution_cancelled"
    EXECUTION_TIMEOUT = "execution_timeout"
    EXECUTION_LOST = "execution_lost"


class Failure(msgspec.Struct, frozen=True, gc=False):
    """What went wrong: the exception's qualified type, its message and its stack (bounded, secrets masked)."""

    type: str
    message: str
    stack: str | None = None


class PathStep(msgspec.Struct, frozen=True, gc=False):
    """One step on an execution's critical path and the nanoseconds it contributes."""

    step_id: str
    step: str
    duration_ns: int


class _ExecutionEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", gc=False):
    execution: ExecutionRef
    time_ns: int


class ExecutionQueued(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="execution_queued"):
    """An execution was accepted and waits to start. ``inputs`` is a summary (JSON text)."""

    inputs: str | None = None
    process: str = ""


class ExecutionStarted(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="execution_started"):
    """An execution began; ``process`` owns it and must send heartbeats until it finishes."""

    step_count: int = 0
    inputs: str | None = None
    process: str = ""


class ExecutionFinished(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="execution_finished"):
    """An execution reached a terminal status at ``time_ns``.

    ``work_ns`` is the running time of all attempts of all steps added up; ``critical_path`` is what
    `tachograph.critical_path.critical_path` said of the steps.
    """

    status: ExecutionStatus
    started_ns: int
    step_count: int
    completed_step_count: int = 0
    failed_step_count: int = 0
    skipped_step_count: int = 0
    work_ns: int = 0
    critical_path: tuple[PathStep, ...] = ()
    failure: Failure | None = None
    inputs: str | None = None

    @property
    def duration_ns(self) -> int:
        """From the start of the execution to its end."""
        return self.time_ns - self.started_ns


class Heartbeat(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="heartbeat"):
    """The process that owns a running execution is alive."""


class _StepEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", gc=False):
    step: StepRef
    time_ns: int

    @property
    def execution(self) -> ExecutionRef:
        """The execution the step belongs to."""
        return self.step.execution


class StepReady(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_ready"):
    """All that a step waited for is there; from now on it waits for a slot only."""


class StepStarted(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_started"):
    """An attempt began. The waits before *this* attempt: for dependencies, for the backoff to pass, for a slot."""

    attempt: int = 1
    dependency_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    inputs: str | None = None


class StepRetrying(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_retrying"):
    """An attempt ended at ``time_ns`` with ``status`` (failed or timeout); another is due after ``delay_ns``."""

    attempt: int
    status: StepStatus
    started_ns: int
    delay_ns: int
    failure: Failure
    dependency_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0


class StepFinished(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_finished"):
    """A step ended at ``time_ns`` with its last attempt.

    ``started_ns`` is the start of the *first* attempt, ``attempt_started_ns`` that of the last. ``dependency_ns``,
    ``queue_ns``, ``backoff_ns`` and ``run_ns`` are totals over all attempts and add up to the time from the start of
    the execution (or, for a step inside a step, of the step around it) to ``time_ns``. ``last_queue_ns`` and
    ``last_backoff_ns`` are the last attempt's own. ``between_attempts``: it was stopped while it waited to try again,
    so its last attempt has already been told by a `StepRetrying`.
    """

    status: StepStatus
    attempt: int
    started_ns: int
    attempt_started_ns: int
    dependency_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    run_ns: int = 0
    last_queue_ns: int = 0
    last_backoff_ns: int = 0
    between_attempts: bool = False
    failure: Failure | None = None
    inputs: str | None = None
    output: str | None = None

    @property
    def duration_ns(self) -> int:
        """From the start of the first attempt to the end of the last, the backoff between them included."""
        return self.time_ns - self.started_ns


class StepSkipped(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_skipped"):
    """A step will never start."""

    reason: SkipReason


class _Report(_StepEvent, frozen=True, kw_only=True, gc=False):
    # Unique within the step: a report delivered twice is one report.
    sequence: int
    attempt: int = 1


class StepMeasured(_Report, frozen=True, kw_only=True, gc=False, tag="step_measured"):
    """A step reported a value of its own."""

    name: str
    value: float
    unit: str = ""


class StepCost(_Report, frozen=True, kw_only=True, gc=False, tag="step_cost"):
    """A step reported money (US dollars) and tokens spent, since its last such report."""

    usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""


class StepLogged(_Report, frozen=True, kw_only=True, gc=False, tag="step_logged"):
    """A step said something worth keeping beside its times."""

    message: str
    level: str = "info"


ExecutionEvent: TypeAlias = ExecutionQueued | ExecutionStarted | ExecutionFinished | Heartbeat
StepReport: TypeAlias = StepMeasured | StepCost | StepLogged
StepEvent: TypeAlias = StepReady | StepStarted | StepRetrying | StepFinished | StepSkipped | StepReport
Event: TypeAlias = ExecutionEvent | StepEvent


class Listener(Protocol):
    """Turns one event into its own world, and nothing else. Called in order for each execution."""

    def __call__(self, event: Event, /) -> None: ...
