"""A listener's bounded queue and thread, so that a slow listener delays only itself.

Putting an event costs one append. The thread wakes at the first event, waits a moment for more (so that a store commits
batches and a busy run does not pay for a thread switch per event), and delivers the batch. Events that do not fit, or
that the listener refuses, are dropped and counted by reason. The producer is never blocked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from tachograph.errors import StoreUnavailable
from tachograph.events import Event, Listener

log = logging.getLogger(__name__)

Deliver: TypeAlias = Callable[[Sequence[Event]], None]

REASONS: Final = ("closed", "error", "queue_full", "shutdown_timeout", "unavailable")
"""Why events are dropped: the queue was closed or full; the listener raised, was too slow, or was unavailable."""
QUEUE_LIMIT: Final = 200_000
"""Events a queue holds before it drops new ones."""
GATHER_SECONDS: Final = 0.02
"""How long the thread waits for more events after the first."""
MAX_BATCH: Final = 5_000


class BatchListener(Protocol):
    """A listener that takes events in batches, for instance to commit them together.

    It raises `StoreUnavailable` while its destination is unavailable (a locked database, a full disk): the batch is
    kept and offered again. Any other exception means that the batch is bad; its events are then offered singly, so that
    a bad event costs no other.
    """

    def apply(self, events: Sequence[Event], /) -> None: ...


class ListenerQueue:
    """Delivers events to a listener, in order and in a thread of its own. Safe from any thread."""

    def __init__(
        self,
        name: str,
        listener: Listener | BatchListener,
        *,
        queue_limit: int = QUEUE_LIMIT,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self.name = name
        self.dropped: Counter[str] = Counter()
        self._deliver: Deliver = getattr(listener, "apply", None) or self._singly(listener)  # type: ignore[arg-type]
        self.listener = listener
        self.queue_limit = queue_limit
        self._gather = gather_seconds
        self.reset()

    def reset(self) -> None:
        """Start over with an empty queue and no thread: for a forked child, whose parent keeps what was queued."""
        self._queue: deque[Event] = deque()
        self._lock = threading.Lock()
        self._delivering = threading.Lock()
        self._settled = threading.Condition(threading.Lock())
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._closed = False
        self._delivered = 0
        self._acknowledged = 0
        self._in_hand = 0
        self._paused = False
        self._warned_at = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def delivered(self) -> int:
        """Events that the listener received, by this queue or by another way, or that were dropped once queued."""
        return self._delivered + self._acknowledged

    def acknowledge(self, count: int) -> None:
        """Count events as delivered that the listener received by another way."""
        with self._lock:
            self._acknowledged += count

    def before_fork(self, timeout_seconds: float) -> None:
        """Wait until the listener is between two batches, so that a child does not inherit a lock that is held."""
        self._paused = self._delivering.acquire(timeout=timeout_seconds)

    def after_fork_in_parent(self) -> None:
        """Resume delivery."""
        if self._paused:
            self._delivering.release()

    def put(self, event: Event) -> None:
        """Queue an event; drop and count it when the queue is full or closed."""
        queue = self._queue
        if len(queue) >= self.queue_limit or self._closed:
            self.drop("closed" if self._closed else "queue_full")
            return
        queue.append(event)
        if self._asleep:
            self._asleep = False
            self._wake.set()
        elif self._thread is None:
            self._start()

    def drop(self, reason: str, count: int = 1) -> None:
        """Count events that this listener will never receive; logged at most every 10 seconds."""
        self.dropped[reason] += count
        now = time.monotonic()
        if now - self._warned_at > 10:
            self._warned_at = now
            total = sum(self.dropped.values())
            log.warning("%s: dropped %d event(s), reason %s; %d in total", self.name, count, reason, total)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued so far has been delivered; False on timeout."""
        with self._lock:
            goal = self._delivered + len(self._queue) + self._in_hand
        if threading.current_thread() is self._thread:
            return False  # It would wait for itself forever.
        deadline = time.monotonic() + timeout_seconds
        with self._settled:
            while self._delivered < goal:
                self._hurry.set()
                self._wake.set()
                left = deadline - time.monotonic()
                if left <= 0 or (self._thread is not None and not self._thread.is_alive()):
                    return False
                self._settled.wait(min(left, 0.5))
        return True

    def close(self, timeout_seconds: float) -> None:
        """Deliver what is queued, accept no more, and count what could not be delivered in time."""
        if self._thread is not None and not self.flush(timeout_seconds):
            left = len(self._queue)
            self._queue.clear()
            if left:
                self.drop("shutdown_timeout", left)
        self._closed = True
        self._wake.set()
        self._hurry.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"tachograph-{self.name}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        queue, wake, hurry = self._queue, self._wake, self._hurry
        while not (self._closed and not queue):
            if not queue:
                wake.clear()
                self._asleep = True
                # An event may have been put in between, by a producer that still saw the thread awake.
                if not queue and not self._closed:
                    wake.wait()
                self._asleep = False
                continue
            if not hurry.is_set():
                hurry.wait(self._gather)
            hurry.clear()
            while queue:
                with self._lock:
                    batch = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
                    self._in_hand = len(batch)
                with self._delivering:
                    self._offer(batch)
                with self._settled:
                    with self._lock:
                        self._delivered += len(batch)
                        self._in_hand = 0
                    self._settled.notify_all()

    def _offer(self, batch: Sequence[Event]) -> None:
        delay = 0.05
        while True:
            try:
                self._deliver(batch)
                return
            except StoreUnavailable as error:
                if self._closed:
                    self.drop("unavailable", len(batch))
                    return
                now = time.monotonic()
                if now - self._warned_at > 10:
                    self._warned_at = now
                    log.warning("%s: unavailable, %d event(s) are waiting: %s", self.name, len(batch), error)
                time.sleep(delay)
                delay = min(delay * 2, 2.0)
            except Exception:
                if len(batch) == 1:
                    log.exception("%s: rejected %s", self.name, type(batch[0]).__name__)
                    self.drop("error")
                    return
                for event in batch:
                    self._offer([event])
                return

    def _singly(self, listener: Listener) -> Deliver:
        def deliver(batch: Sequence[Event]) -> None:
            for event in batch:
                try:
                    listener(event)
                except Exception:
                    if not self.dropped["error"]:
                        log.exception("%s: raised on %s", self.name, type(event).__name__)
                    self.drop("error")

        return deliver
