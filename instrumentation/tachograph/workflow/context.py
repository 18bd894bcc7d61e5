"""What a step's handler sees of the run around it, and how it reports while it runs."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import msgspec

from tachograph.events import Clock, Listener, StepCost, StepLogged, StepMeasured, StepRef, StepStatus
from tachograph.summary import mask_text

C = TypeVar("C", bound=msgspec.Struct)

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_REPORTS: Final = 10_000
"""Reports one step can make; later ones are left out, and the last one kept says so."""


class Tally:
    """How the steps of one execution ended, added up. Safe to use from any thread."""

    __slots__ = ("completed", "failed", "lock", "skipped", "steps", "work_ns")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.steps = self.completed = self.failed = self.skipped = self.work_ns = 0

    def add(self, status: StepStatus, work_ns: int = 0) -> None:
        """Count a step that ended; ``work_ns`` only where no step around it counts the same time."""
        with self.lock:
            self.steps += 1
            self.completed += status is StepStatus.COMPLETED
            self.failed += status in (StepStatus.FAILED, StepStatus.TIMEOUT)
            self.skipped += status is StepStatus.SKIPPED
            self.work_ns += work_ns


class Reporter:
    """A step's own reports (values, cost, log lines) as events. Safe to use from any thread.

    It is also how a step inside a step finds the one around it (``current_reporter``), its clock and its tally.
    """

    __slots__ = ("_sequence", "attempt", "clock", "emit", "repetitions", "started_ns", "step", "tally")

    def __init__(self, step: StepRef, emit: Listener, clock: Clock, tally: Tally) -> None:
        self.step = step
        self.attempt = 1
        self.started_ns = 0
        self.tally = tally
        self.repetitions: Counter[str] = Counter()
        self.emit = emit
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
                    attempt=self.attempt,
                    level="warning",
                    message=f"more than {MAX_REPORTS} reports in one step; the rest is left out",
                )
            )
        return None

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a value of the step's own, for instance ``measure("rows", 1200, "row")``."""
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
                    attempt=self.attempt,
                    name=name[:200],
                    value=float(value),
                    unit=unit[:50],
                )
            )

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the last such report; never negative."""
        if not math.isfinite(usd) or usd < 0 or tokens_in < 0 or tokens_out < 0:
            raise ValueError("cost() takes what was spent: finite numbers, zero or more")
        if (sequence := self._next()) is not None:
            self.emit(
                StepCost(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=sequence,
                    attempt=self.attempt,
                    usd=float(usd),
                    tokens_in=int(tokens_in),
                    tokens_out=int(tokens_out),
                    model=model[:200],
                )
            )

    def log(self, message: str, level: str = "info") -> None:
        """Keep a line beside the step's times: level debug, info, warning or error; secrets in it are masked."""
        if level not in LEVELS:
            raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
        if (sequence := self._next()) is not None:
            self.emit(
                StepLogged(
                    step=self.step,
                    time_ns=self.clock(),
                    sequence=sequence,
                    attempt=self.attempt,
                    message=mask_text(str(message)),
                    level=level,
                )
            )


current_reporter: ContextVar[Reporter | None] = ContextVar("tachograph_reporter", default=None)
"""The reporter of the step that runs here, if any."""


class StepContext:
    """What a handler is given. Read it, report through it; nothing in it can be changed.

    Attributes:
        inputs: the workflow's variables.
        outputs: outputs of the steps before this one, by step name.
        config: the step's config, references replaced.
        attempt: counted from 1.
        step: identity of the step (ids, names).
    """

    __slots__ = ("_carrier", "_reporter", "_stop", "attempt", "config", "inputs", "outputs", "step")

    def __init__(
        self,
        step: StepRef,
        *,
        attempt: int,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        config: Mapping[str, Any],
        reporter: Reporter,
        carrier: Callable[[], Mapping[str, str]],
    ) -> None:
        self.step = step
        self.attempt = attempt
        self.inputs = inputs
        self.outputs = outputs
        self.config = config
        self._reporter = reporter
        self._carrier = carrier
        self._stop: threading.Event | None = None

    @property
    def execution_id(self) -> str:
        """The execution this step belongs to."""
        return self.step.execution.execution_id

    @property
    def is_stopping(self) -> bool:
        """True once the step was cancelled or timed out: a function that runs in a thread should return soon."""
        return self._stop is not None and self._stop.is_set()

    def stop(self) -> None:
        """Ask the handler to stop; see `is_stopping`."""
        if self._stop is None:
            self._stop = threading.Event()
        self._stop.set()

    def propagation(self) -> Mapping[str, str]:
        """Headers (``traceparent``, ``tracestate``, ``baggage``) that carry the step's span to whoever it calls."""
        return self._carrier()

    def parse_config(self, kind: type[C]) -> C:
        """The config as ``kind`` (a `msgspec.Struct`). Raises `msgspec.ValidationError` naming the place."""
        return msgspec.convert({k: v for k, v in self.config.items() if k != "handler"}, kind, strict=False)

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a value of the step's own, for instance ``measure("rows", 1200, "row")``."""
        self._reporter.measure(name, value, unit)

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the last such report."""
        self._reporter.cost(usd, tokens_in, tokens_out, model)

    def log(self, message: str, level: str = "info") -> None:
        """Keep a line (debug, info, warning, error) beside the step's times."""
        self._reporter.log(message, level)
