"""What the time of a step went into: waiting for a slot, attempts that failed with the waits between them, and work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from tachograph_exporter.store.samples import SampledRun, SampledStep
from tachograph_exporter.views.causes.statistics import median


class TimedParts(Protocol):
    """A step that has run, as its row has it. Times are unix nanoseconds."""

    @property
    def started_ns(self) -> int | None: ...
    @property
    def attempt_started_ns(self) -> int | None: ...
    @property
    def finished_ns(self) -> int | None: ...
    @property
    def queue_ns(self) -> int | None: ...


class Parts(NamedTuple):
    """Nanoseconds: waited for a slot; failed attempts and the waits after them; the last attempt."""

    queue_ns: int
    retries_ns: int
    last_ns: int

    @property
    def total_ns(self) -> int:
        """The time from ready to the end: what a comparison calls the step's time."""
        return self.queue_ns + self.retries_ns + self.last_ns


def parts_of(step: TimedParts) -> Parts | None:
    """The parts of a step; None if it never started or has not ended."""
    started, finished = step.started_ns, step.finished_ns
    if started is None or finished is None:
        return None
    last_started = step.attempt_started_ns if step.attempt_started_ns is not None else started
    last_ns = max(0, finished - max(started, last_started))
    return Parts(step.queue_ns or 0, max(0, finished - started - last_ns), last_ns)


def usual_parts(steps: Iterable[SampledStep]) -> Parts:
    """The median of each part. Of no steps: zeros."""
    parts = [each for step in steps if (each := parts_of(step)) is not None]
    return Parts(
        round(median([part.queue_ns for part in parts])),
        round(median([part.retries_ns for part in parts])),
        round(median([part.last_ns for part in parts])),
    )


def steps_of(runs: Sequence[SampledRun], step_id: str) -> list[SampledStep]:
    """The step of each run that has it and in which it is one step, not many that share a row."""
    steps = (run.steps.get(step_id) for run in runs)
    return [step for step in steps if step is not None and step.folded_count is None]
