"""arq: ``tachograph.integrations.arq.instrument()``, in whatever sends jobs and in the worker.

A run is what was sent together, in a block `together`, and all that these jobs send; a job that is sent alone is a run
of its own. A job is a step, its tries are attempts. Which run a job belongs to is in its message, beside arq's own
fields; workers without Tachograph do not read it.

arq's hooks of a worker say neither what a job returned nor why it ended. So `instrument` overrides public methods of
its classes in place, as a subclass would: where a job is sent, and where a worker writes down its end; and it hears of
results and exceptions around the functions of a worker.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import pickle
import time
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from datetime import datetime, timedelta
from typing import Any, Final

from tachograph.identity import new_id
from tachograph.integrations.overriding import Overriding
from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_in
from tachograph.integrations.running import RunningTask
from tachograph.integrations.sending import Sending, together
from tachograph.integrations.traces import enter_span, leave_span
from tachograph.quiet_log import QuietLog

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))

_LATE_SECONDS: Final = 0.05
_methods: Final = Overriding()
_sending: Final = Sending("arq")
_running: Final = Memory()
"""The jobs that run in this process, by their worker's and their own id."""
_taken_over: Final[list[Callable[[], None]]] = []
"""Undo what was done to objects of arq, where these still exist."""


def instrument() -> None:
    """Report what happens to arq's jobs: call it where jobs are sent, and where the settings of the worker are.

    Where things are recorded is said by `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises,
    and never into arq.
    """
    try:
        if not _methods.is_on:
            from arq.connections import ArqRedis
            from arq.worker import Worker

            _methods.override(ArqRedis, "enqueue_job", before=_before_enqueue, after=_after_enqueue)
            _methods.override(Worker, "__init__", after=_worker_made)
            _methods.override(Worker, "finish_job", before=_job_ended)
            _methods.override(Worker, "finish_failed_job", before=_job_never_ran)
    except Exception:
        quiet.exception("instrument", "arq is not instrumented")
        uninstrument()


def uninstrument() -> None:
    """Take everything back that `instrument` did. Never raises."""
    _methods.restore()
    while _taken_over:
        _taken_over.pop()()
    _sending.clear()
    _running.clear()


# Where jobs are sent.


class _Message:
    """A job that is being sent; its place once arq has decided that it is."""

    def __init__(self, name: str, due: float) -> None:
        self.name = name
        self.due = due
        self.place: Place | None = None

    def header(self) -> str:
        # An id of its own: arq's may be used again once a job's result is forgotten.
        self.place = self.place or _sending.reserve(self.name, new_id(), due=self.due)
        return header_of(self.place)


_message: ContextVar[_Message | None] = ContextVar("tachograph_arq_message", default=None)
_carried: ContextVar[Mapping[str, Any]] = ContextVar("tachograph_arq_job", default={})  # noqa: B039 - never written to


class _Serializer:
    """A pool's own serializer, which has a job's place among the fields of its message."""

    def __init__(self, serialize: Callable[[dict[str, Any]], bytes] | None) -> None:
        self.original = serialize
        self._serialize = serialize or pickle.dumps

    def __call__(self, data: dict[str, Any]) -> bytes:
        message = _message.get()
        if message is not None:
            try:
                return self._serialize({**data, HEADER: message.header()})
            except Exception:
                quiet.exception("serialize", "not reported: a job of arq is sent")
        return self._serialize(data)


def _before_enqueue(
    pool: Any, function: str, *_: Any, _defer_until: datetime | None = None,
    _defer_by: float | timedelta | None = None, **__: Any,
) -> tuple[Token[_Message | None], Any]:  # fmt: skip
    if not isinstance(pool.job_serializer, _Serializer):
        pool.job_serializer = _Serializer(pool.job_serializer)
        _taken_over.append(functools.partial(_restore_pool, weakref.ref(pool)))
    due = time.time()
    if _defer_until is not None:
        due = _defer_until.timestamp()
    elif _defer_by:
        due += _defer_by.total_seconds() if isinstance(_defer_by, timedelta) else float(_defer_by)
    entered = enter_span(_sending.trace_ahead, "opentelemetry.instrumentation.arq")
    return _message.set(_Message(str(function), due)), entered


def _restore_pool(reference: weakref.ref[Any]) -> None:
    pool = reference()
    if pool is not None and isinstance(pool.job_serializer, _Serializer):
        pool.job_serializer = pool.job_serializer.original


def _after_enqueue(state: tuple[Token[_Message | None], Any] | None, job: Any, *_: Any, **__: Any) -> None:
    if state is None:
        return
    token, entered = state
    message = _message.get()
    _message.reset(token)
    leave_span(entered)
    # None: there is such a job already.
    is_sent = job is not None and not isinstance(job, BaseException)
    if is_sent and message is not None and message.place is not None:
        _sending.report(message.place, due=message.due)


# Where jobs run.


class _Job:
    """A job that runs here."""

    def __init__(self, place: Place, timeout_seconds: float) -> None:
        self.place = place
        self.timeout_seconds = timeout_seconds
        self.work = RunningTask(place, is_on_loop=True)
        self.started = time.time()
        self.ended = 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_aborted = False
        self.resources: Any = None


