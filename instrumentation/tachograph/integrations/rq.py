"""RQ: ``tachograph.integrations.rq.instrument()`` where jobs are sent, and workers of its class.

    rq worker --worker-class tachograph.integrations.rq.Worker

A run is what was sent together: jobs that depend on one another, a group, a block `together`, and all that these jobs
send. A job is a step, its retries are attempts. Which run a job belongs to is in its ``meta``.

RQ has no hook for a whole queue or worker but the methods of its classes, which it lets subclasses override;
`instrument` overrides the public ones in place. A work horse reports its job, from when RQ says that it started; the
worker's parent process sends heartbeats, and takes over what it reports; when a work horse dies, the parent tells.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar, Token
from datetime import datetime
from typing import Any, Final, NamedTuple

from tachograph.integrations.overriding import Overriding
from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_of
from tachograph.integrations.running import RunningTask, running_task
from tachograph.integrations.sending import Sending, together
from tachograph.integrations.traces import enter_trace, leave_trace
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))

_FLUSH_SECONDS: Final = 2.0
_MAX_SKIPPED: Final = 1_000
_methods: Final = Overriding()
_sending: Final = Sending("rq")
_places: Final = Memory()
"""Places of the jobs that were sent here, by id: what depends on them is sent next."""
_due: ContextVar[float | None] = ContextVar("tachograph_rq_due", default=None)
_working: Final = Memory()
"""What is known of the jobs that run in this process, by id."""


class _Failure(NamedTuple):
    place: Place
    delay: float


def instrument() -> None:
    """Report what happens to RQ's jobs: call it where jobs are sent, and in workers (or use the class `Worker`).

    Where things are recorded is said by `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises,
    and never into RQ.
    """
    try:
        if not _methods.is_on:
            _override()
    except Exception:
        quiet.exception("instrument", "RQ is not instrumented")
        uninstrument()


def uninstrument() -> None:
    """Take everything back that `instrument` did. Never raises."""
    _methods.restore()
    _sending.clear()
    for memory in (_places, _working):
        memory.clear()


def __getattr__(name: str) -> Any:
    """RQ's own classes of workers, instrumented: ``Worker``, ``SimpleWorker``, ``SpawnWorker``, …"""
    if not name.endswith("Worker") or name.startswith("_"):
        raise AttributeError(name)
    import rq.worker

    workers = getattr(rq.worker, name)
    instrument()
    return workers


def _override() -> None:
    from rq import Queue
    from rq.job import Job
    from rq.worker import BaseWorker, SimpleWorker, Worker

    _methods.override(Queue, "enqueue_at", before=_before_enqueue_at, after=_after_enqueue_at)
    _methods.override(Queue, "create_job", after=_job_created)
    _methods.override(Queue, "enqueue_job", before=_before_enqueue, after=_after_enqueue)
    _methods.override(Queue, "enqueue_many", after=_after_enqueue)
    _methods.override(Queue, "schedule_job", before=_before_schedule)
    _methods.override(Job, "retry", before=_before_retry)
    _methods.override(Job, "cancel", after=_job_cancelled)
    _methods.override(Job, "perform", before=_before_function, after=_job_performed)
    for kind in (Worker, SimpleWorker):
        _methods.override(kind, "execute_job", before=_job_starts, after=_job_left)
    _methods.override(BaseWorker, "perform_job", before=_before_perform, after=_after_perform)
    _methods.override(BaseWorker, "handle_exception", before=_exception)
    _methods.override(BaseWorker, "handle_job_success", before=_before_success, after=_job_succeeded)
    _methods.override(BaseWorker, "handle_job_failure", before=_before_failure, after=_job_failed)
    _methods.override(BaseWorker, "handle_job_retry", before=_before_asked_retry, after=_job_asked_retry)


# Where jobs are sent.


def _before_enqueue_at(queue: Any, datetime: datetime, *_: Any, **__: Any) -> Token[float | None]:
    return _due.set(_due_at(datetime))


def _due_at(moment: datetime) -> float:
    """When RQ enqueues a job that is scheduled for a moment: it knows whole seconds."""
    return float(math.floor(moment.timestamp()))


def _after_enqueue_at(token: Token[float | None], *_: Any, **__: Any) -> None:
    _due.reset(token)
    leave_trace()


def _after_enqueue(*_: Any, **__: Any) -> None:
    leave_trace()


def _job_created(_: None, job: Any, queue: Any, *args: Any, depends_on: Any = None, group_id: Any = None,
                 **__: Any) -> None:  # fmt: skip
    if not isinstance(job, BaseException):
        _send(job, depends_on, group_id)


def _before_enqueue(queue: Any, job: Any, *_: Any, **__: Any) -> None:
    if _place_in(job) is None:
        _send(job, None, job.group_id)


def _before_schedule(queue: Any, job: Any, datetime: datetime, *_: Any, **__: Any) -> None:
    place, due = _place_in(job), _due_at(datetime)
    if place is None:
        token = _due.set(due)
        _send(job, None, job.group_id)
        _due.reset(token)
    elif place.queued != due:
        job.meta[HEADER] = header_of(place.asked_for(due))


def _send(job: Any, depends_on: Any, group_id: Any) -> None:
    after = [place for place in _dependencies(job, depends_on) if place is not None]
    due, group = _due.get(), str(group_id) if group_id else None
    place = _sending.place(
        str(job.func_name), str(job.id), due=time.time() if due is None else due, group=group, after=after
    )
    _places.put(job.id, place)
    job.meta[HEADER] = header_of(place)
    if running_task() is None:
        enter_trace(place.run, "opentelemetry_instrumentation_rq")


def _dependencies(job: Any, depends_on: Any) -> Iterator[Place | None]:
    """The places of the jobs that a new job depends on."""
    unknown = False
    for dependency in _jobs_in(depends_on):
        place = _places.get(dependency) if isinstance(dependency, str) else _place_in(dependency)
        unknown = unknown or place is None
        yield place
    if unknown or depends_on is None:
        for known in job.fetch_dependencies():
            yield _place_in(known)


def _jobs_in(depends_on: Any) -> Iterator[Any]:
    """Jobs, or their ids: of a job, an id, a `Dependency`, or several of them."""
    if depends_on is None or isinstance(depends_on, str) or hasattr(depends_on, "meta"):
        if depends_on is not None:
            yield depends_on
    else:
        inner: Iterable[Any] = getattr(depends_on, "dependencies", depends_on)
        for each in inner:
            yield from _jobs_in(each)


def _before_retry(job: Any, *_: Any, **__: Any) -> None:
    """It is put back into its queue: the next attempt's number goes with it."""
    place = _place_in(job)
    if place is not None:
        _number_next(job, place, job.get_retry_interval())


def _number_next(job: Any, place: Place, delay: float) -> None:
    job.meta[HEADER] = header_of(place._replace(attempt=place.attempt + 1).asked_for(time.time() + delay))


def _job_cancelled(_: None, result: Any, job: Any, *args: Any, **__: Any) -> None:
    place = _place_in(job)
    if place is None or isinstance(result, BaseException):
        return
    place.step.cancelled("Cancelled: the job was cancelled")
    if not __.get("enqueue_dependents"):
        _skip_dependents(job)


def _skip_dependents(job: Any) -> None:
    """RQ leaves what depends on a job that failed, or was cancelled, waiting for ever."""
    from rq.job import Job

    pending, seen = [job], {job.id}
    while pending:
        current = pending.pop()
        ids = [job_id for job_id in current.dependent_ids if job_id not in seen]
        seen.update(ids)
        if len(seen) > _MAX_SKIPPED:
            return
        for dependent in Job.fetch_many(ids, connection=job.connection, serializer=job.serializer):
            if dependent is not None and not dependent.allow_dependency_failures:
                place = _place_in(dependent)
                if place is not None:
                    place.step.skipped("upstream_failed")
                pending.append(dependent)


# Where jobs run.


def _job_starts(worker: Any, job: Any, queue: Any, *_: Any, **__: Any) -> Place:
    """In the worker's parent process, before it forks: from now on the run is known to be alive."""
    place = _place_in(job)
    if place is None:
        name = str(job.func_name)
        place = Place(name, str(job.id), "", name, "", name, None, 0.0, "rq")
        job.meta[HEADER] = header_of(place)
    place.run.opened(place.step)
    return place


def _start(job: Any, place: Place) -> None:
    """RQ says when the job's function began."""
    place.step.started(attempt=place.attempt, inputs={"call": job.description}, at=job.started_at, **place.waits)


def _job_left(place: Place | None, result: Any, worker: Any, job: Any, *_: Any, **__: Any) -> None:
    """In the parent: the work horse has reported the end, or nobody did."""
    if place is not None:
        place.run.closed(place.step)


def _before_perform(worker: Any, job: Any, *_: Any, **__: Any) -> None:
    place = _place_in(job)
    if place is not None:
        if worker.is_horse:
            place.leave_to_parent()
        _working.put(job.id, RunningTask(place))


def _before_function(job: Any) -> None:
    work: RunningTask | None = _working.get(job.id)
    if work is not None:
        # In a work horse, without a thread of its own for that.
        recorder = get_recorder()
        recorder.hold()
        _start(job, work.place)
        recorder.tell_parent()


def _after_perform(_: None, result: Any, worker: Any, job: Any, *args: Any, **__: Any) -> None:
    work: RunningTask | None = _working.take(job.id)
    if work is not None:
        work.leave()
    if worker.is_horse:
        # It leaves without running what is registered for its end.
        get_recorder().hand_over(_FLUSH_SECONDS)


def _job_performed(_: None, result: Any, job: Any) -> None:
    work: RunningTask | None = _working.get(job.id)
    if work is not None and not isinstance(result, BaseException):
        work.result = result


def _exception(worker: Any, job: Any, *exc_info: Any) -> None:
    work: RunningTask | None = _working.get(job.id)
    if work is not None and len(exc_info) > 1:
        work.error = exc_info[1]


def _before_success(worker: Any, job: Any, *_: Any, **__: Any) -> Place | None:
    _hold(worker)
    place = _place_in(job)
    if place is not None and job.repeats_left:
        job.meta[HEADER] = header_of(place.again())
    return place


def _job_succeeded(place: Place | None, raised: Any, worker: Any, job: Any, *_: Any, **__: Any) -> None:
    if place is None or raised is not None:
        return  # What it raises makes the job fail.
    work: RunningTask | None = _working.get(job.id)
    result, resources = (work.result, work.used()) if work is not None else (None, None)
    place.step.finished(result, attempt=place.attempt, at=job.ended_at, resources=resources)


def _hold(worker: Any) -> None:
    """A work horse reports the end of its job, and leaves."""
    if worker.is_horse:
        get_recorder().hold()


def _before_failure(worker: Any, job: Any, *_: Any, **__: Any) -> _Failure | None:
    _hold(worker)
    place = _place_in(job)
    if place is None:
        return None
    if job.should_retry:
        return _Failure(place, float(job.get_retry_interval()))
    # If somebody puts it back into the queue, which may be as soon as it is seen to have failed, that is another run.
    job.meta[HEADER] = header_of(place.again())
    job.save_meta()
    return _Failure(place, 0.0)


def _job_failed(failure: _Failure | None, _: Any, worker: Any, job: Any, *args: Any, **more: Any) -> None:
    if failure is None:
        return
    from rq.job import JobStatus
    from rq.timeouts import JobTimeoutException

    place = failure.place
    work: RunningTask | None = _working.get(job.id)
    resources = work.used() if work is not None else None
    error: BaseException | str | None = work.error if work is not None else None
    if error is None:
        error = _last_line(more.get("exc_string") or (args[2] if len(args) > 2 else ""))
    status = job.get_status(refresh=False)
    told: dict[str, Any] = {"attempt": place.attempt, "at": job.ended_at}
    if work is None:
        _start(job, place)  # Its work horse, which told of that, is dead.
    if status == JobStatus.STOPPED:
        place.step.cancelled("Stopped: the job was stopped", **told)
    elif status != JobStatus.FAILED:
        place.step.retrying(
            error, failure.delay, timed_out=isinstance(error, JobTimeoutException), resources=resources, **told
        )
        return
    elif isinstance(error, JobTimeoutException):
        place.step.timed_out(error, resources=resources, **told)
    else:
        place.step.failed(error, resources=resources, **told)
    _skip_dependents(job)


def _last_line(text: Any) -> str:
    """What went wrong, by the last line of a trace; if a work horse died, what its parent says."""
    line = ([line for line in str(text).strip().splitlines() if line.strip()] or [""])[-1].strip().rstrip(";")
    return f"WorkHorseKilled: {line}" if line.startswith("Work-horse terminated") else line


def _before_asked_retry(worker: Any, job: Any, queue: Any, retry: Any, *_: Any, **__: Any) -> _Failure | None:
    from rq import Retry

    place = _place_in(job)
    if place is None:
        return None
    delay = float(Retry.get_interval(job.number_of_retries or 0, retry.intervals))
    _number_next(job, place, delay)
    return _Failure(place, delay)


def _job_asked_retry(failure: _Failure | None, raised: Any, worker: Any, job: Any, *_: Any, **__: Any) -> None:
    """The job returned a `Retry`: it asks to be run again."""
    from rq.job import JobStatus

    if failure is None or raised is not None:
        return
    step, attempt = failure.place.step, failure.place.attempt
    if job.get_status(refresh=False) == JobStatus.FAILED:
        step.failed("MaxRetriesExceeded: it asked for a retry once too often", attempt=attempt, at=job.ended_at)
        _skip_dependents(job)
    else:
        step.retrying("Retry: it asked to be run again", failure.delay, attempt=attempt, at=job.ended_at)


def _place_in(job: Any) -> Place | None:
    meta = job.meta
    return place_of(meta.get(HEADER)) if isinstance(meta, dict) else None
