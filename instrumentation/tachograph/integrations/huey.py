"""Huey: ``tachograph.integrations.huey.instrument(huey)``, where the Huey instance is made.

Signals and hooks tell what happens to tasks, in whatever sends them and in the consumer. A run is what was sent
together: a pipeline, a chord, a block `together`, and all that these tasks send. A task is a step, its retries are
attempts. Huey's messages have no room for which run a task belongs to; so that is a value in Huey's own storage, below
the task's id, from when the task is sent until it starts.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_of
from tachograph.integrations.running import RunningTask
from tachograph.integrations.sending import Sending, together
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Huey")

_FLUSH_SECONDS: Final = 2.0
_MAX_PLANNED: Final = 1_000
_NAME: Final = "tachograph"
_instrumented: Final[dict[int, _Tasks]] = {}
"""By the id of the Huey instance, which each of them holds."""


def instrument(huey: Any) -> None:
    """Report what happens to the tasks of a Huey instance: call it where the instance is made, once.

    So it is in force in the consumer and in whatever sends tasks. Where things are recorded is said by
    `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises, and never into Huey.
    """
    try:
        if id(huey) in _instrumented:
            return
        tasks = _instrumented[id(huey)] = _Tasks(huey)
        for signal, handler in tasks.handlers().items():
            huey.signal(signal)(handler)
        huey.post_execute(_NAME)(tasks.ended)
        huey.on_shutdown(_NAME)(tasks.worker_ends)
    except Exception:
        quiet.exception("instrument", "Huey is not instrumented")
        uninstrument(huey)


def uninstrument(huey: Any) -> None:
    """Take everything back that `instrument` did. Never raises."""
    try:
        tasks = _instrumented.pop(id(huey), None)
        if tasks is None:
            return
        for signal, handler in tasks.handlers().items():
            huey.disconnect_signal(handler, signal)
        huey.unregister_post_execute(_NAME)
        huey.unregister_on_shutdown(_NAME)
    except Exception:
        quiet.exception("uninstrument", "Huey is not uninstrumented")


class _Tasks:
    """What this process knows of the tasks of a Huey instance."""

    def __init__(self, huey: Any) -> None:
        self._huey = huey
        self._sending = Sending("huey")
        self._expected = Memory()
        """Places of tasks that this process is about to send, and of what comes after them, by the task's id."""
        self._callbacks = Memory()
        self._running = Memory()
        """By the task's object: two that handle errors of one task have the same id."""
        self._handlers: dict[str, Callable[..., None]] = {}

    def handlers(self) -> dict[str, Callable[..., None]]:
        """The receivers of Huey's signals."""
        from huey import signals

        # Of a method there is a new object each time it is asked for.
        self._handlers = self._handlers or {
            signals.SIGNAL_ENQUEUED: self.sent,
            signals.SIGNAL_EXECUTING: self.starts,
            signals.SIGNAL_REVOKED: self.revoked,
            signals.SIGNAL_EXPIRED: self.expired,
            signals.SIGNAL_CANCELED: self.cancelled,
            signals.SIGNAL_INTERRUPTED: self.interrupted,
        }
        return self._handlers

    # Where tasks are sent.

    @_harmless
    def sent(self, _: str, task: Any) -> None:
        """A task is about to be sent, or sent again."""
        now = time.time()
        due = max(now, self._moment(task.eta) or now)
        places: dict[str, Place] | None = self._expected.take(task.id)
        if places is None and task.eta is not None:
            # The scheduler puts what is due into the queue.
            places = self._stored(task.id)
        if places is None:
            places = {task.id: self._new_place(task, due)}
            self._plan(task, places)
        place = places[task.id]
        place = places[task.id] = place if place.queued else place.asked_for(due, now)
        # Several handlers of errors may wait at a time, and share an id and a place: they are told of as they run.
        if place.attempt == 1 and not place.around:
            place.queue()
        self._store(task.id, places)

    def _new_place(self, task: Any, due: float) -> Place:
        chord = _chord_of(task)
        if chord is None:
            return self._sending.place(_name_of(task), task.id, due=due)
        outermost = chord
        while (around := _chord_of(outermost.callback)) is not None:
            outermost = around
        return self._sending.place(_name_of(task), task.id, due=due, group=chord.cid, run_id=outermost.cid)

    def _plan(self, task: Any, places: dict[str, Place]) -> None:
        """Give places to what comes after a task: the rest of its pipeline, and the callback of its chord."""
        chord, place = _chord_of(task), places[task.id]
        group = chord.cid if chord is not None else None
        for following in _pipeline_after(task):
            place = places[following.id] = self._sending.place(
                _name_of(following), following.id, due=None, group=group, after=[place]
            )
        if chord is None:
            return
        # All members of one name are meant by the key without a number.
        member = place._replace(number=None)
        planned: dict[str, Place] | None = self._callbacks.get(chord.cid)
        if planned is None:
            first = self._sending.place(_name_of(chord.callback), chord.callback.id, due=None, after=[member])
            planned = {chord.callback.id: first}
            self._plan(chord.callback, planned)
            self._callbacks.put(chord.cid, planned)
        elif not self._callbacks.get((chord.cid, member.key)):
            planned[chord.callback.id].step.depend_on(member.key)
            planned[chord.callback.id].step.planned()
        self._callbacks.put((chord.cid, member.key), True)
        places |= planned

    # Where tasks run.

    @_harmless
    def starts(self, _: str, task: Any) -> None:
        """The consumer begins with a task, in the thread, process or greenlet that runs it."""
        places = self._taken(task.id)
        if places is None:
            name = _name_of(task)
            places = {task.id: Place(name, task.id, "", name, "", name, None, 0.0, "huey")}
        place = places[task.id]
        inputs = {"args": list(task.args or ()), "kwargs": task.kwargs}
        place.step.started(attempt=place.attempt, inputs=inputs, **place.waits)
        self._running.put(id(task), (RunningTask(place), places))

    @_harmless
    def ended(self, task: Any, value: Any, error: BaseException | None) -> None:
        """It has ended, and Huey knows whether it will be tried again."""
        running = self._running.take(id(task))
        if running is None:
            return
        work, places = running
        step, told = work.place.step, {"attempt": work.place.attempt}
        resources = work.leave()
        if error is None:
            step.finished(value, resources=resources, **told)
            self._expect_followers(task, places)
        elif task.retries:
            delay = _delay_of(task, error)
            step.retrying(error, delay, timed_out=_is_timeout(error), resources=resources, **told)
            again = work.place._replace(attempt=work.place.attempt + 1).asked_for(time.time() + delay)
            self._expected.put(task.id, places | {task.id: again})
            self._store(task.id, places | {task.id: again})
        elif _is_cancellation(error):
            step.cancelled(error, **told)
        elif _is_timeout(error):
            step.timed_out(error, resources=resources, **told)
        else:
            step.failed(error, resources=resources, **told)
        if error is not None and task.on_error is not None:
            self._expect_handler(task.on_error, work.place)
        if error is None or not task.retries:
            self._expect_callback(task, places)
            self._forget(task.id, work.place)

    def _expect_followers(self, task: Any, places: dict[str, Place]) -> None:
        """Huey sends the next task of the pipeline, here and now."""
        if task.on_complete is not None and task.on_complete.id in places:
            rest = {task_id: place for task_id, place in places.items() if task_id != task.id}
            self._expected.put(task.on_complete.id, rest)

    def _expect_handler(self, handler: Any, failed: Place) -> None:
        """Huey sends the task that handles an error, once for each attempt that it tells of."""
        place = failed.after(_name_of(handler))
        if failed.attempt > 1:
            place = place._replace(key=f"{place.key}#{failed.attempt}")
        place.step.depend_on(failed.step)
        places = {handler.id: place}
        self._plan(handler, places)
        self._expected.put(handler.id, places)

    def _expect_callback(self, task: Any, places: dict[str, Place]) -> None:
        """Whichever member of a chord ends last sends its callback; a member that failed ends its pipeline, too."""
        chord = _chord_of(task)
        if chord is not None and chord.callback.id in places:
            after = {chord.callback.id, *[each.id for each in _pipeline_after(chord.callback)]}
            outer = _chord_of(chord.callback)
            if outer is not None:
                after.add(outer.callback.id)
            self._expected.put(chord.callback.id, {key: place for key, place in places.items() if key in after})

    def _end_unstarted(self, task: Any, why: str) -> None:
        places = self._taken(task.id)
        if places is not None:
            places[task.id].step.cancelled(why)
            self._expect_callback(task, places)
            self._forget(task.id, places[task.id])

    @_harmless
    def revoked(self, _: str, task: Any) -> None:
        """It was revoked before it started."""
        self._end_unstarted(task, "Revoked: it was revoked")

    @_harmless
    def expired(self, _: str, task: Any) -> None:
        """It waited longer than it may."""
        self._end_unstarted(task, "Expired: it waited longer than it may")

    @_harmless
    def cancelled(self, _: str, task: Any) -> None:
        """It cancelled itself, of which `ended` tells; or a hook cancelled it before it began."""
        if not _is_before_task(sys.exc_info()[1]):
            return
        running = self._running.take(id(task))
        if running is not None:
            work, places = running
            work.leave()
            work.place.step.cancelled("Cancelled: a hook cancelled it", attempt=work.place.attempt)
            self._expect_callback(task, places)

    @_harmless
    def interrupted(self, _: str, task: Any) -> None:
        """The consumer stops without waiting for it; Huey does not run it again."""
        running = self._running.take(id(task))
        if running is not None:
            work, _places = running
            work.leave()
            work.place.step.lost("Interrupted: the consumer was stopped", attempt=work.place.attempt)
        get_recorder().flush(_FLUSH_SECONDS)

    @_harmless
    def worker_ends(self) -> None:
        """A worker's process ends, without exit handlers."""
        get_recorder().flush(_FLUSH_SECONDS)

    # Huey's own storage.

    def _store(self, task_id: str, places: dict[str, Place]) -> None:
        self._huey.put(f"{HEADER}:{task_id}", json.dumps({key: header_of(place) for key, place in places.items()}))

    def _stored(self, task_id: str) -> dict[str, Place] | None:
        """The places of a task and of what comes after it; None if its sender is not instrumented."""
        return _places_in(self._huey.get(f"{HEADER}:{task_id}", peek=True), task_id)

    def _taken(self, task_id: str) -> dict[str, Place] | None:
        """The same of a task that starts, or never will: in one request, they are there no more."""
        places = _places_in(self._huey.get(f"{HEADER}:{task_id}"), task_id)
        if places is not None and places[task_id].around:
            self._store(task_id, places)  # Another handler of errors may wait under this id.
        return places

    def _forget(self, task_id: str, place: Place) -> None:
        """A handler of errors has ended; unless another one waits under its id, nothing needs its places."""
        if place.around and (self._stored(task_id) or {}).get(task_id) == place:
            self._huey.delete(f"{HEADER}:{task_id}")

    def _moment(self, eta: datetime | None) -> float | None:
        """Huey's moments have no zone: they are in UTC, or local, as the instance has it."""
        if eta is None:
            return None
        return (eta if eta.tzinfo is not None or not self._huey.utc else eta.replace(tzinfo=UTC)).timestamp()


def _places_in(text: Any, task_id: str) -> dict[str, Place] | None:
    try:
        told = json.loads(text or "{}")
    except (TypeError, ValueError):
        return None
    headers = told.items() if isinstance(told, dict) else ()
    places = {key: place for key, header in headers if (place := place_of(header)) is not None}
    return places if task_id in places else None


def _name_of(task: Any) -> str:
    return f"{type(task).__module__}.{task.name}"


def _pipeline_after(task: Any) -> Iterator[Any]:
    """The tasks that are sent one after the other, once this one has ended well."""
    for _ in range(_MAX_PLANNED):
        task = task.on_complete
        if task is None:
            return
        yield task


def _chord_of(task: Any) -> Any:
    """The chord that a task, or the last one of its pipeline, is a member of."""
    last = task
    for following in _pipeline_after(task):
        last = following
    return getattr(last, "chord_config", None)


def _delay_of(task: Any, error: BaseException) -> float:
    """Seconds until a task is tried again: as the exception says, or else as the task does."""
    delay = getattr(error, "delay", None)
    eta = getattr(error, "eta", None)
    if isinstance(eta, datetime):
        now = datetime.now(eta.tzinfo)
        return max(0.0, (eta - now).total_seconds())
    value = task.retry_delay if delay is None else delay
    return max(0.0, float(value or 0.0))


def _is_timeout(error: BaseException | None) -> bool:
    from huey.exceptions import TaskTimeout

    return isinstance(error, TaskTimeout)


def _is_cancellation(error: BaseException | None) -> bool:
    from huey.exceptions import CancelExecution

    return isinstance(error, CancelExecution)


def _is_before_task(error: BaseException | None) -> bool:
    """Whether an exception comes from a hook that Huey called before the task, by its traceback."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_run_pre_execute":
            return True
        trace = trace.tb_next
    return False
