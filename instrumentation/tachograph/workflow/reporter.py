"""How a step reports values, cost and log lines while it runs."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import weakref
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from tachograph.clock import Clock
from tachograph.events import (
    Listener,
    StepCost,
    StepEvent,
    StepFinished,
    StepLines,
    StepLogged,
    StepMeasured,
    StepReport,
    StepStacks,
)
from tachograph.folding import Repetitions
from tachograph.meter import Meter
from tachograph.names import clean_name, encodable
from tachograph.redaction import mask_text
from tachograph.running_attempts import Profile
from tachograph.summary import as_text
from tachograph.unmeasured import Unmeasured
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.step_counts import StepCounts

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_REPORTS: Final = 10_000
"""Reports per step. Later ones are dropped, and a warning among the kept ones says so."""
_UNIT_LIMIT: Final = 50


class Reporter:
    """Turns a step's reports (values, cost, log lines) into events. Safe to use from any thread.

    A step inside a step finds the outer one, its clock and its counts here (see ``current_reporter``).

    Attributes:
        is_open: until the step ends, also between its attempts. A context (of a thread, a pool, a task) may outlive the
            step whose reporter it holds; what runs there after the end is not inside that step.
        meter: measures what the running attempt uses, if anything does.
        thread, task: where the running attempt's code runs; see `tachograph.running_attempts`.
        profile: samples it, if anything does.
    """

    __slots__ = (
        "_sequence",
        "_task",
        "attempts",
        "clock",
        "counts",
        "emit",
        "is_open",
        "meter",
        "process",
        "profile",
        "repetitions",
        "step",
        "thread",
    )  # fmt: skip

    def __init__(self, attempts: StepAttempts, emit: Listener, clock: Clock, counts: StepCounts) -> None:
        self.attempts = attempts
        self.step = attempts.step
        self.counts = counts
        # Of the steps inside; made for the first of them.
        self.repetitions: Repetitions | None = None
        self.emit = emit
        self.process = os.getpid()
        self.clock = clock
        self.is_open = True
        self.meter: Meter | Unmeasured | None = None
        self.thread = 0
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self.profile: Profile | None = None
        self._sequence = itertools.count(1)

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task whose code the running attempt is; held weakly, for its result may hold what nobody else does."""
        return self._task() if self._task is not None else None

    @task.setter
    def task(self, task: asyncio.Task[Any] | None) -> None:
        self._task = weakref.ref(task) if task is not None else None

    def _next(self) -> int | None:
        number = next(self._sequence)
        if number < MAX_REPORTS:
            return number
        if number == MAX_REPORTS:
            self.emit(
                StepLogged(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=number,
                    attempt=self.attempts.attempt,
                    level="warning",
                    message=f"more than {MAX_REPORTS} reports in one step; the rest are dropped",
                )
            )
        return None

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a custom value, for instance ``measure("rows", 1200, "row")``."""
        if not name:
            raise ValueError("measure() needs a name")
        if not _is_finite(value):
            raise ValueError(f"measure({name!r}) needs a finite number, not {_shown(value)}")
        if (sequence := self._next()) is not None:
            self.emit(
                StepMeasured(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=sequence,
                    attempt=self.attempts.attempt,
                    name=clean_name(name),
                    value=float(value),
                    unit=encodable(unit, _UNIT_LIMIT),
                )
            )

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the previous report; never negative."""
        if not _is_finite(usd) or usd < 0 or tokens_in < 0 or tokens_out < 0:
            raise ValueError("cost() takes finite numbers, zero or more")
        if (sequence := self._next()) is not None:
            self.emit(
                StepCost(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=sequence,
                    attempt=self.attempts.attempt,
                    usd=float(usd),
                    tokens_in=int(tokens_in),
                    tokens_out=int(tokens_out),
                    model=clean_name(model),
                )
            )

    def relay(self, event: StepEvent) -> None:
        """Tell of what the step reported, or of a step inside it, where another process did the work."""
        if event.step.step_id != self.step.step_id:
            self.emit(event)
            if isinstance(event, StepFinished):
                self.counts.add(event.status)
        elif isinstance(event, StepLines | StepStacks):
            self.emit(msgspec.structs.replace(event, step=self.step, attempt=self.attempts.attempt))
        elif isinstance(event, StepReport) and (sequence := self._next()) is not None:
            # The other process counted from one, too.
            report = msgspec.structs.replace(event, step=self.step, sequence=sequence, attempt=self.attempts.attempt)
            self.emit(report)

    def log(self, message: Any, level: str = "info", at_ns: int | None = None) -> None:
        """Record a log line of the step (level debug, info, warning or error); secrets in it are masked.

        A message that is no text is summarised. ``at_ns``: when it was written, if not now.
        """
        if level not in LEVELS:
            raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
        if (sequence := self._next()) is not None:
            self.emit(
                StepLogged(
                    step=self.step,
                    time_ns=self.clock() if at_ns is None else at_ns,
                    sequence=sequence,
                    attempt=self.attempts.attempt,
                    message=mask_text(as_text(message)),
                    level=level,
                )
            )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False  # An integer beyond every float.


def _shown(value: float) -> str:
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else repr(value)


current_reporter: ContextVar[Reporter | None] = ContextVar("tachograph_reporter", default=None)
"""The reporter of the step that runs in the current context, or None."""
engine_reporter: ContextVar[Reporter | None] = ContextVar("tachograph_engine_reporter", default=None)
"""The reporter of the step that an engine executes in the current context: log records belong to it, steps do not."""
