"""The event vocabulary: what can happen to an execution and its steps, as immutable values.

Every view of a run (spans, metrics, rows, stream) is derived from these events alone. Applying an event twice, or out
of order, gives the same final state, so a *finished* event repeats the times, waits and attempt of its *started* event.

``time_ns`` and other ``*_ns`` fields that name a moment are unix nanoseconds from one `AnchoredClock` per execution.
Durations are nanoseconds and equal the difference of their two moments, so every view computes the same value.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol, TypeAlias

import msgspec

from tachograph.distribution import DistributionRow
from tachograph.expectation import Expectation
from tachograph.folded_stacks import FoldedStack, LongAttempt, StacksKind
from tachograph.identity import ExecutionRef, StepRef
from tachograph.resources import Resources as Resources
from tachograph.resources import UseTotals


class ExecutionStatus(StrEnum):
    """An execution's status. ``lost``: its process died or sent no heartbeat within the lease."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether the execution has ended. ``lost`` may still be replaced by a real outcome."""
        return self not in _OPEN_EXECUTION


class StepStatus(StrEnum):
    """A step's status. ``retrying``: an attempt failed and another is due."""

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
        """Whether the step has ended. ``lost`` may still be replaced by a real outcome."""
        return self not in OPEN_STEP


_OPEN_EXECUTION: Final = frozenset({ExecutionStatus.PENDING, ExecutionStatus.RUNNING})
OPEN_STEP: Final[frozenset[str]] = frozenset({StepStatus.PENDING, StepStatus.RUNNING, StepStatus.RETRYING})
"""Statuses of steps that have not ended."""

FAILED: Final[frozenset[str]] = frozenset({"failed", "timeout"})
"""Statuses of steps and attempts that count as failed, for instance in ``failed_step_count``."""
UNSUCCESSFUL: Final[frozenset[str]] = FAILED | {"lost"}
"""Statuses that count against a success rate. ``cancelled`` is neither a success nor a failure."""


class SkipReason(StrEnum):
    """Why a step did not start."""

    CONDITION = "condition"
    """Its condition was false."""
    UPSTREAM_SKIPPED = "upstream_skipped"
    """Its trigger rule cannot be met because upstream steps were skipped."""
    UPSTREAM_FAILED = "upstream_failed"
    """Its trigger rule cannot be met because upstream steps failed."""
    FALLBACK_NOT_NEEDED = "fallback_not_needed"
    """It is the fallback of a step that did not fail."""
    ITSELF = "itself"
    """It ran, and found that it had nothing to do."""
    EXECUTION_CANCELLED = "execution_cancelled"
    EXECUTION_TIMEOUT = "execution_timeout"
    EXECUTION_LOST = "execution_lost"


class Failure(msgspec.Struct, frozen=True, gc=False):
    """An exception's qualified type, message and stack, bounded and with secrets masked."""

    type: str
    message: str
    stack: str | None = None


class PathStep(msgspec.Struct, frozen=True, gc=False):
    """A step on an execution's critical path and the nanoseconds it contributes."""

    step_id: str
    step: str
    duration_ns: int


class _ExecutionEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", gc=False):
    execution: ExecutionRef
    time_ns: int


class ExecutionQueued(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="execution_queued"):
    """An execution was accepted and waits to start. ``inputs`` is a summary, as JSON text."""

    inputs: str | None = None
    process: str = ""


class ExecutionStarted(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="execution_started"):
    """An execution started. ``process`` owns it and sends heartbeats until it finishes.

    ``expects``: what its code or its definition expects of the workflow. ``is_resumed``: it had been told of as ended,
    because nothing of it went on that was known, and now something does.
    """

    step_count: int = 0
    inputs: str | None = None
    process: str = ""
    expects: Expectation | None = None
    is_resumed: bool = False


