"""procrastinate: ``tachograph.integrations.procrastinate.instrument()``, in whatever defers jobs and in the worker.

A run is what was deferred together, in a batch or a block `together`, and all that these jobs defer; a job that is
deferred alone is a run of its own. A job is a step, its attempts are those of procrastinate.

A worker middleware hears of jobs; where they are deferred, how they end, and that one is cancelled, tell the methods of
procrastinate's job manager, which `instrument` overrides in place. A job's row has no room for which run it belongs to
but its queueing lock: where a job has none, it gets one that is like no other, and so locks nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tachograph.identity import new_id
from tachograph.integrations.overriding import Overriding
from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_of
from tachograph.integrations.running import RunningTask
from tachograph.integrations.sending import Sending, together
from tachograph.quiet_log import QuietLog

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))

_MAX_LOCK_BYTES: Final = 2_000
"""PostgreSQL indexes it: an entry of an index may not be larger than a third of a page."""
_methods: Final = Overriding()
_sending: Final = Sending("procrastinate")
_running: Final = Memory()
"""The jobs that run in this process, by id."""
_workers: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def instrument() -> None:
    """Report what happens to procrastinate's jobs: call it where the app is made.

    Where things are recorded is said by `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises,
    and never into procrastinate.
    """
    try:
        if not _methods.is_on:
            from procrastinate.manager import JobManager
            from procrastinate.worker import Worker

            for name in ("batch_defer_jobs", "batch_defer_jobs_async"):
                _methods.override(JobManager, name, before=_before_defer, after=_after_defer)
            _methods.override(JobManager, "defer_periodic_job", after=_periodic_deferred)
            _methods.override(JobManager, "cancel_job_by_id", before=_before_cancel, after=_cancelled)
            _methods.override(JobManager, "cancel_job_by_id_async", before=_before_cancel_async, after=_cancelled)
            _methods.override(JobManager, "finish_job", before=_job_ended)
            _methods.override(JobManager, "retry_job", before=_job_retried)
            _methods.override(Worker, "__init__", after=_worker_made)
    except Exception:
        quiet.exception("instrument", "procrastinate is not instrumented")
        uninstrument()


def uninstrument() -> None:
    """Take everything back that `instrument` did. Never raises."""
    _methods.restore()
    for worker in list(_workers):
        if _middleware in worker.worker_middleware:
            worker.worker_middleware.remove(_middleware)
    _workers.clear()
    _sending.clear()
    _running.clear()


# Where jobs are deferred.


class _Deferred(NamedTuple):
    place: Place | None
    due: float


def _before_defer(manager: Any, jobs: Sequence[Any], *_: Any, **__: Any) -> list[_Deferred]:
    now, group = time.time(), new_id() if len(jobs) > 1 else None
    deferred = []
    for number, job in enumerate(jobs):
        due = _due_of(job.scheduled_at, now)
        place = None
        if job.queueing_lock is None and isinstance(jobs, list):
            place = _sending.reserve(job.task_name, new_id(), due=due, group=group)
            lock = f"{HEADER} {new_id()} {header_of(place)}"
            if len(lock.encode(errors="replace")) <= _MAX_LOCK_BYTES:
                jobs[number] = job.evolve(queueing_lock=lock)
            else:
                place = None
        deferred.append(_Deferred(place, due))
    return deferred


def _after_defer(deferred: list[_Deferred] | None, result: Any, *_: Any, **__: Any) -> None:
    if deferred is None or isinstance(result, BaseException):
        return
    for (place, due), job in zip(deferred, result, strict=False):
        _sending.report(place or _alone(job.task_name, job.id).asked_for(due), due=due)


def _periodic_deferred(_: None, job_id: Any, manager: Any, *args: Any, job: Any = None, **__: Any) -> None:
    if isinstance(job_id, int) and job is not None:
        _sending.report(_alone(job.task_name, job_id).asked_for(time.time()), due=time.time())


def _due_of(moment: datetime | None, now: float) -> float:
    return now if moment is None else max(now, moment.timestamp())


def _alone(name: str, job_id: Any) -> Place:
    """The place of a job that has a queueing lock of its own, or whose sender is not instrumented."""
    return Place(name, str(job_id), "", name, "", name, None, 0.0, "procrastinate")


def _place_of(job: Any) -> Place:
    marker, _, rest = str(job.queueing_lock or "").partition(" ")
    place = place_of(rest.partition(" ")[2]) if marker == HEADER else None
    return place or _alone(job.task_name, job.id)


def _before_cancel(manager: Any, job_id: int, *_: Any, **__: Any) -> Any:
    return next(iter(manager.list_jobs(id=job_id)), None)


async def _before_cancel_async(manager: Any, job_id: int, *_: Any, **__: Any) -> Any:
    return next(iter(await manager.list_jobs_async(id=job_id)), None)


def _cancelled(job: Any, is_cancelled: Any, *_: Any, **__: Any) -> None:
    """A job that runs is only asked to end; its worker tells of it."""
    if job is not None and is_cancelled is True and job.status == "todo":
        _place_of(job).step.cancelled("Cancelled: the job was cancelled")


# Where jobs run.


class _Job:
    """A job that runs here."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.work = RunningTask(place, is_on_loop=True)
        self.ended: float | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.resources: Any = None


def _worker_made(_: None, raised: Any, worker: Any, *args: Any, **__: Any) -> None:
    if not isinstance(raised, BaseException):
        # A list of its own: that of the app's defaults is for all workers.
        worker.worker_middleware = [_middleware, *worker.worker_middleware]
        _workers.add(worker)


async def _middleware(call_next: Callable[[], Awaitable[Any]], context: Any, worker: Any) -> Any:
    job = _job_starts(context)
    if job is None:
        return await call_next()
    try:
        job.result = await call_next()
        return job.result
    except BaseException as error:
        job.error = error
        raise
    finally:
        job.ended = time.time()
        _job_leaves(job)


def _job_starts(context: Any) -> _Job | None:
    try:
        place = _place_of(context.job)._replace(attempt=context.job.attempts + 1)
        place.step.started(
            attempt=place.attempt,
            inputs=context.job.task_kwargs,
            at=context.start_timestamp,
            **place.waits,
        )
        return _running.put(context.job.id, _Job(place))  # type: ignore[no-any-return]
    except Exception:
        quiet.exception("starts", "not reported: a job of procrastinate starts")
        return None


def _job_leaves(job: _Job) -> None:
    try:
        job.resources = job.work.leave()
    except Exception:
        quiet.exception("leaves", "not reported: a job of procrastinate ends")


def _job_ended(manager: Any, job: Any, status: Any, *_: Any, **__: Any) -> None:
    ran: _Job | None = _running.take(job.id)
    if ran is None:
        # It has no task, or somebody else found that its worker is gone.
        _end(_place_of(job).step, status, "NotRun: no worker could run it", {"attempt": job.attempts + 1})
    else:
        told = {"attempt": ran.place.attempt, "at": ran.ended, "resources": ran.resources}
        _end(ran.place.step, status, ran.error, told, ran.result)


def _end(step: Any, status: Any, error: BaseException | str | None, told: dict[str, Any], result: Any = None) -> None:
    if status.value == "succeeded":
        step.finished(result, **told)
    elif status.value == "aborted":
        told.pop("resources", None)
        step.cancelled("Aborted: the job was aborted", **told)
    else:
        step.failed(error, **told)


def _job_retried(manager: Any, job: Any, retry_at: datetime | None = None, *_: Any, **__: Any) -> None:
    ran: _Job | None = _running.take(job.id)
    ended = time.time() if ran is None or ran.ended is None else ran.ended
    delay = _due_of(retry_at, ended) - ended
    if ran is None:
        step = _place_of(job).step
        step.retrying("WorkerLost: its worker is gone", delay, attempt=job.attempts + 1)
        return
    error: BaseException | str | None = ran.error
    if isinstance(error, asyncio.CancelledError):
        error = "Aborted: the worker was stopped"
    ran.place.step.retrying(error, delay, attempt=ran.place.attempt, at=ended, resources=ran.resources)
