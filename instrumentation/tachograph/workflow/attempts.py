"""The attempts of one step: moments go in, events with their waits come out.

From its origin (the start of the execution, or of the step around it) to its end a step is always doing one of six
things: waiting for dependencies, waiting for the program to come to it (unaccounted), waiting for the time that it was
asked for (scheduled), queueing for a slot, running, or backing off before the next attempt. Every moment books the time
since the previous one to what the step was doing, so the six totals add up to the time from the origin to the end. The
executor, decorated code, lost executions and ingested spans all use it.
"""

from __future__ import annotations

from typing import Final

from tachograph.events import Failure, StepFinished, StepReady, StepRetrying, StepSkipped, StepStarted, StepStatus
from tachograph.identity import StepRef
from tachograph.resources import Resources

_WAITING: Final = 0
_QUEUED: Final = 1
_RUNNING: Final = 2
_BACKING_OFF: Final = 3


class StepAttempts:
    """Accounts for the attempts of one step. All moments are unix nanoseconds.

    A moment before the previous one (clocks of several machines) counts as that one, so no time is booked twice.

    Attributes:
        attempt: number of the latest attempt, counted from 1; 0 before the first.
        started_ns: start of the first attempt, None before it.
        attempt_started_ns: start of the latest attempt.
        run_ns: running time of all attempts that have ended.
    """

    __slots__ = (
        "_activity", "_backoff_ns", "_dependency_ns", "_first_queue_ns", "_inputs", "_last_backoff_ns",
        "_last_queue_ns", "_next_backoff_ns", "_queue_ns", "_scheduled_ns", "_since_ns", "_unaccounted_ns", "attempt",
        "attempt_started_ns", "run_ns", "started_ns", "step",
    )  # fmt: skip

    def __init__(self, step: StepRef, origin_ns: int) -> None:
        self.step = step
        self.attempt = 0
        self.started_ns: int | None = None
        self._activity = _WAITING
        self._since_ns = origin_ns
        self.run_ns = self._dependency_ns = self._queue_ns = self._backoff_ns = self._next_backoff_ns = 0
        self._unaccounted_ns = self._scheduled_ns = self._first_queue_ns = 0

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
        unaccounted_ns: int = 0,
        scheduled_ns: int = 0,
        queue_ns: int = 0,
        backoff_ns: int = 0,
        run_ns: int = 0,
        last_queue_ns: int | None = None,
        last_backoff_ns: int | None = None,
        inputs: str | None = None,
    ) -> StepAttempts:
        """The attempts of a step as they were stored: running, or between two attempts.

        ``since_ns`` is the moment up to which time is already booked. ``queue_ns``, ``backoff_ns`` and ``run_ns`` are
        the totals so far, ``last_queue_ns`` and ``last_backoff_ns`` the latest attempt's own (default: the totals).
        """
        attempts = cls(step, since_ns)
        attempts.attempt = attempt
        attempts.started_ns = started_ns
        attempts.attempt_started_ns = attempt_started_ns
        attempts._activity = _RUNNING if is_running else _BACKING_OFF
        attempts._dependency_ns = dependency_ns
        attempts._unaccounted_ns = unaccounted_ns
        attempts._scheduled_ns = scheduled_ns
        attempts._queue_ns = queue_ns
        attempts._last_queue_ns = queue_ns if last_queue_ns is None else last_queue_ns
        attempts._backoff_ns = backoff_ns
        attempts._last_backoff_ns = backoff_ns if last_backoff_ns is None else last_backoff_ns
        attempts.run_ns = run_ns
        attempts._inputs = inputs
        return attempts

    def _elapsed(self, now_ns: int) -> int:
        elapsed = now_ns - self._since_ns
        if elapsed <= 0:
            return 0
        self._since_ns = now_ns
        return elapsed

    def ready(self, now_ns: int, met_ns: int | None = None, asked_ns: int | None = None) -> StepReady:
        """From now on the step waits for a slot. Its dependencies were met at ``met_ns``, by default now.

        Nothing accounts for the time between the two; or it was asked for at ``asked_ns``, for a later time, and what
        comes after that (and after its dependencies) is scheduled.
        """
        self._dependency_ns = self._elapsed(now_ns if met_ns is None else min(met_ns, now_ns))
        if met_ns is not None:
            self._unaccounted_ns = self._elapsed(now_ns if asked_ns is None else min(asked_ns, now_ns))
        if asked_ns is not None:
            self._scheduled_ns = self._elapsed(now_ns)
        self._activity = _QUEUED
        is_scheduled = asked_ns is not None and asked_ns < now_ns
        return StepReady(step=self.step, time_ns=now_ns, asked_ns=asked_ns if is_scheduled else None)

    def backed_off(self, now_ns: int) -> None:
        """The backoff has passed; from now on the step waits for a slot."""
        self._next_backoff_ns = elapsed = self._elapsed(now_ns)
        self._backoff_ns += elapsed
        self._activity = _QUEUED

    def started(
        self, now_ns: int, inputs: str | None = None, *, attempt: int | None = None, ready_ns: int | None = None
    ) -> StepStarted:
        """An attempt starts: the next one, or the one with the number ``attempt``.

        Without `ready` or `backed_off` before it, all the time since the origin was spent on dependencies, and all
        the time since the previous attempt on backing off. ``ready_ns``: the first attempt of a step that nobody
        queues (a call in a program) could have started then; nothing accounts for the time since.
        """
        since_ns = self._since_ns
        activity, elapsed = self._activity, now_ns - since_ns
        if elapsed < 0:
            elapsed = 0
        else:
            self._since_ns = now_ns
        queue_ns, backoff_ns = 0, self._next_backoff_ns
        if activity == _QUEUED:
            queue_ns = elapsed
            self._queue_ns += elapsed
        elif activity == _WAITING:
            if ready_ns is not None and ready_ns < now_ns:
                self._dependency_ns = dependency_ns = ready_ns - since_ns if ready_ns > since_ns else 0
                self._unaccounted_ns = elapsed - dependency_ns
            else:
                self._dependency_ns = elapsed
        else:
            # Backing off; or the end of the previous attempt is unknown, and nothing proves that it ran for any time.
            backoff_ns = elapsed
            self._backoff_ns += elapsed
        self._activity = _RUNNING
        self.attempt_started_ns = now_ns
        self._last_queue_ns = queue_ns
        self._last_backoff_ns = backoff_ns
        self._next_backoff_ns = 0
        self.attempt = attempt = self.attempt + 1 if attempt is None else attempt
        if self.started_ns is None:
            self.started_ns = now_ns
            self._first_queue_ns = queue_ns
        self._inputs = inputs
        return StepStarted(
            step=self.step,
            time_ns=now_ns,
            attempt=attempt,
            dependency_ns=self._dependency_ns if attempt == 1 else 0,
            unaccounted_ns=self._unaccounted_ns if attempt == 1 else 0,
            scheduled_ns=self._scheduled_ns if attempt == 1 else 0,
            queue_ns=queue_ns,
            backoff_ns=backoff_ns,
            inputs=inputs,
        )

    def retrying(
        self,
        now_ns: int,
        status: StepStatus,
        delay_ns: int,
        failure: Failure,
        resources: Resources | None = None,
    ) -> StepRetrying:
        """The running attempt ends with ``status``; another one is due after ``delay_ns``."""
        self.run_ns += self._elapsed(now_ns)
        self._activity = _BACKING_OFF
        return StepRetrying(
            step=self.step,
            time_ns=now_ns,
            attempt=self.attempt,
            status=status,
            started_ns=self.attempt_started_ns,
            delay_ns=delay_ns,
            failure=failure,
            dependency_ns=self._dependency_ns if self.attempt == 1 else 0,
            unaccounted_ns=self._unaccounted_ns if self.attempt == 1 else 0,
            scheduled_ns=self._scheduled_ns if self.attempt == 1 else 0,
            queue_ns=self._last_queue_ns,
            backoff_ns=self._last_backoff_ns,
            resources=resources,
        )

    def finished(
        self,
        now_ns: int,
        status: StepStatus,
        failure: Failure | None = None,
        output: str | None = None,
        *,
        attempt_ended_ns: int | None = None,
        resources: Resources | None = None,
    ) -> StepFinished:
        """The step ends: with its running attempt, or stopped between two attempts.

        ``attempt_ended_ns`` is given where the end of the last attempt is known apart from the end of the step (spans
        tell both). Such attempts may outlast the step, so the running time is limited to the step's duration, and the
        rest of the duration is backoff, but for the queue of later attempts. Time in which two attempts overlap counts
        once.
        """
        activity = self._activity
        started_ns = self.started_ns
        assert started_ns is not None  # noqa: S101 - a step that never started is skipped
        if attempt_ended_ns is not None:
            duration_ns = max(0, now_ns - started_ns)
            queued_ns = min(self._queue_ns - self._first_queue_ns, duration_ns)
            self._queue_ns = self._first_queue_ns + queued_ns
            run_ns = self.run_ns + self._elapsed(attempt_ended_ns)
            self.run_ns = min(run_ns, duration_ns - queued_ns)
            self._backoff_ns = max(0, duration_ns - queued_ns - run_ns)
        elif activity == _RUNNING:
            if now_ns > self._since_ns:
                self.run_ns += now_ns - self._since_ns
        elif activity == _QUEUED:
            self._queue_ns += self._elapsed(now_ns)
        else:
            self._backoff_ns += self._elapsed(now_ns)
        # By position: nineteen names take 4 µs, a tenth of what it takes to record a step.
        return StepFinished(
            self.step,
            now_ns,
            status,
            self.attempt,
            started_ns,
            self.attempt_started_ns,
            self._dependency_ns,
            self._unaccounted_ns,
            self._scheduled_ns,
            self._queue_ns,
            self._backoff_ns,
            self.run_ns,
            self._last_queue_ns,
            self._last_backoff_ns,
            between_attempts=activity != _RUNNING,
            failure=failure,
            inputs=self._inputs,
            output=output,
            resources=resources,
        )


def start_of(event: StepRetrying | StepFinished | StepSkipped) -> StepStarted:
    """The start of the attempt that ``event`` ends; of one that skipped itself, too."""
    if isinstance(event, StepSkipped):
        started_ns, queue_ns, backoff_ns = event.started_ns or event.time_ns, event.queue_ns, event.backoff_ns
    elif isinstance(event, StepRetrying):
        started_ns, queue_ns, backoff_ns = event.started_ns, event.queue_ns, event.backoff_ns
    else:
        started_ns, queue_ns, backoff_ns = event.attempt_started_ns, event.last_queue_ns, event.last_backoff_ns
    return StepStarted(
        step=event.step,
        time_ns=started_ns,
        attempt=event.attempt,
        dependency_ns=event.dependency_ns if event.attempt == 1 else 0,
        unaccounted_ns=event.unaccounted_ns if event.attempt == 1 else 0,
        scheduled_ns=event.scheduled_ns if event.attempt == 1 else 0,
        queue_ns=queue_ns,
        backoff_ns=backoff_ns,
    )
