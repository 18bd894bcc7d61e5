"""Dramatiq: ``tachograph.integrations.dramatiq.instrument(broker)``, where the broker is made.

A middleware tells what happens to messages, in whatever sends them and in the workers. A run is what was sent together:
a pipeline, a group with a completion callback, a block `together`, and all that these messages' actors send. A message
is a step, its retries are attempts. Which run a message belongs to is in its options.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, Final

from tachograph.identity import new_span_id, new_trace_id, traceparent
from tachograph.integrations.overriding import Overriding
from tachograph.integrations.places import HEADER, Memory, Place, header_of, place_of
from tachograph.integrations.running import RunningTask
from tachograph.integrations.sending import Sending, together
from tachograph.integrations.traces import enter_span, leave_span
from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder

__all__ = ["instrument", "together", "uninstrument"]

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Dramatiq")

_FLUSH_SECONDS: Final = 2.0
_MAX_PLANNED: Final = 1_000
_INSTRUMENTOR: Final = "opentelemetry_instrumentor_dramatiq"
_actors: Final = Overriding()
"""Where messages are made: another instrumentation makes spans of them there."""
_brokers: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def instrument(broker: Any) -> None:
    """Report what happens to the messages of a broker: call it where the broker is made, once.

    So it is in force in the workers and in whatever sends messages. Where things are recorded is said by
    `tachograph.configure` or the environment (``TACHOGRAPH_URL``). Never raises, and never into Dramatiq.
    """
    try:
        if not _ours(broker):
            first = broker.middleware[0] if broker.middleware else None
            # Of what is called after a message, the first middleware's comes last: then it is known whether it is tried
            # again.
            broker.add_middleware(_middleware(), **({"before": type(first)} if first is not None else {}))
            _brokers.add(broker)
            _come_first()
    except Exception:
        quiet.exception("instrument", "Dramatiq is not instrumented")


def uninstrument(broker: Any) -> None:
    """Take everything back that `instrument` did. Never raises."""
    try:
        for middleware in _ours(broker):
            broker.middleware.remove(middleware)
        _brokers.discard(broker)
        if not _brokers:
            _actors.restore()
    except Exception:
        quiet.exception("uninstrument", "Dramatiq is not uninstrumented")


def _ours(broker: Any) -> list[Any]:
    return [each for each in broker.middleware if isinstance(getattr(each, "reports", None), _Messages)]


def _group_of(options: Mapping[str, Any]) -> str | None:
    """The group of which a message is a member, or its pipeline: of a pipeline the last message says that."""
    for _ in range(_MAX_PLANNED):
        target = options.get("pipe_target")
        inner = target.get("options") if isinstance(target, Mapping) else None
        if not isinstance(inner, Mapping):
            break
        options = inner
    group = options.get("group_completion_uuid")
    return group if isinstance(group, str) else None


def _come_first() -> None:
    """Hear that a message is about to be made before those that make a span of it."""
    from dramatiq import Actor

    if not _actors.overrides(Actor, "message_with_options"):
        _actors.override(Actor, "message_with_options", before=_before_message, after=_after_message)


def _before_message(actor: Any, *_: Any, **__: Any) -> Any:
    if _INSTRUMENTOR not in sys.modules:
        return None
    ours = _ours(actor.broker)
    return enter_span(ours[0].reports.trace_ahead, _INSTRUMENTOR) if ours else None


def _after_message(entered: Any, *_: Any, **__: Any) -> None:
    leave_span(entered)


def _middleware() -> Any:
    import dramatiq

    class TachographMiddleware(dramatiq.Middleware):
        """Tells what happens to messages."""

        def __init__(self) -> None:
            self.reports = _Messages()
            for name in _HOOKS:
                setattr(self, name, getattr(self.reports, name))

    return TachographMiddleware()


class _Messages:
    """What this process knows of a broker's messages."""

    def __init__(self) -> None:
        self._sending = Sending("dramatiq")
        self._running = Memory()
        self._delayed = Memory()
        self._sent = Memory()
        self._ended = Memory()
        self._callbacks = Memory()
        self._ahead = threading.local()

    @property
    def trace_ahead(self) -> str:
        """The ``traceparent`` that the spans of the next message are below.

        Messages that are made before any of them is sent are one run, as far as is known by then.
        """
        known = self._sending.trace_ahead or getattr(self._ahead, "traceparent", "")
        if not known:
            known = self._ahead.traceparent = traceparent(new_trace_id(), new_span_id())
        return known

    @_harmless
    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        """A message is sent, or sent again."""
        now, options, message_id = time.time(), message.options, message.message_id
        due = now + (delay or 0) / 1000
        place = _place_in(message)
        if place is not None and self._running.get(message_id) is not None:
            # Before it is sent: the next attempt may start at once.
            self._retry(self._running.take(message_id), (delay or 0) / 1000)
            self._delayed.put(message_id, True)
            options[HEADER] = header_of(place.asked_for(due, now))
            return
        if place is not None and (self._delayed.take(message_id) or not self._sent.get(message_id)):
            # Delayed messages are sent a second time once they are due; planned ones were not sent before.
            place = place if place.queued else place.asked_for(due, now)
            place.queue()
            options[HEADER] = header_of(place)
            return
        # A program may send a message that it keeps as often as it likes: each time is a run.
        count = self._sent.count(message_id)
        if delay is not None:
            self._delayed.put(message_id, True)
        place = self._sending.place(
            message.actor_name, message_id if count == 1 else f"{message_id}+{count - 1}", due=due,
            group=_group_of(options), traceparent=_span_of(options),
        )  # fmt: skip
        options[HEADER] = header_of(place)
        self._plan(options, place)
        self._ahead.traceparent = ""
        _come_first()

    def _plan(self, options: dict[str, Any], place: Place, depth: int = 0) -> None:
        """Give places to the messages that come after one, in its options; those of the caller stay as they are."""
        target, callbacks = options.get("pipe_target"), options.get("group_completion_callbacks")
        if isinstance(target, Mapping) and depth < _MAX_PLANNED:
            inner = dict(target.get("options") or {})
            following = self._sending.place(
                str(target["actor_name"]), str(target["message_id"]), due=None,
                group=_group_of(inner), after=[place],
            )  # fmt: skip
            inner[HEADER] = header_of(following)
            self._plan(inner, following, depth + 1)
            options["pipe_target"] = {**target, "options": inner}
        if callbacks:
            uuid = options["group_completion_uuid"]
            options["group_completion_callbacks"] = [
                self._callback(uuid, number, callback, place) for number, callback in enumerate(callbacks)
            ]

    def _callback(self, uuid: str, number: int, callback: Mapping[str, Any], member: Place) -> dict[str, Any]:
        """A group's completion callback: it waits for all members of the group."""
        known: Place | None = self._callbacks.get((uuid, number))
        inner = dict(callback.get("options") or {})
        if known is None:
            # All members of one name are meant by the key without a number.
            known = self._sending.place(
                str(callback["actor_name"]), str(callback["message_id"]), due=None,
                after=[member._replace(number=None)],
            )  # fmt: skip
            self._callbacks.put((uuid, number), known)
        elif not self._callbacks.get((uuid, number, member.key)):
            known.step.depend_on(member.key)
            known.step.planned()
        self._callbacks.put((uuid, number, member.key), True)
        inner[HEADER] = header_of(known)
        return {**callback, "options": inner}

    @_harmless
    def before_process_message(self, broker: Any, message: Any) -> None:
        """A worker's thread begins with it."""
        place = _place_in(message)
        if place is None:
            name = message.actor_name
            place = Place(name, message.message_id, "", name, "", name, None, 0.0, "dramatiq")
            message.options[HEADER] = header_of(place)
        attempt = _attempt_of(message)
        place = place._replace(attempt=attempt)
        inputs = {"args": list(message.args), "kwargs": message.kwargs}
        place.step.started(attempt=attempt, inputs=inputs, **place.waits)
        self._running.put(message.message_id, RunningTask(place))

    @_harmless
    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """It has ended; other middleware has decided whether it is tried again."""
        task = self._end_of(message)
        if task is None:
            return
        step, attempt, resources = task.place.step, task.place.attempt, task.leave()
        if exception is None and message.failed:
            step.cancelled("Dropped: another middleware rejected the message", attempt=attempt)
        elif exception is None:
            step.finished(result, attempt=attempt, resources=resources)
        elif _is_timeout(exception):
            step.timed_out(exception, attempt=attempt, resources=resources)
        else:
            step.failed(exception, attempt=attempt, resources=resources)

    def _retry(self, task: RunningTask, delay: float) -> None:
        """A message's attempt failed, and another middleware sends it again, while the exception is handled."""
        error, resources = sys.exc_info()[1], task.leave()
        task.place.step.retrying(
            error, delay, timed_out=_is_timeout(error), attempt=task.place.attempt, resources=resources
        )

    @_harmless
    def after_skip_message(self, broker: Any, message: Any) -> None:
        """Another middleware skipped it."""
        task = self._end_of(message)
        if task is not None:
            task.leave()
            task.place.step.skipped("itself")

    def _end_of(self, message: Any) -> RunningTask | None:
        task: RunningTask | None = self._running.take(message.message_id)
        if message.failed:
            self._ended.put(message.message_id, True)
        return task

    @_harmless
    def after_nack(self, broker: Any, message: Any) -> None:
        """It is rejected: if no thread began with it, its actor is not known."""
        place = _place_in(message)
        if place is not None and self._ended.take(message.message_id) is None:
            place.step.failed(f"ActorNotFound: no worker knows the actor {message.actor_name}")

    @_harmless
    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        """The worker's process ends."""
        get_recorder().flush(_FLUSH_SECONDS)


_HOOKS: Final = (
    "before_enqueue", "before_process_message", "after_process_message", "after_skip_message",
    "after_nack", "after_worker_shutdown",
)  # fmt: skip


def _place_in(message: Any) -> Place | None:
    return place_of(message.options.get(HEADER))


def _is_timeout(error: BaseException | None) -> bool:
    from dramatiq.middleware import TimeLimitExceeded

    return isinstance(error, TimeLimitExceeded)


def _span_of(options: Mapping[str, Any]) -> str | None:
    """The span of a message that opentelemetry-instrumentor-dramatiq made, which ended before the message is sent."""
    inner = options.get("options")
    carrier = inner.get("trace_context") if isinstance(inner, Mapping) else None
    traceparent = carrier.get("traceparent") if isinstance(carrier, Mapping) else None
    return traceparent if isinstance(traceparent, str) else None


def _attempt_of(message: Any) -> int:
    retries = message.options.get("retries")
    return retries + 1 if type(retries) is int and retries >= 0 else 1
