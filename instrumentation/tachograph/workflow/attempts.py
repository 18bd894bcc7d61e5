"""The attempts of one step: moments go in, events with their waits come out.

From its origin (the start of the execution, or of the step around it) to its end a step is always doing one of four
things: waiting for dependencies, queueing for a slot, running, or backing off before the next attempt. Every moment
books the time since the previous one to what the step was doing, so the four totals add up to the time from the
origin to the end. Used by the executor, by decorated code, for lost executions and for ingested spans.
"""

from __future__ import annotations

from typing import Final

from tachograph.events import Failure, StepFinished, StepReady, StepRetrying, StepStarted, StepStatus
from tachograph.identity import StepRef

_DEPENDENCY: Final = 0
_QUEUE: Final = 1
_BACKOFF: Final = 2
_RUN: Final = 3


class StepAttempts:
    """Accounts for the attempts of one step. All moments are unix nanoseconds.

    A moment before the previous one (clocks of several machines) counts as no time.

    Attributes:
        attempt: number of the latest attempt, counted from 1; 0 before the first.
        started_ns: start of the first attempt, None before it.
        attempt_started_ns: start of the latest attempt.
    """

    __slots__ = (
        "_activity", "_backoff_before", "_inputs", "_last_backoff_ns", "_last_queue_ns", "_queue_before", "_since_ns",
        "_totals", "attempt", "attempt_started_ns", "started_ns", "step",
    )  # fmt: skip

    def __init__(self, step: StepRef, origin_ns: int) -> None:
        self.step = step
        self.attempt = 0
        self.started_ns: int | None = None
        self.attempt_started_ns = 0
        self._activity = _DEPENDENCY
        self._since_ns = origin_ns
        self._totals = [0, 0, 0, 0]
        self._queue_before = self._backoff_before = self._last_queue_ns = self._last_backoff_ns = 0
        self._inputs: str | None = None

    @classmethod
    def resumed(
        cls,
        step: StepRef,
        *,
        attempt: int,
        started_ns: int,
        attempt_started_ns: int,
        since_ns: int,
        is_running: bool,
        dependency_ns: int = 0,
        queue_ns: int = 0,
        backoff_ns: int = 0,
        inputs: str | None = None,
    ) -> StepAttempts:
        """The attempts of a step as they were stored: running, or between two attempts.

        ``since_ns`` is the moment up to which time is already booked. ``queue_ns`` and ``backoff_ns`` are the latest
        attempt's own and stand for the totals, too.
        """
        attempts = cls(step, since_ns)
        attempts.attempt = attempt
        attempts.started_ns = started_ns
        attempts.attempt_started_ns = attempt_started_ns
        attempts._activity = _RUN if is_running else _BACKOFF
        attempts._totals = [dependency_ns, queue_ns, backoff_ns, 0]
        attempts._queue_before = attempts._last_queue_ns = queue_ns
        attempts._backoff_before = attempts._last_backoff_ns = backoff_ns
        attempts._inputs = inputs
        return attempts

    @property
    def run_ns(self) -> int:
        """Running time of all attempts that have ended."""
        return self._totals[_RUN]

    def _book(self, now_ns: int, activity: int) -> None:
        elapsed = now_ns - self._since_ns
        if elapsed > 0:
            self._totals[self._activity] += elapsed
        self._activity = activity
        self._since_ns = now_ns

    def ready(self, now_ns: int) -> StepReady:
        """The dependencies are met; from now on the step waits for a slot."""
        self._book(now_ns, _QUEUE)
        return StepReady(step=self.step, time_ns=now_ns)

    def backed_off(self, now_ns: int) -> None:
        """The backoff has passed; from now on the step waits for a slot."""
        self._book(now_ns, _QUEUE)

    def started(self, now_ns: int, inputs: str | None = None, *, attempt: int | None = None) -> StepStarted:
        """An attempt starts: the next one, or the one with the number ``attempt``.

        Without a moment of readiness before it, all the time since the origin was spent on dependencies, and all the
        time since the previous attempt on backing off.
        """
        if self._activity == _RUN:
            # The end of the previous attempt is unknown, so nothing proves that it ran for any time.
            self._activity = _BACKOFF
        self._book(now_ns, _RUN)
        dependency, queue, backoff, _ = self._totals
        self._last_queue_ns = queue - self._queue_before
        self._last_backoff_ns = backoff - self._backoff_before
        self._queue_before = queue
        self._backoff_before = backoff
        self.attempt = self.attempt + 1 if attempt is None else attempt
        self.attempt_started_ns = now_ns
        if self.started_ns is None:
            self.started_ns = now_ns
        self._inputs = inputs
        return StepStarted(
            step=self.step,
            time_ns=now_ns,
            attempt=self.attempt,
            dependency_ns=dependency if self.attempt == 1 else 0,
            queue_ns=self._last_queue_ns,
            backoff_ns=self._last_backoff_ns,
            inputs=inputs,
        )

    def retrying(self, now_ns: int, status: StepStatus, delay_ns: int, failure: Failure) -> StepRetrying:
        """The running attempt ended with ``status``; another one is due after ``delay_ns``."""
        self._book(now_ns, _BACKOFF)
        return StepRetrying(
            step=self.step,
            time_ns=now_ns,
            attempt=self.attempt,
            status=status,
            started_ns=self.attempt_started_ns,
            delay_ns=delay_ns,
            failure=failure,
            dependency_ns=self._totals[_DEPENDENCY] if self.attempt == 1 else 0,
            queue_ns=self._last_queue_ns,
            backoff_ns=self._last_backoff_ns,
        )

    def finished(
        self,
        now_ns: int,
        status: StepStatus,
        failure: Failure | None = None,
        output: str | None = None,
        *,
        attempt_ended_ns: int | None = None,
    ) -> StepFinished:
        """The step ends: with its running attempt, or stopped between two attempts.

        ``attempt_ended_ns`` is given where the end of the last attempt is known apart from the end of the step (spans
        tell both). Such attempts may overlap or outlast the step, so the running time is limited to the step's
        duration, and the rest of the duration is backoff.
        """
        is_between = self._activity != _RUN
        self._book(now_ns if attempt_ended_ns is None else attempt_ended_ns, _BACKOFF)
        totals = self._totals
        started_ns = now_ns if self.started_ns is None else self.started_ns
        if attempt_ended_ns is not None:
            duration, run = now_ns - started_ns, totals[_RUN]
            totals[_RUN], totals[_BACKOFF] = min(run, duration), max(0, duration - run)
        return StepFinished(
            step=self.step,
            time_ns=now_ns,
            status=status,
            attempt=self.attempt,
            started_ns=started_ns,
            attempt_started_ns=self.attempt_started_ns,
            dependency_ns=totals[_DEPENDENCY],
            queue_ns=totals[_QUEUE],
            backoff_ns=totals[_BACKOFF],
            run_ns=totals[_RUN],
            last_queue_ns=self._last_queue_ns,
            last_backoff_ns=self._last_backoff_ns,
            between_attempts=is_between,
            failure=failure,
            inputs=self._inputs,
            output=output,
        )


def start_of(event: StepRetrying | StepFinished) -> StepStarted:
    """The start of the attempt that ``event`` ends."""
    if isinstance(event, StepRetrying):
        started_ns, queue_ns, backoff_ns = event.started_ns, event.queue_ns, event.backoff_ns
    else:
        started_ns, queue_ns, backoff_ns = event.attempt_started_ns, event.last_queue_ns, event.last_backoff_ns
    return StepStarted(
        step=event.step,
        time_ns=started_ns,
        attempt=event.attempt,
        dependency_ns=event.dependency_ns if event.attempt == 1 else 0,
        queue_ns=queue_ns,
        backoff_ns=backoff_ns,
    )
