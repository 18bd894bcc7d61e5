"""The vocabulary: what can happen to an execution and its steps, as immutable values.

Every view of a run (spans, metrics, rows, stream) is made from these events and from nothing else. Applying an event
twice, or a later one first, must lead to the same final state, so a *finished* event repeats what the *started* one
said (times, waits, attempt).

Times are unix nanoseconds (``time_ns`` and every ``*_ns`` that names a moment) taken from one `AnchoredClock` per
execution; durations are nanoseconds too and equal the difference of the moments they lie between, so no view has to
choose between two clocks.
"""

from __future__ import annotations

import functools
import random
import time
import uuid
from enum import StrEnum
from typing import Final, Protocol, TypeAlias

import msgspec

NS: Final = 1_000_000_000
"""Nanoseconds in a second."""

_NAMESPACE: Final = uuid.UUID("6f1d4f0e-2c59-5c0e-9f0a-7a63686f6772")


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


# --- identity -------------------------------------------------------------------------------------------------------


def new_trace_id() -> str:
    """A random W3C trace id: 32 lower-case hex digits, never all zero."""
    return f"{random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """A random W3C span id: 16 lower-case hex digits, never all zero."""
    return f"{random.getrandbits(64) or 1:016x}"


def new_id(now_ns: int | None = None) -> str:
    """A time-ordered unique id: UUID version 7, RFC 9562 section 5.7 (48 bits of unix milliseconds, then random)."""
    millis = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    value = (millis & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | random.getrandbits(12) << 64
    value |= 0b10 << 62 | random.getrandbits(62)
    return str(uuid.UUID(int=value))


@functools.lru_cache(maxsize=1024)
def workspace_id(slug: str) -> str:
    """The id of the workspace with this slug, the same in every process."""
    return str(uuid.uuid5(_NAMESPACE, slug))


@functools.lru_cache(maxsize=4096)
def workflow_id(workspace: str, name: str) -> str:
    """The id of a workflow that nobody registered: known by its name in its workspace, the same in every process."""
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{name}"))


@functools.lru_cache(maxsize=16_384)
def step_id(workflow: str, name: str, index: int = 0) -> str:
    """The id of a step: its workflow's id and its name; ``index`` counts repetitions within one execution."""
    return str(uuid.uuid5(uuid.UUID(workflow), f"{name}#{index}" if index else name))


class ExecutionRef(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which execution an event is about; made once per run and shared by all its events.

    ``trace_id`` (32 hex digits) and ``span_id`` (16, the root span) are fixed here, before anything runs, so that a
    running execution can be looked up in a trace viewer and a crashed one closed under its real parent.
    """

    workspace: str
    workflow: str
    workflow_id: str
    execution_id: str
    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    version: str = "1"
    project: str = "default"


class StepRef(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which step of which execution an event is about.

    ``parent_span_id`` is the span the step's span hangs under: the execution's root, or the enclosing step's for a
    step inside a step (then ``parent_step_id`` names it). ``depends_on`` are step ids, ``links`` the span ids of those
    steps, in the same order. ``index`` counts repetitions of the same step within one execution.
    """

    execution: ExecutionRef
    step_id: str
    name: str
    span_id: str
    parent_span_id: str
    step_type: str = "task"
    step_order: int = 0
    index: int = 0
    depends_on: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    parent_step_id: str | None = None


def new_execution_ref(
    *,
    workspace: str,
    workflow: str,
    workflow_id: str,
    execution_id: str | None = None,
    parent: tuple[str, str] | None = None,
    version: str = "1",
    project: str = "default",
) -> ExecutionRef:
    """An execution about to be; ``parent`` is the caller's (trace id, span id), whose trace the run then continues."""
    return ExecutionRef(
        workspace=workspace,
        workflow=workflow,
        workflow_id=workflow_id,
        execution_id=execution_id or new_id(),
        trace_id=parent[0] if parent else new_trace_id(),
        span_id=new_span_id(),
        parent_span_id=parent[1] if parent else None,
        version=version,
        project=project,
    )


# --- clocks ---------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Anything that tells unix nanoseconds."""

    def __call__(self) -> int: ...


class AnchoredClock:
    """Unix nanoseconds that never step back: the wall clock read once, the monotonic clock added from then on.

    One clock serves one execution, so its times are consistent even when the machine's clock is set meanwhile.
    """

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.perf_counter_ns()

    def __call__(self) -> int:
        return self._offset + time.perf_counter_ns()


# --- events ---------------------------------------------------------------------------------------------------------


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
    `tachograph.analysis.critical_path` said of the steps.
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


def traceparent(trace_id: str, span_id: str, *, sampled: bool = True) -> str:
    """The W3C Trace Context header value, version 00 (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"
