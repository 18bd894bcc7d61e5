"""What a step's handler sees of its execution, and how it reports while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from tachograph import meter, running_attempts
from tachograph.events import StepEvent
from tachograph.identity import StepRef
from tachograph.meter import Meter
from tachograph.resources import Resources
from tachograph.workflow.reporter import Reporter

log = logging.getLogger(__name__)
C = TypeVar("C", bound=msgspec.Struct)


class StepContext:
    """A handler's argument: inputs to read, and methods to report with.

    Attributes:
        inputs: the workflow's variables.
        outputs: outputs of completed steps, by step name.
        config: the step's config with references resolved.
        attempt: number of the attempt, counted from 1.
        step: identity of the step (ids, names).
        resources: what the attempt used of the machine, once a runner has measured it; None: not known.
    """

    __slots__ = ("_carrier", "_reporter", "_stop", "attempt", "config", "inputs", "outputs", "resources", "step")

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
        self.resources: Resources | None = None

    @property
    def execution_id(self) -> str:
        """The execution this step belongs to."""
        return self.step.execution.execution_id

    @property
    def reporter(self) -> Reporter:
        """What the attempt's events come from. For a `Runner`."""
        return self._reporter

    @property
    def attempt_started_ns(self) -> int:
        """When the attempt started, unix nanoseconds."""
        return self._reporter.attempts.attempt_started_ns or 0

    @property
    def is_stopping(self) -> bool:
        """True once the step was cancelled or timed out. A function that runs in a thread should then return soon."""
        return self._stop is not None and self._stop.is_set()

    def stop(self) -> None:
        """Ask the handler to stop; see `is_stopping`."""
        if self._stop is None:
            self._stop = threading.Event()
        self._stop.set()

    def start_measuring(self, *, is_on_loop: bool = False) -> None:
        """From now on the calling thread does the attempt's work. For a `Runner` that runs it in this process.

        ``is_on_loop``: other tasks of an event loop may run on the thread meanwhile.
        """
        try:
            running_attempts.begin(self._reporter, is_on_loop=is_on_loop)
            self._reporter.meter = meter.start(None, is_on_loop, True)
        except Exception:
            log.exception("not measured: what step %r uses of the machine", self.step.name)

    def stop_measuring(self) -> None:
        """The attempt's work is done: `resources` are what it used since `start_measuring`."""
        try:
            if isinstance(running := self._reporter.meter, Meter):
                self.resources = running.stop()
            running_attempts.end(self._reporter)
        except Exception:
            log.exception("not measured: what step %r used of the machine", self.step.name)

    def used(self, resources: Resources) -> None:
        """Tell what the attempt used, where a command did all of its work."""
        if isinstance(running := self._reporter.meter, Meter):
            running.give(resources)

    def relay(self, event: StepEvent) -> None:
        """Tell of what the handler reported, or of a step inside it, where another process did the work."""
        self._reporter.relay(event)

    def propagation(self) -> Mapping[str, str]:
        """Headers (``traceparent``, ``tracestate``, ``baggage``) that propagate the step's span to what it calls."""
        return self._carrier()

    def parse_config(self, kind: type[C]) -> C:
        """The config as ``kind`` (a `msgspec.Struct`). Raises `msgspec.ValidationError` naming the place."""
        return msgspec.convert({k: v for k, v in self.config.items() if k != "handler"}, kind, strict=False)

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a custom value, for instance ``measure("rows", 1200, "row")``."""
        self._reporter.measure(name, value, unit)

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money (US dollars) and tokens spent since the previous report."""
        self._reporter.cost(usd, tokens_in, tokens_out, model)

    def log(self, message: Any, level: str = "info", *, at_ns: int | None = None) -> None:
        """Record a log line of the step (level debug, info, warning or error).

        ``at_ns``: when it was written (unix nanoseconds), if not now.
        """
        self._reporter.log(message, level, at_ns)
