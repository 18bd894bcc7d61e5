"""Celery: ``tachograph.integrations.celery.instrument(app)``, in whatever sends tasks and in the workers.

Signals say all that happens to a task. What the tasks of one run have in common travels in a header of their messages:
the run is what was sent together from outside of any task (a task, a chain, a group, a chord), with all that its tasks
send. A task is a step, its retries are attempts, and tasks of a group are instances of one step. Chains and callbacks
are known as soon as the task before them starts.

Every process tells what it sees. The parent process of a worker sees what its children cannot: that one was killed,
that a time limit stopped one, that a task was revoked. A run ends once all its tasks have ended.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tachograph import meter
from tachograph.integrations.celery_eager import eager_step, enter, innermost, leave, start
from tachograph.integrations.celery_eager import forget as forget_running
from tachograph.integrations.celery_places import (
    attempt_of,
    callback_place,
    headers_of,
    ids_after,
    is_simple,
    is_told_of_error,
    moment_of,
    replaces,
    seconds_until,
    task_of,
)
from tachograph.integrations.celery_schedules import take_over_schedules
from tachograph.integrations.celery_sending import first_place, place_after
from tachograph.integrations.celery_sending import forget as forget_sent
from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_in, read
from tachograph.integrations.sending import together
from tachograph.integrations.traces import enter_trace, leave_trace
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder
from tachograph.report import Run, Step
from tachograph.resources import Resources
from tachograph.workflow.reporter import engine_reporter

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))

_MAX_PLANNED: Final = 1_000
_FLUSH_SECONDS: Final = 2.0
_app: Any = None


class _Received(NamedTuple):
    """What the parent process of a worker knows of a task."""

    place: Place
    attempt: int
    request: Callable[[], Any]


_received = Memory()
_replaced = Memory()
"""Tasks that replace themselves by others, by their ids."""
_measuring = Memory()
"""Meters of the tasks that run in this process, by their ids."""


def instrument(app: Any) -> None:
    """Report what happens to the tasks of a Celery app: call it where the app is made, once.

    So it is in force in workers, in beat, and in whatever sends tasks. Where things are recorded is said by
    `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises, and never into Celery.
    """
    global _app
    try:
        _app = app
        for signal, handler in _handlers().items():
            # Weak references to functions of a module are as good as strong ones, and a reload does not double them.
            signal.connect(handler, weak=False, dispatch_uid=_uid(handler))
        _come_first()
    except Exception:
        quiet.exception("instrument", "Celery is not instrumented")


def uninstrument(app: Any = None) -> None:
    """Take everything back that `instrument` did. Never raises."""
    global _app
    try:
        for signal, handler in _handlers().items():
            signal.disconnect(handler, dispatch_uid=_uid(handler))
    except Exception:
        quiet.exception("uninstrument", "Celery is not uninstrumented")
    _app = None
    for memory in (_received, _replaced, _measuring):
        memory.clear()
    forget_sent()
    forget_running()


def _uid(handler: Callable[..., None]) -> str:
    return f"tachograph.{handler.__name__}"


def _handlers() -> dict[Any, Callable[..., None]]:
    from celery import signals

    return {
        signals.before_task_publish: _before_publish,
        signals.after_task_publish: _after_publish,
        signals.task_received: _task_received,
        signals.task_prerun: _task_prerun,
        signals.task_postrun: _task_postrun,
        signals.task_success: _task_success,
        signals.task_retry: _task_retry,
        signals.task_failure: _task_failure,
        signals.task_revoked: _task_revoked,
        signals.task_unknown: _task_unknown,
        signals.worker_process_shutdown: _process_ends,
        signals.worker_shutdown: _process_ends,
        signals.beat_init: _beat_starts,
        signals.beat_embedded_init: _beat_starts,
    }


def _harmless(handler: Callable[..., None]) -> Callable[..., None]:
    """A receiver of a signal that never raises into Celery."""

    def receive(sender: Any = None, **told: Any) -> None:
        try:
            handler(sender, **told)
        except Exception:
            quiet.exception(handler.__name__, "not reported: %s", handler.__name__)

    receive.__name__ = handler.__name__
    return receive


@_harmless
def _before_publish(sender: Any, headers: Any = None, body: Any = None, **_: Any) -> None:
    if not isinstance(headers, dict) or "id" not in headers:
        return  # Protocol 1 has no headers.
    now = time.time()
    task_id, name = headers["id"], str(headers.get("task") or sender)
    due = max(now, moment_of(headers.get("eta")) or now)
    known = place_in(headers)
    if known is not None and (headers.get("retries") or (known.name == name and _is_resent(task_id))):
        headers[HEADER] = header_of(known.asked_for(due, now))
        return
    request = _current_request()
    place, sent_by = None, _sender(request)
    if request is not None and sent_by is not None:
        place = place_after(sent_by, request, task_id, name, headers, body)
    if place is None:
        place = first_place(headers, task_id, name, body)
    place = place.asked_for(due, now)
    headers[HEADER] = header_of(place)
    step = place.step
    if request is None or sent_by is None:
        place.run.queued(at=now)
        _enter_trace(place.run)
    elif replaces(request, task_id, body):
        _replaced.put(request.id, True)
        step.depend_on(sent_by.step)
    elif task_id in ids_after(request) or is_told_of_error(request, headers, name):
        step.depend_on(sent_by.step)
    step.queued(at=now, due=due)


@_harmless
def _after_publish(sender: Any, **_: Any) -> None:
    leave_trace()


def _come_first() -> None:
    """Hear of a message before those that make a span of it."""
    from celery.signals import before_task_publish as signal

    receivers = signal.receivers
    if receivers:
        ours = [entry for entry in receivers if entry[1] is _before_publish]
        receivers[:] = [*ours, *[entry for entry in receivers if entry[1] is not _before_publish]]


def _enter_trace(run: Run) -> None:
    """Let the spans of messages be part of the run's trace."""
    if not enter_trace(run, "opentelemetry.instrumentation.celery"):
        return
    from celery.signals import after_task_publish as signal

    # What they attach on top of it must go first.
    receivers = signal.receivers or []
    ours = [entry for entry in receivers if entry[1] is _after_publish]
    receivers[:] = [*[entry for entry in receivers if entry[1] is not _after_publish], *ours]


@_harmless
def _task_received(sender: Any, request: Any = None, **_: Any) -> None:
    headers = headers_of(request)
    place = place_in(headers) or first_place(headers, request.id, request.name)
    # The pool keeps the request for as long as it needs it.
    _received.put(request.id, _Received(place, attempt_of(headers), weakref.ref(request)))


@_harmless
def _task_prerun(sender: Any, task: Any = None, **_: Any) -> None:
    request = task.request
    if request.called_directly:
        return
    if request.is_eager:
        start(request, task.name)
        return
    place = _place_of(request, task.name)
    enter(request, place)
    step = place.step
    inputs = {"args": request.argsrepr, "kwargs": request.kwargsrepr}
    step.started(attempt=attempt_of(request), inputs=inputs, **place.waits)
    _plan(place, step, request)
    step.works_here()
    running = meter.start(None, False, False)
    _measuring.put(request.id, running)
    meter.around.set(running)
    step.collect_logs()


def _used(request: Any) -> Resources | None:
    """What a task used of its worker process, which ends now; None: another process ran it."""
    running: meter.Meter | None = _measuring.take(request.id)
    if running is None:
        return None
    meter.around.set(None)
    engine_reporter.set(None)
    return running.stop()


def _plan(place: Place, step: Step, request: Any) -> None:
    """Tell of the tasks that will come after this one, if it ends well."""
    previous, at = step, place
    for signature in [*reversed(request.chain or ())][:_MAX_PLANNED]:
        if not is_simple(signature):
            return
        at = at.follow(task_of(signature))
        previous = _plan_after(previous, at)
    for signature in request.callbacks or ():
        if is_simple(signature):
            _plan_after(step, place.after(task_of(signature)))
    if not request.chain and is_simple(request.chord):
        _plan_after(step, callback_place(place, request.chord))


def _plan_after(step: Step, place: Place) -> Step:
    following = place.step
    following.depend_on(step)
    return following.planned()


@_harmless
def _task_success(sender: Any, result: Any = None, **_: Any) -> None:
    if (step := _running_step(sender)) is not None:
        step.finished(result, resources=_used(sender.request))


@_harmless
def _task_retry(sender: Any, request: Any = None, reason: Any = None, **_: Any) -> None:
    if request is None or request.is_eager:
        return
    cause = getattr(reason, "exc", None)
    place = _place_of(request, sender.name)
    place.step.retrying(
        cause if isinstance(cause, BaseException) else str(reason),
        seconds_until(getattr(reason, "when", None)),
        attempt=attempt_of(request),
        resources=_used(request),
    )


@_harmless
def _task_failure(sender: Any, task_id: Any = None, exception: Any = None, **_: Any) -> None:
    from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

    request = sender.request
    if request.is_eager:
        if (inner := eager_step(request)) is not None:
            inner.failed(exception)
        return
    attempt = None
    if request.id == task_id:
        place, attempt = _place_of(request, sender.name), attempt_of(request)
    else:
        # In the parent process, which only knows what it received.
        known: _Received | None = _received.take(task_id)
        if known is None:
            return
        place, attempt = known.place, known.attempt
        _begin_late(place, attempt, known.request())
    step, resources = place.step, _used(request) if request.id == task_id else None
    if isinstance(exception, TimeLimitExceeded | SoftTimeLimitExceeded):
        step.timed_out(exception, attempt=attempt, resources=resources)
    else:
        step.failed(exception, attempt=attempt, resources=resources)


def _begin_late(place: Place, attempt: int, request: Any) -> None:
    """In the parent process: a child that was killed may not have told when its task started, but the pool has."""
    began = getattr(request, "time_start", None)
    if isinstance(began, int | float):
        place.step.started(attempt=attempt, at=began, **place.waits)


@_harmless
def _task_postrun(sender: Any, task: Any = None, state: Any = None, **_: Any) -> None:
    if state == "IGNORED" and (step := _running_step(task)) is not None:
        if _replaced.take(task.request.id):
            step.finished()  # What it replaced itself by goes on.
        else:
            step.skipped("itself")
    elif state == "REJECTED" and (step := _running_step(task)) is not None:
        step.lost("Rejected: the task gave its message back")
    _used(task.request)  # However it ended: it is measured no longer.
    leave(task.request)


@_harmless
def _task_revoked(sender: Any, request: Any = None, terminated: Any = None, expired: Any = None, **_: Any) -> None:
    known: _Received | None = _received.take(request.id)
    headers = headers_of(request)
    if known is not None:
        place, attempt = known.place, known.attempt
    else:
        place, attempt = _place_of(headers, getattr(sender, "name", "") or "?"), attempt_of(headers)
    if terminated:
        _begin_late(place, attempt, request)
    why = "Expired: it waited longer than it may" if expired else "Revoked: it was revoked"
    place.step.cancelled(why, attempt=attempt if terminated else None)


@_harmless
def _task_unknown(sender: Any, message: Any = None, name: Any = None, id: Any = None, **_: Any) -> None:  # noqa: A002
    place = place_in(getattr(message, "headers", None))
    if place is not None:
        place.step.failed(f"NotRegistered: no worker knows the task {name}")


@_harmless
def _process_ends(sender: Any, **_: Any) -> None:
    # Children of a worker end without exit handlers.
    get_recorder().flush(_FLUSH_SECONDS)


@_harmless
def _beat_starts(sender: Any, **_: Any) -> None:
    take_over_schedules(_app if _app is not None else sender.app, sender)


def _running_step(task: Any) -> Step | None:
    request = task.request
    if request.called_directly:
        return None
    if request.is_eager:
        return eager_step(request)
    return _place_of(request, task.name).step


def _place_of(request: Any, name: str) -> Place:
    """The place of a task; if its sender was not instrumented, a run of its own by its root's id."""
    place = place_in(request)
    if place is not None:
        return place
    task_id = read(request, "id")
    root = str(read(request, "root_id") or task_id)
    return Place(name, root, "", str(task_id), "", name, None, 0.0, "celery")


def _current_request() -> Any:
    task = _app.current_worker_task if _app is not None else None
    request = task.request if task is not None else None
    return request if request is not None and request.id else None


def _sender(request: Any) -> Place | None:
    """The place of the task that sends something now, by its request."""
    if request is None:
        return None
    return innermost() if request.is_eager else place_in(request)


def _is_resent(task_id: str) -> bool:
    """Whether a task is sent again by itself (`Task.replace`, a retry after its worker was lost)."""
    request = _current_request()
    return request is not None and request.id == task_id
