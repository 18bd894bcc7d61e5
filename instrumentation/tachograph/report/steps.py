"""A step of a run that somebody else executes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, Self

from msgspec.structs import replace

from tachograph import running_attempts
from tachograph.clock import NS, Clock
from tachograph.events import (
    Event,
    Failure,
    Resources,
    SkipReason,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStatus,
)
from tachograph.identity import StepRef
from tachograph.recording.open_execution import ABANDONED
from tachograph.report.safely import Error, Moment, failure_of, safely
from tachograph.summary import summarise
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.reporter import Reporter, engine_reporter
from tachograph.workflow.step_counts import StepCounts

MAX_ATTEMPT: Final = (1 << 31) - 1
MAX_DELAY_SECONDS: Final = 366 * 86_400.0


class Owner(Protocol):
    """The run of a step: `tachograph.report.Run`."""

    @property
    def clock(self) -> Clock: ...
    @property
    def counts(self) -> StepCounts: ...
    def step_id(self, key: object, index: int | str | None = None) -> str: ...
    def span_id(self, step_id: str) -> str: ...
    def known(self, step_id: str) -> Sequence[Step]: ...
    def reporting(self, at: Moment) -> AbstractContextManager[int]: ...
    def moment(self, at: Moment) -> int: ...
    def emit(self, event: Event) -> None: ...
    def begin_if_needed(self, now_ns: int) -> None: ...
    def origin_of(self, ref: StepRef, now_ns: int) -> int: ...
    def met_ns(self, ref: StepRef, now_ns: int, earliest_ns: int | None = None) -> int: ...
    def opened(self, step: Step) -> None: ...
    def closed(self, step: Step) -> None: ...
    def ended(self, step: Step, status: StepStatus, run_ns: int) -> None: ...


class Step:
    """A step; each method reports something that happened to it, now or ``at`` a moment, and returns the step.

    Nothing needs to be reported in order, or by one process, and anything may be reported again. Methods never raise.
    `Run.step` makes steps.
    """

    def __init__(self, run: Owner, ref: StepRef) -> None:
        self.run = run
        self.ref = ref
        self._attempts: StepAttempts | None = None
        self._ready_ns: int | None = None
        self._asked_ns: int | None = None
        self._status: StepStatus | None = None
        self._retried = 0
        self._reporter: Reporter | None = None
        self._last: StepFinished | None = None

    @property
    def id(self) -> str:
        """The step's id, the same in every execution of its workflow."""
        return self.ref.step_id

    @property
    def finished_ns(self) -> int | None:
        """When it ended, unix nanoseconds, if that was reported here."""
        return self._last.time_ns if self._last is not None else None

    def refer_to(self, child_execution_id: str) -> None:
        """An execution is this step's work; what is reported of the step from now on names it."""
        self.ref = replace(self.ref, child_execution_id=child_execution_id)
        if self._attempts is not None:
            self._attempts.step = self.ref

    @property
    def started_ns(self) -> int | None:
        """When its first attempt started, unix nanoseconds, if that was reported here."""
        return self._attempts.started_ns if self._attempts is not None else None

    @property
    def is_open(self) -> bool:
        """Whether an attempt of it runs here."""
        return self._status is StepStatus.RUNNING

    def depend_on(self, *steps: Step | str) -> None:
        """Add dependencies. What was already reported of the step gets them with its next report."""
        known = dict.fromkeys(self.ref.depends_on)
        ids = [step.ref.step_id if isinstance(step, Step) else self.run.step_id(step) for step in steps]
        new = [step_id for step_id in dict.fromkeys(ids) if step_id not in known and step_id != self.ref.step_id]
        if new:
            links = [
                span_id
                for step_id in new
                for span_id in [step.ref.span_id for step in self.run.known(step_id)] or [self.run.span_id(step_id)]
            ]
            self.ref = replace(self.ref, depends_on=(*self.ref.depends_on, *new), links=(*self.ref.links, *links))
            if self._attempts is not None:
                self._attempts.step = self.ref
            if self._reporter is not None:
                self._reporter.step = self.ref

    @safely
    def planned(self, *, at: Moment = None) -> None:
        """There is such a step; nothing has asked for it yet. If nobody ever does, it is skipped when its run ends."""
        with self.run.reporting(at) as now:
            self.run.emit(StepReady(step=self.ref, time_ns=now, is_planned=True))

    @safely
    def queued(self, *, at: Moment = None, due: Moment = None) -> None:
        """Somebody asked for it: from now on it waits for what it depends on, and then for somebody to run it.

        ``due``: it is not to start before this moment, such as that of a countdown; until then it is scheduled.
        """
        with self.run.reporting(at) as now:
            if self._status is None and self._ready_ns is None:
                ready_ns = self._asked_for(now, due)
                self.run.emit(StepReady(step=self.ref, time_ns=ready_ns, asked_ns=self._asked_ns))

    def _asked_for(self, asked_ns: int, due: Moment) -> int:
        """Note when it was asked for; returns when it is due."""
        due_ns = self.run.moment(due) if due is not None else asked_ns
        self._ready_ns = ready_ns = max(asked_ns, due_ns)
        self._asked_ns = asked_ns if due_ns > asked_ns else None
        return ready_ns

    @safely
    def started(
        self,
        *,
        attempt: int | None = None,
        inputs: Any = None,
        at: Moment = None,
        queued_at: Moment = None,
        due: Moment = None,
    ) -> None:
        """An attempt started: number ``attempt``, counted from 1 (default: the next one that this process knows of).

        ``queued_at``, ``due``: when somebody asked for this attempt, and for when, if another process reported that.
        """
        with self.run.reporting(at) as now:
            if queued_at is None and due is not None:
                queued_at = due
            queued_ns = self.run.moment(queued_at) if queued_at is not None else None
            if self._status is not None and self._status.is_terminal and self._status is not StepStatus.LOST:
                return  # It is told again, or late.
            if attempt is None and self._status is StepStatus.RUNNING:
                return
            number = _number(attempt, self._attempts)
            if self._attempts is not None and self._attempts.attempt >= number:
                return
            self.run.begin_if_needed(now)
            attempts = self._attempts
            if attempts is None:
                if queued_ns is not None:
                    ready_ns = self._asked_for(queued_ns, due)
                    if self._asked_ns is not None and self.ref.depends_on:
                        # When those ended, another process may know: then what is scheduled follows from this.
                        self.run.emit(StepReady(step=self.ref, time_ns=ready_ns, asked_ns=self._asked_ns))
                asked_ns = self._ready_ns if self._asked_ns is None else self._asked_ns
                earliest = now if asked_ns is None else min(now, asked_ns)
                attempts = self._attempts = StepAttempts(self.ref, self.run.origin_of(self.ref, earliest))
                met_ns = self.run.met_ns(self.ref, now, earliest)
                if self._ready_ns is not None and number == 1:
                    ready_ns = max(min(self._ready_ns, now), met_ns)
                    attempts.ready(ready_ns, met_ns, self._asked_ns)
                elif self._ready_ns is not None:
                    # Earlier attempts ran elsewhere; only how long this one was queued is known here.
                    attempts.backed_off(min(self._ready_ns, now))
                event = attempts.started(now, summarise(inputs), attempt=number, ready_ns=met_ns)
            else:
                if queued_ns is not None:
                    due_ns = self.run.moment(due) if due is not None else queued_ns
                    attempts.backed_off(min(max(queued_ns, due_ns), now))
                event = attempts.started(now, summarise(inputs), attempt=number)
            self._status = StepStatus.RUNNING
            if self._reporter is not None:
                self._reporter.attempts, self._reporter.is_open = attempts, True
            self.run.opened(self)
            self.run.emit(event)

    @safely
    def retrying(
        self,
        error: Error = None,
        delay: float = 0.0,
        *,
        timed_out: bool = False,
        attempt: int | None = None,
        resources: Resources | None = None,
        at: Moment = None,
    ) -> None:
        """The running attempt failed with ``error``, and another one is due in ``delay`` seconds.

        ``attempt``: its number, for a process that did not report its start.
        """
        with self._left_in_any_case(), self.run.reporting(at) as now:
            attempts = self._running(now, attempt)
            if attempts is None or self._retried >= attempts.attempt:
                return
            self._retried = attempts.attempt
            delay_ns = round(min(max(0.0, float(delay)), MAX_DELAY_SECONDS) * NS)
            status = StepStatus.TIMEOUT if timed_out else StepStatus.FAILED
            self._status = StepStatus.RETRYING
            self._leave()
            self.run.emit(attempts.retrying(now, status, delay_ns, failure_of(error), resources))
            self.run.closed(self)

    @safely
    def finished(
        self,
        output: Any = None,
        *,
        attempt: int | None = None,
        resources: Resources | None = None,
        at: Moment = None,
    ) -> None:
        """It ended well. Of ``output`` a summary is kept, with secrets masked. ``attempt``: as in `retrying`."""
        self._end(StepStatus.COMPLETED, at, None, attempt, output=summarise(output), resources=resources)

    @safely
    def failed(
        self,
        error: Error = None,
        *,
        attempt: int | None = None,
        resources: Resources | None = None,
        at: Moment = None,
    ) -> None:
        """It failed with ``error``, an exception or a text, and is not tried again."""
        self._end(StepStatus.FAILED, at, failure_of(error), attempt, resources=resources)

    @safely
    def timed_out(
        self,
        error: Error = None,
        *,
        attempt: int | None = None,
        resources: Resources | None = None,
        at: Moment = None,
    ) -> None:
        """It took longer than it may, and is not tried again."""
        self._end(StepStatus.TIMEOUT, at, failure_of(error, "Timeout"), attempt, resources=resources)

    @safely
    def cancelled(self, error: Error = None, *, attempt: int | None = None, at: Moment = None) -> None:
        """Somebody stopped its ``attempt``, or took it back before it started."""
        self._end(StepStatus.CANCELLED, at, failure_of(error, "Cancelled") if error is not None else None, attempt)

    @safely
    def lost(self, error: Error = None, *, attempt: int | None = None, at: Moment = None) -> None:
        """Its process died. If another process ends it after all, that counts."""
        self._end(StepStatus.LOST, at, failure_of(error, "Lost"), attempt)

    @safely
    def skipped(self, reason: SkipReason | str = SkipReason.CONDITION, *, at: Moment = None) -> None:
        """It will not run; or it did, and found that it had nothing to do. ``reason``: a `SkipReason`."""
        why = SkipReason(reason) if reason in SkipReason.__members__.values() else SkipReason.CONDITION
        with self._left_in_any_case(), self.run.reporting(at) as now:
            if self._has_ended(StepStatus.SKIPPED):
                return
            self.run.begin_if_needed(now)
            event = StepSkipped(step=self.ref, time_ns=now, reason=why)
            if self._attempts is not None:
                end = self._attempts.finished(now, StepStatus.COMPLETED)
                event = StepSkipped(
                    step=self.ref, time_ns=now, reason=SkipReason.ITSELF, attempt=end.attempt,
                    started_ns=end.started_ns, dependency_ns=end.dependency_ns, unaccounted_ns=end.unaccounted_ns,
                    scheduled_ns=end.scheduled_ns, queue_ns=end.queue_ns, backoff_ns=end.backoff_ns, run_ns=end.run_ns,
                )  # fmt: skip
            self._settle(StepStatus.SKIPPED, event, 0)

    @safely
    def log(self, message: Any, level: str = "info") -> None:
        """Record a log line of the step; secrets in it are masked."""
        self._reports().log(message, level)

    @safely
    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Record a value that the step measured."""
        self._reports().measure(name, value, unit)

    @safely
    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Record US dollars and tokens that the step spent since its previous report."""
        self._reports().cost(usd, tokens_in, tokens_out, model)

    @safely
    def works_here(self) -> None:
        """The calling thread does the work of the running attempt: until it ends, its stacks can be asked for."""
        running_attempts.begin(self._reports())

    @contextlib.contextmanager
    def _left_in_any_case(self) -> Iterator[None]:
        """An attempt that ends does no work here any more, even if its end cannot be reported."""
        try:
            yield
        except Exception:
            self._leave()
            raise

    def _leave(self) -> None:
        if self._reporter is not None:
            running_attempts.end(self._reporter)

    @contextlib.contextmanager
    def logs(self) -> Iterator[Self]:
        """Records of `logging` that the code inside emits are lines of the step, until its running attempt ends.

        From which level on, `tachograph.configure` says. Nothing that goes wrong here reaches the code.
        """
        self.collect_logs()
        try:
            yield self
        finally:
            self.collect_no_logs()

    @safely
    def collect_logs(self) -> None:
        """From now on, log records of the calling context are lines of the step; see `logs`."""
        engine_reporter.set(self._reports())

    @safely
    def collect_no_logs(self) -> None:
        """Undo `collect_logs`."""
        engine_reporter.set(None)

    def _reports(self) -> Reporter:
        if self._reporter is None:
            attempts = self._attempts or StepAttempts(self.ref, self.run.clock())
            self._reporter = Reporter(attempts, self.run.emit, self.run.clock, self.run.counts)
        elif self._attempts is not None:
            # They may not have been known when it was made.
            self._reporter.attempts = self._attempts
        return self._reporter

    def _running(self, now: int, attempt: int | None = None) -> StepAttempts | None:
        """The attempts of a step that ends, or whose attempt does; if nothing told that it started, it does now."""
        if self._status is not None and self._status.is_terminal:
            return None
        if self._attempts is None:
            self.run.begin_if_needed(now)
            self._attempts = StepAttempts(self.ref, self.run.origin_of(self.ref, now))
            self._attempts.started(now, attempt=_number(attempt, None), ready_ns=self.run.met_ns(self.ref, now))
        elif attempt is not None and _number(attempt, None) > self._attempts.attempt:
            self._attempts.started(now, attempt=attempt)  # It began elsewhere.
        return self._attempts

    def _has_ended(self, status: StepStatus) -> bool:
        """Whether it is already told how it ended; only a real outcome replaces ``lost``."""
        known = self._status
        return known is not None and known.is_terminal and (known is not StepStatus.LOST or status is known)

    def abandon(self, now_ns: int) -> None:
        """Its run ended here while an attempt of it ran."""
        self._end_at(now_ns, StepStatus.LOST, ABANDONED)

    def _end(
        self,
        status: StepStatus,
        at: Moment,
        failure: Failure | None,
        attempt: int | None,
        *,
        output: str | None = None,
        resources: Resources | None = None,
    ) -> None:
        with self._left_in_any_case(), self.run.reporting(at) as now:
            self._end_at(now, status, failure, attempt, output, resources)

    def _end_at(
        self,
        now: int,
        status: StepStatus,
        failure: Failure | None,
        attempt: int | None = None,
        output: str | None = None,
        resources: Resources | None = None,
    ) -> None:
        if self._has_ended(status):
            return
        if self._attempts is None and attempt is None and status is StepStatus.CANCELLED:
            self.run.begin_if_needed(now)
            self._settle(status, self._taken_back(now, failure), 0)
            return
        if self._status is StepStatus.LOST:
            self._status = StepStatus.RUNNING
        attempts = self._running(now, attempt)
        if attempts is None:
            return
        event = attempts.finished(max(now, attempts.attempt_started_ns), status, failure, output)
        if resources is not None:
            event = replace(event, resources=resources)
        self._last = event
        self._settle(status, event, attempts.run_ns)

    def _taken_back(self, now: int, failure: Failure | None) -> StepFinished:
        """The end of a step that was cancelled before it started: no attempt was made."""
        waits = StepAttempts(self.ref, self.run.origin_of(self.ref, now))
        if self._ready_ns is not None:
            ready_ns = min(self._ready_ns, now)
            waits.ready(ready_ns, self.run.met_ns(self.ref, ready_ns), self._asked_ns)
        waits.started(now)
        event = waits.finished(now, StepStatus.CANCELLED, failure)
        return replace(event, attempt=0, between_attempts=True)

    def _settle(self, status: StepStatus, event: Event, run_ns: int) -> None:
        self._status = status
        if self._reporter is not None:
            self._reporter.is_open = False
        self._leave()
        self.run.emit(event)
        self.run.ended(self, status, run_ns)


def _number(attempt: int | None, attempts: StepAttempts | None) -> int:
    if attempt is None:
        return attempts.attempt + 1 if attempts is not None else 1
    if type(attempt) is not int or not 1 <= attempt <= MAX_ATTEMPT:
        raise ValueError(f"attempt={attempt!r}: expected a number of 1 or more")
    return attempt
