"""Taskiq: ``tachograph.integrations.taskiq.instrument(broker)``, where the broker is made.

A middleware tells what happens to tasks, in whatever sends them and in the workers. A run is what was sent together, in
a block `together`, and all that these tasks send; a task that is sent alone is a run of its own. A task is a step, its
retries are attempts. Which run a task belongs to is in its message's labels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_of
from tachograph.integrations.running import RunningTask
from tachograph.integrations.sending import Sending, together
from tachograph.integrations.traces import enter_span, leave_span
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))

_FLUSH_SECONDS: Final = 2.0
_INSTRUMENTATION: Final = "taskiq.middlewares.opentelemetry_middleware"


def instrument(broker: Any) -> None:
    """Report what happens to the tasks of a broker: call it where the broker is made, once.

    So it is in force in the workers and in whatever sends tasks. Where things are recorded is said by
    `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises, and never into Taskiq.
    """
    try:
        if not _ours(broker):
            reports = _Tasks()
            broker.add_middlewares(_middleware(reports), _first_middleware(reports))
            # Before those that make a span of what is sent.
            broker.middlewares.insert(0, broker.middlewares.pop())
    except Exception:
        quiet.exception("instrument", "Taskiq is not instrumented")


def uninstrument(broker: Any) -> None:
    """Take everything back that `instrument` did. Never raises."""
    try:
        for middleware in _ours(broker):
            broker.middlewares.remove(middleware)
    except Exception:
        quiet.exception("uninstrument", "Taskiq is not uninstrumented")


def _ours(broker: Any) -> list[Any]:
    return [each for each in broker.middlewares if isinstance(getattr(each, "reports", None), _Tasks)]


def _first_middleware(reports: _Tasks) -> Any:
    from taskiq import TaskiqMiddleware

    class TachographTraceMiddleware(TaskiqMiddleware):
        """Lets the span of a message be part of the trace of its run, as far as that is known before it is sent."""

        def __init__(self) -> None:
            super().__init__()
            self.reports = reports
            self._entered = Memory()

        def pre_send(self, message: Any) -> Any:
            try:
                self._entered.put(message.task_id, enter_span(reports.trace_ahead, _INSTRUMENTATION))
            except Exception:
                quiet.exception("trace", "the trace of a task of Taskiq is not that of its run")
            return message

        def post_send(self, message: Any) -> None:
            try:
                leave_span(self._entered.take(message.task_id))
            except Exception:
                quiet.exception("trace", "the trace of a task of Taskiq is not that of its run")

    return TachographTraceMiddleware()


def _middleware(reports: _Tasks) -> Any:
    from taskiq import TaskiqMiddleware

    class TachographMiddleware(TaskiqMiddleware):
        """Tells what happens to tasks."""

        def __init__(self) -> None:
            super().__init__()
            self.reports = reports

        def pre_send(self, message: Any) -> Any:
            try:
                return self.reports.sent(message)
            except Exception:
                quiet.exception("pre_send", "not reported: a task of Taskiq is sent")
                return message

        def pre_execute(self, message: Any) -> Any:
            try:
                self.reports.starts(message)
            except Exception:
                quiet.exception("pre_execute", "not reported: a task of Taskiq starts")
            return message

        def on_error(self, message: Any, result: Any, exception: BaseException) -> None:
            self.reports.errors.put(message.task_id, exception)

        def post_execute(self, message: Any, result: Any) -> None:
            try:
                self.reports.ended(message, result)
            except Exception:
                quiet.exception("post_execute", "not reported: a task of Taskiq ended")

        async def shutdown(self) -> None:
            await asyncio.to_thread(get_recorder().flush, _FLUSH_SECONDS)

    return TachographMiddleware()


class _Tasks:
    """What this process knows of a broker's tasks."""

    def __init__(self) -> None:
        self._sending = Sending("taskiq")
        self._running = Memory()
        self._again = Memory()
        self.errors = Memory()

    @property
    def trace_ahead(self) -> str:
        """The ``traceparent`` of the run of the next message, or ""."""
        return self._sending.trace_ahead

    def sent(self, message: Any) -> Any:
        """A task is sent, or sent again by a middleware that retries it; the message with where it belongs."""
        delay = _seconds(message.labels.get("delay"))
        due = time.time() + delay
        place = _place_in(message)
        key = (message.task_id, place.attempt if place is not None else 0)
        if place is not None and self._running.get(key) is not None:
            error = self.errors.take(message.task_id)
            if error is None:
                self._again.put(key, delay)  # It is told once this attempt has ended.
            else:
                # Before it is sent: the next attempt may start at once.
                self._retry(self._running.take(key), error, delay, message)
            place = place._replace(attempt=place.attempt + 1).asked_for(due)
        else:
            place = self._sending.place(message.task_name, message.task_id, due=due)
        # The labels may be those of the task itself: other messages must not have ours.
        return message.model_copy(update={"labels": {**message.labels, HEADER: header_of(place)}})

    def starts(self, message: Any) -> None:
        """A worker begins with a task, in the asyncio task that runs it."""
        place = _place_in(message)
        if place is None:
            name = message.task_name
            place = Place(name, message.task_id, "", name, "", name, None, 0.0, "taskiq")
        inputs = {"args": message.args, "kwargs": message.kwargs}
        place.step.started(attempt=place.attempt, inputs=inputs, **place.waits)
        self._running.put((message.task_id, place.attempt), RunningTask(place, is_on_loop=True))

    def ended(self, message: Any, result: Any) -> None:
        """It has ended; other middleware has decided whether it is tried again."""
        place = _place_in(message)
        key = (message.task_id, place.attempt if place is not None else 1)
        task: RunningTask | None = self._running.take(key)
        if task is None:
            return
        error: BaseException | None = self.errors.take(message.task_id) or result.error
        delay: float | None = self._again.take(key)
        step, attempt, resources = task.place.step, task.place.attempt, task.leave()
        if delay is not None:
            self._retry(task, error, delay, message)
        elif not result.is_err:
            step.finished(result.return_value, attempt=attempt, resources=resources)
        elif _is_timeout(error, message):
            step.timed_out(error, attempt=attempt, resources=resources)
        elif isinstance(error, asyncio.CancelledError):
            step.cancelled(error, attempt=attempt)
        else:
            step.failed(error, attempt=attempt, resources=resources)

    def _retry(self, task: RunningTask, error: BaseException | None, delay: float, message: Any) -> None:
        """An attempt failed, and another one is sent."""
        resources = task.leave()
        task.place.step.retrying(
            error, delay, timed_out=_is_timeout(error, message), attempt=task.place.attempt, resources=resources
        )


def _is_timeout(error: BaseException | None, message: Any) -> bool:
    return isinstance(error, TimeoutError) and message.labels.get("timeout") is not None


def _place_in(message: Any) -> Place | None:
    return place_of(message.labels.get(HEADER))


def _seconds(text: Any) -> float:
    try:
        return max(0.0, float(text)) if text is not None else 0.0
    except (TypeError, ValueError):
        return 0.0
