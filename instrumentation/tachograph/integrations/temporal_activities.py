"""The attempts of an activity of Temporal.

The history has an activity's last attempt only, and only once it has ended. Of those before it the server says the
latest while the activity is under way; whoever looks often enough sees all of them.
"""

from __future__ import annotations

from typing import Any, Final

from tachograph.integrations.temporal_values import backoff_of, error_of, is_timeout, moment_of, seconds_of
from tachograph.report import Step

MAX_GUESSED_ATTEMPTS: Final = 100
"""Of so many attempts that nobody saw, the times are computed; of an activity that was tried more often, the last."""
_STARTED: Final = 2  # PENDING_ACTIVITY_STATE_STARTED


class Activity:
    """An activity that was scheduled.

    Attributes:
        seen: the last attempt of which anything was told.
        ended: the last attempt that is told to have failed.
    """

    def __init__(self, step: Step, scheduled_at: float, policy: Any) -> None:
        self.step = step
        self._policy = policy
        # When the last attempt that was told of began, or when the next one is due.
        self._begins = scheduled_at
        self.seen = 0
        self.ended = 0

    def look(self, pending: Any) -> None:
        """Tell of the attempt that is under way, or of the one before (``PendingActivityInfo``)."""
        started_at = moment_of(pending, "last_started_time")
        attempt = max(1, pending.attempt)
        failure = pending.last_failure
        if pending.state == _STARTED and started_at is not None:
            completed_at = moment_of(pending, "last_attempt_complete_time")
            if attempt - 1 > self.ended and attempt - 1 <= self.seen and completed_at is not None:
                self._fail(attempt - 1, completed_at, failure, max(0.0, started_at - completed_at))
            self.start(attempt, started_at, failure)
        elif attempt > 1 and started_at is not None:
            # It waits for its next attempt. What it says of a failure is about the last one.
            completed_at = moment_of(pending, "last_attempt_complete_time") or started_at
            self.start(attempt - 1, started_at, None)
            self._fail(attempt - 1, completed_at, failure, seconds_of(pending.current_retry_interval))

    def _fail(self, attempt: int, at: float, failure: Any, delay: float) -> None:
        self.fail(attempt, at, error_of(failure), delay, timed_out=is_timeout(failure))

    def start(self, attempt: int, at: float, failure: Any) -> None:
        """An attempt has started. Those before it that nobody saw failed, at times that follow from the policy.

        ``failure``: of the one before it, if that is known.
        """
        self._catch_up(attempt, at, failure)
        self._start(attempt, at)

    def _start(self, attempt: int, at: float) -> None:
        if attempt > self.seen:
            self.seen, self._begins = attempt, at
            self.step.started(attempt=attempt, at=at)

    def fail(self, attempt: int, at: float, error: str, delay: float, *, timed_out: bool = False) -> None:
        """An attempt has failed, and another one is due."""
        if attempt > self.ended:
            self.ended, self._begins = attempt, at + delay
            self.step.retrying(error, delay, timed_out=timed_out, attempt=attempt, at=at)

    def _catch_up(self, attempt: int, at: float, failure: Any) -> None:
        first = max(self.ended + 1, attempt - MAX_GUESSED_ATTEMPTS)
        pauses = [backoff_of(self._policy, earlier) for earlier in range(first, attempt)]
        if not pauses:
            return
        # They share the time that is left between the pauses.
        running = max(0.0, at - self._begins - sum(pauses)) / len(pauses)
        for earlier, pause in enumerate(pauses, first):
            begins = min(self._begins, at)
            self._start(earlier, begins)
            is_known = failure is not None and earlier == attempt - 1
            error = error_of(failure) if is_known else "Failed: Temporal keeps the last error only"
            self.fail(earlier, min(begins + running, at), error, pause, timed_out=is_known and is_timeout(failure))