class _Deserializer:
    """A worker's own deserializer, which lets the job's task know what else was in the message."""

    def __init__(self, deserialize: Callable[[bytes], dict[str, Any]] | None) -> None:
        self.original = deserialize
        self._deserialize = deserialize or pickle.loads

    def __call__(self, data: bytes) -> dict[str, Any]:
        told = self._deserialize(data)
        if isinstance(told, Mapping):
            _carried.set(told)
        return told


def _worker_made(_: None, raised: Any, worker: Any, *args: Any, **__: Any) -> None:
    if isinstance(raised, BaseException):
        return
    functions, deserializer = dict(worker.functions), worker.job_deserializer
    worker.job_deserializer = _Deserializer(deserializer)
    for name, function in functions.items():
        worker.functions[name] = dataclasses.replace(
            function, coroutine=_noted(weakref.ref(worker), function, worker.job_timeout_s)
        )

    reference = weakref.ref(worker)

    def restore() -> None:
        known = reference()
        if known is not None:
            known.functions.update(functions)
            known.job_deserializer = deserializer

    _taken_over.append(restore)


def _noted(reference: weakref.ref[Any], function: Any, timeout_seconds: float) -> Callable[..., Any]:
    """The function of a worker, of whose calls it is noted how they end."""
    # Not as the attribute: another instrumentation may wrap what that gives, and would wrap ours, too.
    coroutine, own = vars(function)["coroutine"], function.timeout_s

    @functools.wraps(coroutine)
    async def run(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        job = _job_starts(reference, function.name, ctx, args, kwargs, timeout_seconds if own is None else own)
        if job is None:
            return await coroutine(ctx, *args, **kwargs)
        try:
            job.result = await coroutine(ctx, *args, **kwargs)
            return job.result
        except BaseException as error:
            job.error = error
            raise
        finally:
            _job_leaves(reference, job, ctx)

    return run


def _job_starts(
    reference: weakref.ref[Any], name: str, ctx: dict[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any],
    timeout_seconds: float,
) -> _Job | None:  # fmt: skip
    try:
        place = _place_here(name, ctx["job_id"], ctx.get("enqueue_time"))._replace(attempt=ctx["job_try"])
        inputs = {"args": list(args), "kwargs": kwargs}
        place.step.started(attempt=place.attempt, inputs=inputs, **place.waits)
        job = _Job(place, timeout_seconds)
        _running.put((id(reference()), ctx["job_id"]), job)
    except Exception:
        quiet.exception("starts", "not reported: a job of arq starts")
        return None
    return job


def _place_here(name: str, job_id: str, sent: datetime | None) -> Place:
    """The place of the job that the calling asyncio task runs; without one in its message, a run of its own."""
    place = place_in(_carried.get())
    if place is not None:
        return place
    run_id = job_id if sent is None else f"{job_id}@{sent.timestamp():.3f}"
    return Place(name, run_id, "", name, "", name, None, 0.0, "arq")


def _job_leaves(reference: weakref.ref[Any], job: _Job, ctx: dict[Any, Any]) -> None:
    try:
        job.ended = time.time()
        job.resources = job.work.used()
        worker = reference()
        job.is_aborted = worker is not None and ctx["job_id"] in worker.aborting_tasks
        job.work.leave()
    except Exception:
        quiet.exception("leaves", "not reported: a job of arq ends")


def _job_ended(worker: Any, job_id: str, finish: bool, *_: Any, **__: Any) -> None:
    """arq writes down how a job ended, or that it runs again."""
    from arq.worker import Retry

    job: _Job | None = _running.take((id(worker), job_id))
    if job is None:
        return
    step, error = job.place.step, job.error
    told: dict[str, Any] = {"attempt": job.place.attempt, "at": job.ended or None, "resources": job.resources}
    is_cancelled = isinstance(error, asyncio.CancelledError)
    if error is None:
        step.finished(job.result, **told)
    elif not finish:
        delay = (error.defer_score or 0) / 1000 if isinstance(error, Retry) else 0.0
        why = "Cancelled: the worker was stopped" if is_cancelled else error
        step.retrying(why, delay, **told)
    elif is_cancelled and (job.is_aborted or job.ended - job.started + _LATE_SECONDS < job.timeout_seconds):
        step.cancelled("Aborted: the job was aborted", attempt=job.place.attempt, at=job.ended)
    elif is_cancelled:
        step.timed_out(f"Timeout: it took longer than {job.timeout_seconds:g} s", **told)
    else:
        step.failed(error, **told)


def _job_never_ran(worker: Any, job_id: str, result_data: bytes | None, *_: Any, **__: Any) -> None:
    """A job that was aborted before it started, has no function, or has been tried too often."""
    from arq.jobs import deserialize_result

    place = place_in(_carried.get())
    if place is None or result_data is None:
        return  # Its message is gone, or its sender is not instrumented.
    result = deserialize_result(result_data, deserializer=worker.job_deserializer)
    if isinstance(result.result, asyncio.CancelledError):
        place.step.cancelled("Aborted: the job was aborted before it started")
    else:
        # The try that arq counts here did not run.
        place.step.failed(result.result, attempt=max(1, result.job_try - 1))
