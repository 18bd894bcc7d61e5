"""APScheduler 3: ``tachograph.integrations.apscheduler.instrument(scheduler)``.

Each time a job runs is a run of the workflow that is called like the job, with one step of the same name. Cron and
interval triggers are taken over as what is expected of it, for as long as the job exists and is not paused.

Events of the scheduler tell when a job was submitted, not when its executor came to it: a job that waits for a free
thread already seems to run.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from datetime import datetime
from typing import Any, Final

from tachograph.quiet_log import QuietLog
from tachograph.report import Run, expect, expect_no_more, run

quiet = QuietLog(logging.getLogger(__name__))

SOURCE: Final = "apscheduler"
_MAX_OPEN: Final = 10_000
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PART: Final = r"(?:\*|(?:\d+|[a-z]{3})(?:-(?:\d+|[a-z]{3}))?)(?:/\d+)?"
_PARTS: Final = re.compile(f"{_PART}(?:,{_PART})*", re.ASCII)
_listeners: Final[weakref.WeakKeyDictionary[Any, _Listener]] = weakref.WeakKeyDictionary()


def instrument(scheduler: Any) -> None:
    """Report the runs of a scheduler's jobs, and take over their triggers. Never raises.

    Call it before or after the scheduler is started; once, or again without effect.
    """
    try:
        from apscheduler import events

        if scheduler not in _listeners:
            listener = _listeners[scheduler] = _Listener(scheduler)
            scheduler.add_listener(listener, events.EVENT_ALL)
            listener.look_at_jobs()
    except Exception:
        quiet.exception("instrument", "the scheduler is not instrumented")


def uninstrument(scheduler: Any) -> None:
    """Take back what `instrument` did. What is expected stays until its jobs are removed by hand. Never raises."""
    try:
        listener = _listeners.pop(scheduler, None)
        if listener is not None:
            scheduler.remove_listener(listener)
    except Exception:
        quiet.exception("uninstrument", "the scheduler is not uninstrumented")


class _Listener:
    """Receives the events of one scheduler. Never raises."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = weakref.ref(scheduler)
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        # Jobs may share a name, and then no schedule is that of the workflow.
        self._schedules: dict[str, dict[str, tuple[str, str] | None]] = {}
        self._open: dict[str, Run] = {}

    def __call__(self, event: Any) -> None:
        try:
            self._receive(event)
        except Exception:
            quiet.exception(
                getattr(event, "code", 0), "not reported: event %s of a scheduler", getattr(event, "code", "")
            )

    def _receive(self, event: Any) -> None:
        from apscheduler import events

        code = event.code
        if code in (events.EVENT_SCHEDULER_STARTED, events.EVENT_JOBSTORE_ADDED):
            self.look_at_jobs()
        elif code in (events.EVENT_JOB_ADDED, events.EVENT_JOB_MODIFIED):
            self._look_at(event.job_id, event.jobstore)
        elif code == events.EVENT_JOB_REMOVED:
            self._forget(event.job_id)
        elif code == events.EVENT_ALL_JOBS_REMOVED:
            for job_id in list(self._names):
                if self._job(job_id) is None:
                    self._forget(job_id)
        elif code == events.EVENT_JOB_SUBMITTED:
            for moment in event.scheduled_run_times:
                self._begin(event, moment)
        elif code == events.EVENT_JOB_MAX_INSTANCES:
            for moment in event.scheduled_run_times:
                self._end(event, moment, "cancelled", "MaxInstances: as many instances of the job as may run did run")
        elif code == events.EVENT_JOB_MISSED:
            self._end(event, event.scheduled_run_time, "failed", "Missed: it was not started in time")
        elif code == events.EVENT_JOB_ERROR:
            self._end(event, event.scheduled_run_time, "failed", event.exception)
        elif code == events.EVENT_JOB_EXECUTED:
            self._end(event, event.scheduled_run_time, "finished", event.retval)

    def look_at_jobs(self) -> None:
        """Take note of all jobs. Those of a scheduler that has not started are not decided yet."""
        scheduler = self._scheduler()
        if scheduler is not None and scheduler.running:
            for job in scheduler.get_jobs():
                self._note(job)

    def _job(self, job_id: str, jobstore: str | None = None) -> Any:
        scheduler = self._scheduler()
        return scheduler.get_job(job_id, jobstore) if scheduler is not None else None

    def _look_at(self, job_id: str, jobstore: str | None) -> None:
        job = self._job(job_id, jobstore)
        if job is not None:
            self._note(job)

    def _note(self, job: Any) -> None:
        name = str(job.name or job.id)
        before = self._names.get(job.id)
        if before is not None and before != name:
            self._forget(job.id)
        self._names[job.id] = name
        schedule = None
        if getattr(job, "next_run_time", None) is not None:
            schedule = schedule_of(job.trigger)
        with self._lock:
            self._schedules.setdefault(name, {})[job.id] = schedule
        self._tell(name)

    def _forget(self, job_id: str) -> None:
        name = self._names.get(job_id)
        if name is not None:
            with self._lock:
                self._schedules.get(name, {}).pop(job_id, None)
            self._tell(name)

    def _tell(self, name: str) -> None:
        """Say what is expected of a workflow, by the jobs of that name that there are now."""
        with self._lock:
            schedules = list(self._schedules.get(name, {}).values())
            if not schedules:
                self._schedules.pop(name, None)
        if len(schedules) == 1 and schedules[0] is not None:
            text, zone = schedules[0]
            if expect(name, text, timezone=zone, source=SOURCE):
                return
        expect_no_more(name, source=SOURCE)

    def _run_of(self, event: Any, moment: datetime) -> tuple[str, Run]:
        name = self._names.get(event.job_id)
        if name is None:
            self._look_at(event.job_id, event.jobstore)
            name = self._names.get(event.job_id, str(event.job_id))
        key = f"{event.job_id}@{moment.isoformat()}"
        return name, run(name, run_id=key, engine="apscheduler")

    def _begin(self, event: Any, moment: datetime) -> None:
        name, reported = self._run_of(event, moment)
        if reported.is_ended:
            return  # A job that is quick has ended before its submission is told.
        self._open[reported.run_id] = reported
        while len(self._open) > _MAX_OPEN:
            self._open.pop(next(iter(self._open)))
        reported.begin(inputs={"scheduled": moment.isoformat()})
        reported.step(name).started()

    def _end(self, event: Any, moment: datetime, outcome: str, value: Any) -> None:
        name, reported = self._run_of(event, moment)
        began = self._open.pop(reported.run_id, None) is not None
        at = None if began else moment
        reported.begin(inputs={"scheduled": moment.isoformat()}, at=at)
        step = reported.step(name)
        if outcome == "finished":
            step.started(at=at).finished(value)
            reported.finished()
        elif outcome == "cancelled":
            step.cancelled(value)
            reported.cancelled(value)
        else:
            if isinstance(value, BaseException):
                step.started(at=at)
            step.failed(value)
            reported.failed(value)


