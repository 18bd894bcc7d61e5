"""The recorder: the one way through. Every event goes in here and fans out to spans, metrics, store and stream.

Rules that protect the workflow: recording never raises and never blocks. Only the span listener is called at once,
because the handler must see its span as the current one; everything else hangs on a lane with a queue and a thread of
its own. What a listener loses is counted per listener and reason.

Fork: a child starts with empty lanes (the parent keeps and delivers what it had queued). Because children of
`os.fork` and `multiprocessing` may leave without exit handlers, a child flushes whenever the outermost thing it
recorded has ended.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    Heartbeat,
    Listener,
    StepFinished,
    StepStarted,
)
from tachograph.identity import ExecutionRef
from tachograph.recording.listener_queue import BatchListener, ListenerQueue
from tachograph.recording.subscription import SUBSCRIPTION_LIMIT, Subscription

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 2.0
"""How often the owner of a running execution says that it lives."""
LEASE_SECONDS: Final = 30.0
"""After how long without a heartbeat an execution counts as lost (when nothing better is known of its process)."""
FLUSH_SECONDS: Final = 5.0
FORK_FLUSH_SECONDS: Final = 2.0
FLUSH_AGAIN_SECONDS: Final = 60.0
FORK_SECONDS: Final = 1.0
"""How long a fork waits at most for a listener to come between two groups of events."""


class SpanSink(Protocol):
    """What the recorder asks of the span listener: `begin` at once, the rest off the hot path."""

    def begin(self, event: ExecutionStarted | StepStarted, /) -> None: ...
    def __call__(self, event: Event, /) -> None: ...
    def flush(self, timeout_seconds: float, /) -> bool: ...


class Recorder:
    """Fans events out. Calling it records one event; it never raises and never blocks. Safe from any thread."""

    def __init__(self, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.queues: dict[str, ListenerQueue] = {}
        self.events = 0
        self.span_errors = 0
        self._routes: dict[type[Event], tuple[Callable[[Event], None], ...]] = {}
        self._spans: SpanSink | None = None
        self._heartbeat_seconds = heartbeat_seconds
        # By id, so that asking whether there are any costs nothing. Those nobody holds any more go by themselves.
        self._subscriptions: dict[int, weakref.ref[Subscription]] = {}
        self._begin_fresh()
        self._is_fork = False
        self._closed = False
        recorders.add(self)

    def _begin_fresh(self) -> None:
        self._open: dict[str, ExecutionRef] = {}
        self._depth = 0
        self._flush_again = 0.0
        self._lock = threading.Lock()
        self._heart: threading.Thread | None = None
        self._stop_heart = threading.Event()

    def add(self, name: str, listener: Listener | BatchListener, *, queue_limit: int | None = None) -> ListenerQueue:
        """Hang a listener on a lane of its own. A `BatchListener` gets events in groups.

        A listener with an attribute ``handles`` (a set of event types) gets no others.
        """
        if name in self.queues:
            raise ValueError(f"a listener called {name!r} is there already")
        queue = ListenerQueue(name, listener, **({"queue_limit": queue_limit} if queue_limit else {}))
        self.queues = {**self.queues, name: queue}
        self._routes = {}
        return queue

    def remove(self, name: str, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Take a listener off, after it has got what was queued for it."""
        queue = self.queues.get(name)
        if queue is not None:
            self.queues = {key: value for key, value in self.queues.items() if key != name}
            self._routes = {}
            queue.close(timeout_seconds)

    def set_spans(self, spans: SpanSink) -> None:
        """Set the span listener: begins spans at once, ends them on its lane."""
        self._spans = spans
        self.add("spans", spans)

    @property
    def spans(self) -> SpanSink | None:
        """The span listener, if there is one."""
        return self._spans

    def subscribe(self, limit: int = SUBSCRIPTION_LIMIT) -> Subscription:
        """Live events from now on, for streams; see `Subscription`."""
        subscription = Subscription(limit, self._forget)
        key, known = id(subscription), self._subscriptions
        known[key] = weakref.ref(subscription, lambda _: known.pop(key, None))
        return subscription

    def _subscribers(self) -> list[Subscription]:
        return [found for reference in list(self._subscriptions.values()) if (found := reference()) is not None]

    def _forget(self, subscription: Subscription) -> None:
        self._subscriptions.pop(id(subscription), None)

    def __call__(self, event: Event) -> None:
        """Record one event."""
        self.events += 1
        kind = type(event)
        if kind is StepStarted or kind is ExecutionStarted:
            self._begin(event)  # type: ignore[arg-type]
        elif kind is ExecutionQueued:
            # Who waits to start must be known to live, too.
            self._watch(event.execution)
        for put in self._routes.get(kind) or self._route(kind):
            put(event)
        if self._subscriptions:
            for subscription in self._subscribers():
                subscription._put(event)
        if kind is StepFinished or kind is ExecutionFinished:
            self._finished(event)

    def _route(self, kind: type[Event]) -> tuple[Callable[[Event], None], ...]:
        """Where events of a kind go: to every listener that does not say that it has no use for them."""
        puts = tuple(
            queue.put
            for queue in self.queues.values()
            if (wanted := getattr(queue.listener, "handles", None)) is None or kind in wanted
        )
        self._routes[kind] = puts
        return puts

    def _begin(self, event: ExecutionStarted | StepStarted) -> None:
        if self._spans is not None:
            try:
                self._spans.begin(event)
            except Exception:
                if not self.span_errors:
                    log.exception("the span listener raised; further errors are counted only")
                self.span_errors += 1
                if (queue := self.queues.get("spans")) is not None:
                    queue.drop("error")
        if self._is_fork:
            self._depth += 1
        if type(event) is ExecutionStarted:
            self._watch(event.execution)

    def _watch(self, execution: ExecutionRef) -> None:
        self._open[execution.execution_id] = execution
        if self._heart is None:
            self._start_heart()

    def _finished(self, event: Event) -> None:
        if type(event) is ExecutionFinished:
            self._open.pop(event.execution.execution_id, None)
        if self._is_fork:
            self._depth -= 1
            if self._depth <= 0:
                self._depth = 0
                # Where that takes too long (a collector that hangs), it is not tried again for a while.
                now = time.monotonic()
                if now >= self._flush_again and not self.flush(FORK_FLUSH_SECONDS):
                    self._flush_again = time.monotonic() + FLUSH_AGAIN_SECONDS

    @property
    def open_executions(self) -> int:
        """Executions that were queued or started here and have not ended."""
        return len(self._open)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until every listener has got what was recorded so far and spans are exported; False if not in time."""
        deadline = time.monotonic() + timeout_seconds
        done = True
        for queue in list(self.queues.values()):
            done &= queue.flush(max(0.0, deadline - time.monotonic()))
        if self._spans is not None:
            done &= self._spans.flush(max(0.0, deadline - time.monotonic()))
        return done

    def close(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Flush and stop. What cannot be delivered in time is counted as dropped. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._stop_heart.set()
        recorders.discard(self)
        deadline = time.monotonic() + timeout_seconds
        for queue in list(self.queues.values()):
            queue.close(max(0.1, deadline - time.monotonic()))
        if self._spans is not None:
            self._spans.flush(max(0.1, deadline - time.monotonic()))
        for subscription in self._subscribers():
            subscription.close()
        for queue in self.queues.values():
            if (close := getattr(queue.listener, "close", None)) is not None:
                close()

    def _start_heart(self) -> None:
        with self._lock:
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="tachograph-heartbeat", daemon=True)
                self._heart.start()

    def _beat(self) -> None:
        stop = self._stop_heart
        while not stop.wait(self._heartbeat_seconds):
            for execution in list(self._open.values()):
                self(Heartbeat(execution=execution, time_ns=time.time_ns()))

    def _before_fork(self) -> None:
        for queue in self.queues.values():
            queue.before_fork(FORK_SECONDS)

    def _after_fork_in_parent(self) -> None:
        for queue in self.queues.values():
            queue.after_fork_in_parent()

    def _after_fork(self) -> None:
        self._begin_fresh()
        self._is_fork = True
        for queue in self.queues.values():
            if (reset := getattr(queue.listener, "after_fork", None)) is not None:
                reset()
            queue.reset()
        self._subscriptions = {}


recorders: Final[weakref.WeakSet[Recorder]] = weakref.WeakSet()


def _each(recorders: Iterable[Recorder], act: Callable[[Recorder], None]) -> None:
    for recorder in list(recorders):
        try:
            act(recorder)
        except Exception:
            log.exception("a recorder could not be closed")


def close_all() -> None:
    """Flush and close every recorder of this process; registered to run at exit."""
    _each(recorders, Recorder.close)


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _each(recorders, Recorder._before_fork),
        after_in_parent=lambda: _each(recorders, Recorder._after_fork_in_parent),
        after_in_child=lambda: _each(recorders, Recorder._after_fork),
    )
