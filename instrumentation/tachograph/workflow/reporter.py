"""How a step reports values, cost and log lines while it runs."""

from __future__ import annotations

import itertools
import math
import os
from contextvars import ContextVar
from typing import Final

from tachograph.clock import Clock
from tachograph.events import Listener, StepCost, StepLogged, StepMeasured
from tachograph.folding import Repetitions
from tachograph.redaction import mask_text
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.step_counts import StepCounts

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_REPORTS: Final = 10_000
"""Reports per step. Later ones are dropped, and a warning among the kept ones says so."""


class Reporter:
    """Turns a step's reports (values, cost, log lines) into events. Safe to use from any thread.

    A step inside a step finds the outer one, its clock and its counts here (see ``current_reporter``).
    """

    __slots__ = ("_sequence", "attempts", "clock", "counts", "emit", "is_open", "process", "repetitions", "step")

    def __init__(self, attempts: StepAttempts, emit: Listener, clock: Clock, counts: StepCounts) -> None:
        self.attempts = attempts
        self.step = attempts.step
        self.counts = counts
        # Of the steps inside; made for the first of them.
        self.repetitions: Repetitions | None = None
        self.emit = emit
        self.is_open = True
        self.process = os.getpid()
        self.clock = clock
        self._sequence = itertools.count(1)

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
        if not math.isfinite(value):
            raise ValueError(f"measure({name!r}) needs a finite number, not {value!r}")
        if (sequence := self._next()) is not None:
            self.emit(
                StepMeasured(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=sequence,
                    attempt=self.attempts.attempt,
                    name=name[:200],
                    value=float(value),
                    unit=unit[:50],
                )
            )

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the previous report; never negative."""
        if not math.isfinite(usd) or usd < 0 or tokens_in < 0 or tokens_out < 0:
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
                    model=model[:200],
                )
            )

    def log(self, message: str, level: str = "info") -> None:
        """Record a log line of the step (level debug, info, warning or error); secrets in it are masked."""
        if level not in LEVELS:
            raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
        if (sequence := self._next()) is not None:
            self.emit(
                StepLogged(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=sequence,
                    attempt=self.attempts.attempt,
                    message=mask_text(str(message)),
                    level=level,
                )
            )


current_reporter: ContextVar[Reporter | None] = ContextVar("tachograph_reporter", default=None)
"""The reporter of the step that runs in the current context, or None."""