class ExecutionFinished(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="execution_finished"):
    """An execution reached a terminal status at ``time_ns``.

    ``work_ns`` is the total running time of all attempts of all steps; ``critical_path`` is computed by
    `tachograph.critical_path.critical_path`.
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
        """Time from start to end."""
        return self.time_ns - self.started_ns


class Heartbeat(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="heartbeat"):
    """The process that owns a running execution is alive.

    ``long``: attempts that have been running in it for a while, and are not sampled.
    """

    long: tuple[LongAttempt, ...] = ()


class WorkflowExpected(_ExecutionEvent, frozen=True, kw_only=True, gc=False, tag="workflow_expected"):
    """An engine's schedule, or the code of a step, says what is expected of a workflow; it belongs to no execution.

    Of ``execution`` only the workspace and the workflow count. ``source`` names who says so, such as ``celery beat``;
    ``code`` adds to what code says. ``expects`` is None when the schedule no longer exists.
    """

    source: str
    expects: Expectation | None = None


class _StepEvent(msgspec.Struct, frozen=True, tag_field="event", gc=False):
    step: StepRef
    time_ns: int

    @property
    def execution(self) -> ExecutionRef:
        """The execution that the step belongs to."""
        return self.step.execution


class StepReady(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_ready"):
    """A step's dependencies are met; from now on it waits only for a slot.

    ``is_planned``: it is known that there is such a step, and what it depends on; nothing has asked for it yet.
    ``asked_ns``: it was asked for then, and is not due before ``time_ns``; in between it is scheduled.
    """

    is_planned: bool = False
    asked_ns: int | None = None


class StepStarted(_StepEvent, frozen=True, gc=False, tag="step_started"):
    """An attempt started.

    The waits are those before *this* attempt: for dependencies, for a slot, for the backoff. ``unaccounted_ns`` is the
    time before the first attempt that nothing accounts for: the dependencies were met and nothing had asked for the
    step yet, so it is the program's own time. ``scheduled_ns`` is the time before the first attempt in which the step
    was asked for and not due yet: a countdown, or a time that whoever asked for it had chosen.
    """

    attempt: int = 1
    dependency_ns: int = 0
    unaccounted_ns: int = 0
    scheduled_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    inputs: str | None = None


class StepRetrying(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_retrying"):
    """An attempt ended at ``time_ns`` with ``status`` (failed or timeout); the next is due after ``delay_ns``."""

    attempt: int
    status: StepStatus
    started_ns: int
    delay_ns: int
    failure: Failure
    dependency_ns: int = 0
    unaccounted_ns: int = 0
    scheduled_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    resources: Resources | None = None


class StepFinished(_StepEvent, frozen=True, gc=False, tag="step_finished"):
    """A step ended at ``time_ns`` with its last attempt.

    ``started_ns`` is the start of the *first* attempt, ``attempt_started_ns`` that of the last. ``dependency_ns``,
    ``unaccounted_ns``, ``scheduled_ns``, ``queue_ns``, ``backoff_ns`` and ``run_ns`` are totals over all attempts and
    add up to the time from the start of the execution (for a nested step: of the enclosing step) to ``time_ns``. Where
    clocks differ, they add up within the execution's own time. ``last_queue_ns`` and ``last_backoff_ns`` belong to the
    last attempt alone. ``between_attempts``: the step was stopped while it waited for a retry, so a `StepRetrying`
    already reported its last attempt; also with ``attempt`` 0, of a step that was cancelled before it started, whose
    two starts are then the time of its end. ``resources`` are those of the last attempt.
    """

    status: StepStatus
    attempt: int
    started_ns: int
    attempt_started_ns: int
    dependency_ns: int = 0
    unaccounted_ns: int = 0
    scheduled_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    run_ns: int = 0
    last_queue_ns: int = 0
    last_backoff_ns: int = 0
    between_attempts: bool = False
    failure: Failure | None = None
    inputs: str | None = None
    output: str | None = None
    resources: Resources | None = None

    @property
    def duration_ns(self) -> int:
        """Time from the start of the first attempt to the end of the last, backoff included."""
        return self.time_ns - self.started_ns


class StepSkipped(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_skipped"):
    """A step will not start; or (``reason`` is itself) it did at ``started_ns``, and found nothing to do.

    In that case the other times are as in `StepFinished`.
    """

    reason: SkipReason
    attempt: int = 0
    started_ns: int | None = None
    dependency_ns: int = 0
    unaccounted_ns: int = 0
    scheduled_ns: int = 0
    queue_ns: int = 0
    backoff_ns: int = 0
    run_ns: int = 0


class FoldedRuns(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Totals over repetitions that ended with one status. Durations and waits are as in `StepFinished`.

    ``schema``, ``zero_count`` and ``buckets`` are the exponential histogram of their durations in seconds, ``classic``
    their counts by classic bucket (see `tachograph.distribution`; empty in what older versions recorded). ``use``: what
    they used of the machine, if anything is known of it.
    """

    count: int
    sum_ns: int
    min_ns: int
    max_ns: int
    last_ns: int
    retries: int
    dependency_ns: int
    unaccounted_ns: int
    queue_ns: int
    backoff_ns: int
    run_ns: int
    cost_nano_usd: int
    tokens_in: int
    tokens_out: int
    schema: int
    zero_count: int
    buckets: dict[int, int]
    classic: dict[int, int] = {}
    scheduled_ns: int = 0
    use: UseTotals | None = None


