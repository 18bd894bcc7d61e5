"""The recorder: every event goes through it and fans out to spans, metrics, store, stream and subscribers.

Recording never raises and never blocks. Only the span listener's `begin` runs in the caller's thread, because a handler
must see its span as the current one; each listener has its own queue and thread. Events that a listener loses are
counted per listener and reason.

Fork: a child starts with empty queues; the parent keeps and delivers what it had queued. Children of `os.fork` and
`multiprocessing` may exit without exit handlers, so a child flushes whenever its outermost step or execution has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from multiprocessing import parent_process
from typing import Any, Final, Protocol, TypeAlias

from tachograph import folding, meter
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    Heartbeat,
    Listener,
    StepFinished,
    StepRetrying,
    StepsFolded,
    StepStacks,
    StepStarted,
    WorkflowExpected,
)
from tachograph.folded_stacks import StackWish
from tachograph.identity import ExecutionRef, Origin
from tachograph.recording import line_buffers, open_execution
from tachograph.recording.listener_queue import BatchListener, ListenerQueue
from tachograph.recording.long_in_children import LongInChildren
from tachograph.recording.problems import Problem
from tachograph.recording.relay import ParentListener, RelayAddress, RelayClient, RelayServer
from tachograph.recording.subscription import SUBSCRIPTION_LIMIT, Subscription
from tachograph.stacks import told
from tachograph.stacks.guests import guests_of, note_child
from tachograph.stacks.passing_on import kept_for
from tachograph.stacks.wishes import MAX_LONG, long_attempts

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 2.0
"""How often the owner of a running execution sends a heartbeat."""
CHILD_SECONDS: Final = 1.0
"""How often a child process tells its parent of its long steps, and is told what is asked."""
LEASE_SECONDS: Final = 30.0
"""How long after its last heartbeat an execution counts as lost, unless its process is known to be alive or dead."""
FLUSH_SECONDS: Final = 5.0
SHUTDOWN_SECONDS: Final = 2.0
"""How much of the time to close is left for the shutdown of the span provider."""
FORK_FLUSH_SECONDS: Final = 2.0
FLUSH_AGAIN_SECONDS: Final = 60.0
FORK_SECONDS: Final = 1.0
"""How long a fork waits at most for a listener to finish its batch."""
MAX_SAID: Final = 10_000
"""Steps of executions of which is remembered that it was said what is expected of them."""

_EXECUTION_EVENTS: Final = frozenset(
    {ExecutionQueued, ExecutionStarted, ExecutionFinished, Heartbeat, WorkflowExpected}
)


class SpanSink(Protocol):
    """A span listener: `begin` is called at once, the rest from its queue."""

    def begin(self, event: ExecutionStarted | StepStarted, /) -> None: ...
    def __call__(self, event: Event, /) -> None: ...
    def flush(self, timeout_seconds: float, /) -> bool: ...


# What to do before, the queues to put into, and what to do after.
_Route: TypeAlias = tuple[
    Callable[[Any], None] | None, tuple[Callable[[Event], None], ...], Callable[[Any], None] | None
]


class Recorder:
    """Fans events out. Calling it records one event; it never raises and never blocks. Safe from any thread."""

    def __init__(self, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.queues: dict[str, ListenerQueue] = {}
        self.events = 0
        self._said: set[tuple[str, str]] = set()
        self.span_errors = 0
        self.problems: Sequence[Problem] = ()
        """What does not work as configured; see `configure`."""
        self._spans: SpanSink | None = None
        self._heartbeat_seconds = heartbeat_seconds
        # Weak and by id: checking for subscriptions costs nothing, and an abandoned one disappears.
        self._subscriptions: dict[int, weakref.ref[Subscription]] = {}
        self._warned_late = False
        # In a child process nothing runs at exit: it flushes whenever its outermost step or execution has ended.
        self._is_child = parent_process() is not None
        self._parent: ParentListener | None = None
        self._relay: RelayServer | None = None
        self._closed = False
        self._reset()
        recorders.add(self)

    def _reset(self) -> None:
        self._open: dict[str, ExecutionRef] = {}
        self._running: set[str] = set()
        # In a child: the executions of its parent that work is done for.
        self._visited: dict[str, ExecutionRef] = {}
        self._long = LongInChildren()
        self._flush_again = 0.0
        self._lock = threading.Lock()
        self._heart: threading.Thread | None = None
        self._stop_heart = threading.Event()
        self._clear_routes()

    def add(self, name: str, listener: Listener | BatchListener, *, queue_limit: int | None = None) -> ListenerQueue:
        """Add a listener with a queue of its own. A `BatchListener` receives events in batches.

        A listener may decline events by two optional attributes: ``handles``, the set of event types it takes, and
        ``origins``, the set of origins whose executions it takes. Without them it receives everything. One whose
        ``takes_folded`` is False receives no events of folded steps but `StepsFolded`.
        """
        if name in self.queues:
            raise ValueError(f"a listener named {name!r} already exists")
        queue = ListenerQueue(name, listener, **({"queue_limit": queue_limit} if queue_limit else {}))
        self.queues = {**self.queues, name: queue}
        self._clear_routes()
        return queue

    def remove(self, name: str, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Remove a listener once it has received what is queued for it."""
        queue = self.queues.get(name)
        if queue is not None:
            self.queues = {key: value for key, value in self.queues.items() if key != name}
            self._clear_routes()
            queue.close(timeout_seconds)

    def set_spans(self, spans: SpanSink) -> None:
        """Set the span listener: it begins spans at once and ends them from its queue."""
        self._spans = spans
        self.add("spans", spans)

    @property
    def spans(self) -> SpanSink | None:
        """The span listener, if one is set."""
        return self._spans

    def subscribe(self, limit: int = SUBSCRIPTION_LIMIT) -> Subscription:
        """Subscribe to live events from now on; see `Subscription`."""
        subscription = Subscription(limit, self._forget)
        key, subscriptions = id(subscription), self._subscriptions
        subscriptions[key] = weakref.ref(subscription, lambda _: subscriptions.pop(key, None))
        return subscription

    def _subscribers(self) -> list[Subscription]:
        references = list(self._subscriptions.values())
        return [subscription for reference in references if (subscription := reference()) is not None]

    def _forget(self, subscription: Subscription) -> None:
        self._subscriptions.pop(id(subscription), None)

    def __call__(self, event: Event) -> None:
        """Record one event."""
        self.events += 1
        kind = type(event)
        # Not `event.execution`: on a step's event that is a property, and costs a call.
        if kind in _EXECUTION_EVENTS:
            origin, is_folded = event.execution.origin, False
        else:
            step = event.step  # type: ignore[union-attr]
            origin, is_folded = step.execution.origin, step.folded_as is not None
        routes = self._folded_routes if is_folded else self._routes
        before, puts, after = routes[origin].get(kind) or self._route(kind, origin, is_folded)
        if before is not None:
            before(event)
        for put in puts:
            put(event)
        if self._subscriptions:
            for subscription in self._subscribers():
                subscription._put(event)
        if after is not None:
            after(event)

    def publish(
        self, events: Sequence[Event], *, delivered_to: Collection[str] = (), are_foreign: bool = False
    ) -> None:
        """Fan out events that the listeners named in ``delivered_to`` already have.

        Those count the events as delivered and do not receive them again. For events that were committed to the store
        together with what they were derived from. ``are_foreign``: another process recorded them, which has their
        spans and sends heartbeats.
        """
        for name in delivered_to:
            if (queue := self.queues.get(name)) is not None:
                queue.acknowledge(len(events))
        skipped = {self.queues[name].put for name in delivered_to if name in self.queues}
        for event in events:
            self.events += 1
            origin, step = event.execution.origin, getattr(event, "step", None)
            is_folded = step is not None and step.folded_as is not None
            routes = self._folded_routes if is_folded else self._routes
            before, puts, after = routes[origin].get(type(event)) or self._route(type(event), origin, is_folded)
            if before is not None and not are_foreign:
                before(event)
            for put in puts:
                if put not in skipped:
                    put(event)
            for subscription in self._subscribers() if self._subscriptions else ():
                subscription._put(event)
            if after is not None and not are_foreign:
                after(event)

    def _clear_routes(self) -> None:
        self._routes: dict[Origin, dict[type[Event], _Route]] = {origin: {} for origin in Origin}
        self._folded_routes: dict[Origin, dict[type[Event], _Route]] = {origin: {} for origin in Origin}

    def _route(self, kind: type[Event], origin: Origin, is_folded: bool) -> _Route:
        """Where events of a type and origin go: to every listener that does not decline them."""
        # Before the queues are read: what `add` clears must not come back.
        routes = self._folded_routes if is_folded else self._routes
        queues = [queue for queue in self.queues.values() if _takes(queue.listener, kind, origin, is_folded)]
        if self._parent is not None:
            # The parent's listeners have them; only this process has its spans. The parent adds up what is folded.
            parents = kind is not StepsFolded
            queues = [q for q in queues if (parents and q.listener is self._parent) or q.name == "spans"]
        puts = tuple(queue.put for queue in queues)
        before: Callable[[Any], None] | None = None
        after: Callable[[Any], None] | None = None
        # Nobody waits for the spans or heartbeats of an execution that was assembled from spans. Who reports one says
        # which are open here; see `watch`.
        if origin is Origin.REPORTED:
            if kind in (ExecutionStarted, StepStarted) and self._spans is not None:
                before = self._begin_span
            elif kind in (StepFinished, StepRetrying):
                before = line_buffers.end_attempt
            elif kind is ExecutionFinished:
                before = _finish_lines
        elif origin is Origin.RECORDED:
            if kind is ExecutionStarted or (kind is StepStarted and (self._spans is not None or self._is_child)):
                before = self._begin
            elif kind in (StepFinished, StepRetrying):
                before = line_buffers.end_attempt
            elif kind is ExecutionFinished:
                before = _finish_folds
            elif kind is ExecutionQueued:
                # Its process must send heartbeats while it waits to start, too.
                before = self._watch
            if kind is ExecutionFinished or (kind is StepFinished and self._is_child):
                after = self._finish
        route = routes[origin][kind] = (before, puts, after)
        return route

    def is_news(self, execution_id: str, step: str) -> bool:
        """Whether nothing was said yet of what is expected of a step; from now on it was."""
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        before = len(self._said)
        self._said.add((execution_id, step))
        return len(self._said) > before

    def watch(self, execution: ExecutionRef) -> None:
        """Send heartbeats of an execution that is reported here, until `unwatch`."""
        self._open[execution.execution_id] = execution
        if self._heart is None:
            self._start_heart()

    def unwatch(self, execution: ExecutionRef) -> None:
        """Send no more heartbeats of it: nothing of it is open here."""
        self._open.pop(execution.execution_id, None)

    def _begin_span(self, event: ExecutionStarted | StepStarted) -> None:
        if self._spans is not None:
            try:
                self._spans.begin(event)
            except Exception:
                if not self.span_errors:
                    log.exception("the span listener raised; further errors are only counted")
                self.span_errors += 1
                if (queue := self.queues.get("spans")) is not None:
                    queue.drop("error")

    def _begin(self, event: ExecutionStarted | StepStarted) -> None:
        self._begin_span(event)
        if self._is_child:
            self._running.add(_span_id(event))
        if type(event) is ExecutionStarted:
            self._watch(event)
        elif self._parent is not None:
            self._visited[event.execution.execution_id] = event.execution
            if self._heart is None:
                self._start_heart()

    def visit(self, execution: ExecutionRef) -> None:
        """Work of a parent's execution begins in this child, until `leave`: it asks the parent what is asked of it."""
        if self._parent is not None:
            self._visited[execution.execution_id] = execution
            if self._heart is None:
                self._start_heart()

    def leave(self, execution: ExecutionRef) -> None:
        """Such work ends. Other threads may still do some: their next step says so."""
        if not self._running:
            self._visited.pop(execution.execution_id, None)

    def _watch(self, event: ExecutionQueued | ExecutionStarted) -> None:
        self.watch(event.execution)

    def _finish(self, event: ExecutionFinished | StepFinished) -> None:
        if type(event) is ExecutionFinished:
            self._open.pop(event.execution.execution_id, None)
        if self._is_child:
            self._running.discard(_span_id(event))
            if not self._running:
                if not guests_of(event.execution.execution_id):
                    self._visited.clear()
                for queue in self.queues.values():
                    queue.settle(FORK_FLUSH_SECONDS)
                # When exporting times out (a collector that hangs), do not try again for a while.
                if self._spans is None or time.monotonic() < self._flush_again:
                    return
                if not self._spans.flush(FORK_FLUSH_SECONDS):
                    self._flush_again = time.monotonic() + FLUSH_AGAIN_SECONDS

    @property
    def open_executions(self) -> int:
        """Number of executions that were queued or started here and have not ended."""
        return len(self._open)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until every listener has received what was recorded so far and spans are exported; False on timeout."""
        line_buffers.flush_all()
        self._emit_folds()
        deadline = time.monotonic() + timeout_seconds
        is_flushed = True
        for queue in list(self.queues.values()):
            is_flushed &= queue.flush(max(0.0, deadline - time.monotonic()))
        if self._spans is not None:
            is_flushed &= self._spans.flush(max(0.0, deadline - time.monotonic()))
        return is_flushed

    def hold(self) -> None:
        """In a forked child: what is recorded from now on waits for `tell_parent` or `hand_over`."""
        if self._parent is not None and (queue := self.queues.get("parent")) is not None:
            queue.hold()

    def hand_over(self, timeout_seconds: float = FLUSH_SECONDS) -> bool:
        """In a process that ends now without exit handlers: as `flush`, but a forked child waits for no answer.

        What its parent was sent is its parent's, whether this process still exists or not.
        """
        if not self.tell_parent():
            return self.flush(timeout_seconds)
        return self._spans is None or self._spans.flush(timeout_seconds)

    def tell_parent(self) -> bool:
        """In a forked child: send its parent what was recorded, in this thread, and wait for no answer.

        False if that is not possible; then what was recorded goes its usual way.
        """
        queue = self.queues.get("parent")
        if self._parent is None or queue is None:
            return False
        line_buffers.flush_all()
        events = queue.take()
        if events:
            try:
                self._parent.client.post(events)
            except OSError:
                self._relay_lost(events)
                return False
        return events is not None

    def close(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Flush and stop. What cannot be delivered in time is counted as dropped. Calling it again does nothing."""
        if self._closed:
            return
        line_buffers.flush_all()
        self._emit_folds()
        self._closed = True
        self._stop_heart.set()
        recorders.discard(self)
        if self._relay is not None:
            self._relay.close()
        deadline = time.monotonic() + timeout_seconds
        for queue in list(self.queues.values()):
            queue.close(max(0.1, deadline - time.monotonic()))
        if self._spans is not None:
            # The provider's own shutdown, at exit, exports what is left.
            self._spans.flush(max(0.1, deadline - time.monotonic() - min(SHUTDOWN_SECONDS, timeout_seconds / 2)))
        for subscription in self._subscribers():
            subscription.close()
        for queue in self.queues.values():
            if (close := getattr(queue.listener, "close", None)) is not None:
                close()

    def _start_heart(self) -> None:
        with self._lock:
            if self._heart is None:
                heart = threading.Thread(target=self._beat, name="tachograph-heartbeat", daemon=True)
                with contextlib.suppress(RuntimeError):  # No thread can be started now; the next execution tries again.
                    heart.start()
                    self._heart = heart

    def _beat(self) -> None:
        stop, is_child = self._stop_heart, self._parent is not None
        while not stop.wait(min(CHILD_SECONDS, self._heartbeat_seconds) if is_child else self._heartbeat_seconds):
            is_child = self._parent is not None
            self._emit_folds()
            # Once the parent is gone, nobody knows whether its executions go on.
            visited = self._visited.copy() if is_child else {}
            for execution in {**visited, **self._open.copy()}.values():
                long = (*long_attempts(execution.execution_id), *self._long.of(execution.execution_id))
                self(Heartbeat(execution=execution, time_ns=time.time_ns(), long=long[:MAX_LONG]))

    def _emit_folds(self) -> None:
        if self._parent is None:
            try:
                folding.emit_all()
            except Exception:
                log.exception("what folded steps add up to could not be said")

    def relay_address(self) -> RelayAddress | None:
        """Where child processes send their events to; None when this process cannot take any."""
        if self._parent is not None:
            # A child's child reports to the same process.
            return self._parent.client.address
        with self._lock:
            if self._relay is None and not self._closed:
                try:
                    self._relay = RelayServer(self._receive)
                except OSError:
                    log.exception("child processes record on their own: their events cannot be taken here")
                    return None
            return self._relay.address if self._relay is not None else None

    def relay_to(self, address: RelayAddress) -> None:
        """In a child process: send all events but spans to the parent, until that one is gone."""
        with self._lock:
            if self._parent is not None or (self._relay is not None and self._relay.address == address):
                return
            self._is_child = True
            self._parent = ParentListener(RelayClient(address), self._relay_lost)
        self.queues.pop("parent", None)
        self.add("parent", self._parent)

    def _relay_lost(self, events: Sequence[Event]) -> None:
        """The parent is gone: from now on, and for these events, this process's own listeners serve."""
        self._parent = None
        self._clear_routes()
        for event in events:
            for queue in self.queues.values():
                step = getattr(event, "step", None)
                is_folded = step is not None and step.folded_as is not None
                if queue.name not in ("parent", "spans") and _takes(
                    queue.listener, type(event), event.execution.origin, is_folded
                ):
                    queue.put(event)
        folding.emit_all(again=True)

    def _receive(self, events: Sequence[Event]) -> list[StackWish]:
        """Events of a child process: they go to all listeners but spans, which the child has exported itself.

        Returns what is asked of it.
        """
        alive = dict.fromkeys(event.execution.execution_id for event in events if type(event) is Heartbeat)
        events = [event for event in events if not self._is_taken(event)]
        timely = [event for event in events if open_execution.relayed(event, self._emit_relayed)]
        if len(timely) < len(events) and not self._warned_late:
            self._warned_late = True
            log.warning("a child process goes on after its run has ended; what it records from then on is left out")
        self.publish(timely, delivered_to=("spans",))
        return kept_for(alive)

    def _is_taken(self, event: Event) -> bool:
        """Whether what a child says is a part of what this process says itself: its sign of life, or its stacks."""
        if type(event) is StepStacks:
            return told.by_child(event)
        if type(event) is Heartbeat and event.execution.execution_id in self._open:
            self._long.note(event, 2 * self._heartbeat_seconds)
            note_child(event.execution.execution_id)
            return True
        return False

    def _emit_relayed(self, event: Event) -> None:
        self.publish([event], delivered_to=("spans",))

    def _before_fork(self) -> None:
        meter.prepare()
        if self._open or open_execution.is_open():
            # What the child records belongs to a run of this process.
            reporter, _ = open_execution.current()
            if reporter is not None:
                open_execution.watch(reporter)
            self.relay_address()
        for queue in self.queues.values():
            queue.before_fork(FORK_SECONDS)

    def _after_fork_in_parent(self) -> None:
        for queue in self.queues.values():
            queue.after_fork_in_parent()

    def _after_fork(self) -> None:
        self._is_child = True
        self._reset()
        relay, self._relay = self._relay, None
        if self._parent is not None:
            self._parent.client = RelayClient(self._parent.client.address)
        elif relay is not None:
            relay.after_fork()
            self._parent = ParentListener(RelayClient(relay.address), self._relay_lost)
            queue = ListenerQueue("parent", self._parent)
            self.queues = {**self.queues, "parent": queue}
        for queue in self.queues.values():
            if (reset := getattr(queue.listener, "after_fork", None)) is not None:
                reset()
            queue.reset()
        self._subscriptions = {}


def _span_id(event: ExecutionStarted | StepStarted | ExecutionFinished | StepFinished) -> str:
    return event.step.span_id if isinstance(event, StepStarted | StepFinished) else event.execution.span_id


def _finish_lines(event: ExecutionFinished) -> None:
    line_buffers.end_execution(event.execution.execution_id)


def _finish_folds(event: ExecutionFinished) -> None:
    _finish_lines(event)
    folding.finish(event.execution.execution_id)


def _takes(listener: Listener | BatchListener, kind: type[Event], origin: Origin, is_folded: bool) -> bool:
    if is_folded and kind is not StepsFolded and not getattr(listener, "takes_folded", True):
        return False
    kinds, origins = getattr(listener, "handles", None), getattr(listener, "origins", None)
    return (kinds is None or kind in kinds) and (origins is None or origin in origins)


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