def schedule_of(trigger: Any) -> tuple[str, str] | None:
    """A trigger as an expectation's schedule and its zone; None if it cannot be one."""
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.interval import IntervalTrigger

    zone = getattr(trigger, "timezone", None)
    name = str(getattr(zone, "key", None) or getattr(zone, "zone", None) or "UTC")
    if isinstance(trigger, IntervalTrigger):
        return f"every {trigger.interval_length:g}s", name
    if isinstance(trigger, CronTrigger):
        text = _cron_of({field.name: str(field) for field in trigger.fields})
        return (text, name) if text is not None else None
    return None


def _cron_of(fields: dict[str, str]) -> str | None:
    if fields["year"] != "*" or fields["week"] != "*" or fields["second"] != "0":
        return None
    day, weekday = fields["day"], fields["day_of_week"]
    if day != "*" and weekday != "*":
        return None  # Both must hold here; in cron, either.
    parts = [fields["minute"], fields["hour"], day, fields["month"], _weekdays(weekday)]
    return " ".join(parts) if all(_PARTS.fullmatch(part) for part in parts) else None


def _weekdays(text: str) -> str:
    """Days of the week as cron has them: numbers count from Monday here, from Sunday there."""
    if text.startswith("*"):
        return text if text == "*" else _every_other(text)
    return re.sub(r"(?<![/\d])[0-6](?!\d)", lambda match: _DAYS[int(match[0])], text)


def _every_other(text: str) -> str:
    step = int(text.partition("/")[2] or 1)
    return ",".join(_DAYS[::step])