class FoldedMeasure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Totals over the values that repetitions reported under one name. ``total`` is an `ExactSum` as text."""

    name: str
    unit: str
    count: int
    total: str
    min: float
    max: float
    values: DistributionRow | None = None


class FoldedModel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What repetitions spent on one model."""

    model: str
    usd: float
    tokens_in: int
    tokens_out: int


class FoldedLog(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message that a repetition logged."""

    time_ns: int
    level: str
    message: str


class Folded(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What the repetitions of a step that are recorded together add up to so far.

    Attributes:
        sequence: grows with every change.
        running: repetitions that run now, the first of them since ``running_since_ns``.
        started_ns: start of the first repetition; its waits are ``dependency_ns``, ``unaccounted_ns`` and
            ``scheduled_ns``.
        ended_ns: end of the last repetition that ended; 0: none has.
        busy_ns: time in which at least one ran.
        by_status: totals of those that ended.
        after: ids of other steps that a repetition waited for, in between.
        failure: of the last repetition that failed.
        retrying: attempts after which another one was due, by their status.
        between_attempts: repetitions that were stopped while they waited for a retry, by their status.
        retries_started: attempts that started but for the first ones; ``backoff_count`` of them after some backoff,
            ``backoff_ns`` in all.
        unaccounted_count: repetitions with unaccounted time before them.
        logs: the last messages.
        waits: how the waits of the attempts that started are distributed, by their reason.
        uses: how what the attempts used is distributed: ``cpu`` in nanoseconds, ``memory`` (the peak) in bytes.
    """

    sequence: int
    running: int
    started_ns: int
    ended_ns: int
    busy_ns: int
    running_since_ns: int = 0
    dependency_ns: int = 0
    unaccounted_ns: int = 0
    scheduled_ns: int = 0
    by_status: dict[str, FoldedRuns] = {}
    after: tuple[str, ...] = ()
    failure: Failure | None = None
    measures: tuple[FoldedMeasure, ...] = ()
    retrying: dict[str, int] = {}
    between_attempts: dict[str, int] = {}
    retries_started: int = 0
    backoff_count: int = 0
    backoff_ns: int = 0
    unaccounted_count: int = 0
    models: tuple[FoldedModel, ...] = ()
    logs: tuple[FoldedLog, ...] = ()
    waits: dict[str, DistributionRow] = {}
    uses: dict[str, DistributionRow] = {}

    @property
    def count(self) -> int:
        """Number of repetitions, those that run included."""
        return self.running + sum(runs.count for runs in self.by_status.values())

    @property
    def retries(self) -> int:
        """Number of retries."""
        return sum(runs.retries for runs in self.by_status.values())

    @property
    def run_ns(self) -> int:
        """Total running time of the repetitions that ended."""
        return sum(runs.run_ns for runs in self.by_status.values())

    @property
    def status(self) -> StepStatus:
        """Running, or else the worst status among the repetitions."""
        if self.running:
            return StepStatus.RUNNING
        return next((status for status in _WORST_FIRST if status in self.by_status), StepStatus.COMPLETED)


_WORST_FIRST: Final = (StepStatus.FAILED, StepStatus.TIMEOUT, StepStatus.LOST, StepStatus.CANCELLED)


class StepsFolded(_StepEvent, frozen=True, kw_only=True, gc=False, tag="steps_folded"):
    """What the folded repetitions of a step add up to; the newest replaces all before. ``is_final``: no more follow.

    They have the events of any other step besides (with `StepRef.folded_as`), which listeners may decline.
    """

    folded: Folded
    is_final: bool = False


class StepStacks(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_stacks"):
    """What an attempt is doing, or has been doing since sampling began; of each kind the newest replaces all before.

    Attributes:
        kind: ``now``: its stacks at ``time_ns``, because somebody asked by ``request``. ``profile``: since
            ``started_ns``.
        stacks: what was seen, the most frequent first.
        samples: how often was looked.
        interval_ns: the time that one count stands for; 0 of ``now``.
        dropped: counts of stacks that are left out, because there are too many different ones.
        cut: samples of stacks whose outer frames are left out.
    """

    attempt: int
    kind: StacksKind
    stacks: tuple[FoldedStack, ...]
    request: str = ""
    started_ns: int = 0
    samples: int = 0
    interval_ns: int = 0
    dropped: int = 0
    cut: int = 0


class _Report(_StepEvent, frozen=True, kw_only=True, gc=False):
    # Unique within the step, so that a report delivered twice counts once.
    sequence: int
    attempt: int = 1


class StepMeasured(_Report, frozen=True, kw_only=True, gc=False, tag="step_measured"):
    """A step reported a custom value."""

    name: str
    value: float
    unit: str = ""


class StepCost(_Report, frozen=True, kw_only=True, gc=False, tag="step_cost"):
    """A step reported US dollars and tokens spent since its previous report."""

    usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""


class StepLogged(_Report, frozen=True, kw_only=True, gc=False, tag="step_logged"):
    """A step logged a message."""

    message: str
    level: str = "info"


class StepLine(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A line that code wrote while it did a step's work.

    ``number`` counts the lines that its writer had for the attempt, from 1: where numbers are missing, lines were
    dropped. ``severity`` is OpenTelemetry's number. ``failure``: the exception that was logged with it.
    """

    number: int
    time_ns: int
    severity: int
    message: str
    logger: str = ""
    failure: Failure | None = None


class StepLines(_StepEvent, frozen=True, kw_only=True, gc=False, tag="step_lines"):
    """Lines that code wrote while it did the work of an attempt: log records, or a command's output.

    ``writer`` tells the processes apart that write lines of one attempt; a command's output is written by
    `OUTPUT_WRITER`.
    """

    lines: tuple[StepLine, ...]
    writer: str
    attempt: int = 1


OUTPUT_WRITER: Final = "output"

ExecutionEvent: TypeAlias = ExecutionQueued | ExecutionStarted | ExecutionFinished | Heartbeat | WorkflowExpected
StepReport: TypeAlias = StepMeasured | StepCost | StepLogged
StepEvent: TypeAlias = (
    StepReady
    | StepStarted
    | StepRetrying
    | StepFinished
    | StepSkipped
    | StepsFolded
    | StepStacks
    | StepLines
    | StepReport
)
Event: TypeAlias = ExecutionEvent | StepEvent


class Listener(Protocol):
    """Receives one event at a time, in order for each execution."""

    def __call__(self, event: Event, /) -> None: ...
