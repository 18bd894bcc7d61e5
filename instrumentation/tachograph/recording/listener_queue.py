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
from functools import partial
from typing import Final, Protocol, TypeAlias

from tachograph import counters
from tachograph.errors import StoreUnavailable
from tachograph.events import Event, Listener
from tachograph.identity import random01
from tachograph.quiet_log import QuietLog
from tachograph.recording import fork_gate, open_execution, spool
from tachograph.recording.spool import Kept

log = logging.getLogger(__name__)

Deliver: TypeAlias = Callable[[Sequence[Event]], None]

REASONS: Final = ("closed", "error", "queue_full", "shutdown_timeout", *spool.REASONS, "unavailable")
"""Why events are dropped: the queue was closed or full; the listener raised, was too slow, or was unavailable; the
spool could not be written or was full."""
QUEUE_LIMIT: Final = 200_000
"""Events a queue holds before it drops new ones."""
GATHER_SECONDS: Final = 0.02
"""How long the thread waits for more events after the first."""
MAX_BATCH: Final = 5_000
SPOOL_SECONDS: Final = 1.0
"""How much of the time to close is kept for writing undelivered events to disk."""
LATE_FORK_SECONDS: Final = 0.05
"""How long a fork waits for a listener that is late already."""
_START_AGAIN_SECONDS: Final = 0.1
_SETTLE_AGAIN_SECONDS: Final = 60.0
_WARN_SECONDS: Final = 10.0


class BatchListener(Protocol):
    """A listener that takes events in batches, for instance to commit them together.

    It raises `StoreUnavailable` while its destination is unavailable (a locked database, a full disk): the batch is
    kept and offered again. Any other exception means that the batch is bad; its halves are then offered, and so on, so
    that a bad event costs no other. If it has a method ``set_aside``, that is called with the bad event and the error
    it was refused with; it may raise `StoreUnavailable`, too.

    If it has a method ``keep``, that is called with the events that could not be delivered by the end, and returns a
    `Kept`: how many of them will be delivered by a later process. If ``is_spooling`` is true after it took a batch, it
    put it on the disk, because its destination is unavailable.
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
        self.spooled = 0
        """Events that went to the spool, to be delivered later."""
        self._deliver: Deliver = getattr(listener, "apply", None) or self._singly(listener)  # type: ignore[arg-type]
        self.listener = listener
        self._keep: Callable[[Sequence[Event]], Kept] | None = getattr(listener, "keep", None)
        self._set_aside: Callable[[Event, BaseException], None] | None = getattr(listener, "set_aside", None)
        if hasattr(listener, "on_dropped"):
            listener.on_dropped = partial(self.drop, spool.FULL)
        self._errors = QuietLog(log)
        self.refused_in_a_row = 0
        """Events that the listener refused since it last took one."""
        self.last_refusal = ""
        """What it said when it last refused one, and of which type that was."""
        self.unavailable_reason = ""
        """Why the listener is unavailable now; empty: it is available, as far as is known."""
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
        self._lost = 0
        self._in_hand: Sequence[Event] = ()
        self._kept: Sequence[Event] = ()
        self._paused = False
        self._is_unavailable = False
        self._is_late = False
        self._is_held = False
        self._has_given_up = False
        self._start_at = 0.0
        self._settle_at = 0.0
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
        """Wait until the listener is between two batches, or waits for an answer: a child inherits no held lock."""
        self._paused = self._delivering.acquire(timeout=LATE_FORK_SECONDS if self._is_late else timeout_seconds)

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
        elif self._thread is None and not self._is_held:
            self._start()

    def hold(self) -> None:
        """From now on no thread is started to deliver events: they wait for `take`, or for `flush`."""
        self._is_held = True

    def take(self) -> Sequence[Event] | None:
        """What waits, for the caller to deliver; None while the listener has earlier events in hand."""
        self._is_held = False
        with self._lock:
            if self._in_hand:
                return None
            events = list(self._queue)
            self._queue.clear()
            self._delivered += len(events)
        return events

    def drop(self, reason: str, count: int = 1) -> None:
        """Count events that this listener will never receive; logged at most every 10 seconds."""
        self.dropped[reason] += count
        if self._may_warn():
            total = sum(self.dropped.values())
            log.warning("%s: dropped %d event(s), reason %s; %d in total", self.name, count, reason, total)

    def _may_warn(self) -> bool:
        now = time.monotonic()
        may_warn = self._warned_at == 0.0 or now - self._warned_at > _WARN_SECONDS
        if may_warn:
            self._warned_at = now
        return may_warn

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued so far has been delivered; False on timeout, or if some of it was dropped."""
        lost = self._lost
        return self._wait(timeout_seconds) and self._lost == lost

    def _wait(self, timeout_seconds: float) -> bool:
        """Wait until everything queued so far has been delivered or dropped; False on timeout."""
        if threading.current_thread() is self._thread:
            return False  # It would wait for itself forever.
        with self._lock:
            goal = self._delivered + len(self._queue) + len(self._in_hand)
        if self._thread is None and self._queue:
            self._start(at_once=True)
        deadline = time.monotonic() + timeout_seconds
        with self._settled:
            while self._delivered < goal:
                self._hurry.set()
                self._wake.set()
                left = deadline - time.monotonic()
                if self._thread is None or not self._thread.is_alive():
                    self._start(at_once=True)
                if left <= 0 or self._thread is None:
                    self._is_late = True
                    return False
                self._settled.wait(min(left, 0.5))
        return True

    def settle(self, timeout_seconds: float) -> None:
        """Deliver what is queued; what takes too long is spooled, if the listener can.

        For a forked child, which may end without exit handlers. A listener that was late is not waited for again for a
        while.
        """
        now = time.monotonic()
        if self._is_late and now < self._settle_at:
            self._spool_queue()
        elif not self._wait(timeout_seconds):
            self._settle_at = time.monotonic() + _SETTLE_AGAIN_SECONDS
            self._spool_queue()

    def _spool_queue(self) -> None:
        """Spool what waits. The batch in hand stays in hand, too: applying it twice does no harm."""
        if self._keep is None:
            return
        with self._lock:
            in_hand, waiting = self._in_hand, list(self._queue)
            self._queue.clear()
            self._delivered += len(waiting)
        self._spool([*(in_hand if in_hand is not self._kept else ()), *waiting], SPOOL_SECONDS)
        self._kept = in_hand

    def close(self, timeout_seconds: float) -> None:
        """Deliver what is queued and accept no more. Spool what could not be delivered in time, or count it as dropped.

        Takes no longer than ``timeout_seconds``, and at most `SPOOL_SECONDS` more for a disk that does not respond.
        """
        reserve = min(SPOOL_SECONDS, timeout_seconds / 5) if self._keep is not None else 0.0
        is_flushed = self._wait(timeout_seconds - reserve)
        self._closed = True
        if not is_flushed:
            self._give_up()
        self._wake.set()
        self._hurry.set()

    def _give_up(self) -> None:
        with self._lock:
            # Only a spool takes events that may still be delivered.
            in_hand = self._in_hand if self._keep is not None or self._is_unavailable else ()
            left = [*(in_hand if in_hand is not self._kept else ()), *self._queue]
            self._queue.clear()
            self._has_given_up = bool(in_hand)
        if not left:
            return
        if self._keep is not None:
            self._spool(left, SPOOL_SECONDS)
        else:
            self.drop("unavailable" if self._is_unavailable else "shutdown_timeout", len(left))

    def _spool(self, events: Sequence[Event], timeout_seconds: float) -> None:
        """Spool events; count those that could not be."""
        keep, result = self._keep, list[Kept]()
        if keep is None or not events:
            return

        def work() -> None:
            try:
                result.append(keep(events))
            except BaseException as error:
                log.error("%s: cannot spool %d event(s): %r", self.name, len(events), error)  # noqa: TRY400
                result.append(Kept(0, spool.FAILED))

        # In a thread of its own: a disk may not respond.
        worker = threading.Thread(target=work, name=f"tachograph-{self.name}-spool", daemon=True)
        try:
            worker.start()
        except RuntimeError:
            work()
        else:
            worker.join(timeout_seconds)
        kept = result[0] if result else Kept(0, spool.FAILED)
        self.spooled += kept.events
        if kept.events:
            log.warning(
                "%s: spooled %d event(s) that could not be delivered; a later process will deliver them",
                self.name, kept.events,
            )  # fmt: skip
        if kept.dropped:
            self.drop(spool.FULL, kept.dropped)
        if kept.events < len(events):
            self.drop(kept.reason, len(events) - kept.events)

    def _start(self, *, at_once: bool = False) -> None:
        """Start the thread. If that fails, events wait in the queue, and a later `put` or `flush` tries again."""
        with self._lock:
            if (self._thread is not None and self._thread.is_alive()) or not (
                at_once or time.monotonic() >= self._start_at
            ):
                return
            thread = threading.Thread(target=self._run, name=f"tachograph-{self.name}", daemon=True)
            # Before it runs, because it takes this back when it dies.
            self._thread = thread
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                self._thread = None
                self._start_at = time.monotonic() + _START_AGAIN_SECONDS
                if self._may_warn():
                    log.warning("%s: %s; events wait until that is possible", self.name, error)

    def _run(self) -> None:
        # It may have been started inside a step, whose context it got: what it does is no work of that step.
        open_execution.leave()
        try:
            while True:
                try:
                    self._deliver_until_closed()
                    return
                except BaseException:
                    # Out of memory, for instance. Without this thread everything that follows would be lost silently.
                    self._errors.exception("delivering", "%s: delivering failed", self.name)
                    self._lost += len(self._in_hand)
                    self.drop("error", len(self._in_hand))
                    self._put_down()
                    time.sleep(_START_AGAIN_SECONDS)
        finally:
            # Not even that was possible: the next event starts another thread, which begins with what is in hand.
            self._asleep = False
            if not self._closed:
                self._thread = None

    def _deliver_until_closed(self) -> None:
        queue, wake, hurry = self._queue, self._wake, self._hurry
        if self._in_hand:
            self._offer(self._in_hand)
            self._put_down()
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
                    self._in_hand = batch
                self._offer(batch)
                self._put_down()

    def _put_down(self) -> None:
        """Done with the batch in hand: it was delivered, or dropped and counted."""
        counters.note_own_thread()
        with self._settled:
            with self._lock:
                self._delivered += len(self._in_hand)
                self._in_hand = ()
            self._settled.notify_all()

    def _offer(self, batch: Sequence[Event]) -> None:
        delay = 0.05
        deliver, refusal = self._deliver, None
        while True:
            try:
                with fork_gate.delivering(self._delivering):
                    deliver(batch)
            except StoreUnavailable as error:
                self._is_late = True
                if self._closed:
                    if not self._has_given_up:
                        self._lost += len(batch)
                        self.drop("unavailable", len(batch))
                    return
                self.unavailable_reason = str(error)[:300]
                if not self._is_unavailable:
                    self._is_unavailable = True
                    if self._may_warn():
                        log.warning(
                            "%s: unavailable, events wait and are offered again until it is back: %s", self.name, error
                        )
                self._hurry.clear()
                # Not all processes at once, and not before the time that the destination asks for.
                asked_for = float(getattr(error, "retry_after_seconds", 0.0))
                self._hurry.wait(max(delay * (0.5 + random01() / 2), asked_for))
                delay = min(delay * 2, 2.0)
            except BaseException as error:
                if len(batch) > 1:
                    break
                if refusal is None:
                    refusal = error
                    self._refused(batch[0], error)
                    if self._set_aside is not None:
                        deliver = partial(self._put_aside, self._set_aside, error)
                        continue
                return
            else:
                if getattr(self.listener, "is_spooling", False):
                    # It is still unavailable, but what waits is on the disk.
                    self._is_late = False
                    self.spooled += len(batch)
                    return
                if self._is_unavailable:
                    log.info("%s: available again", self.name)
                self._is_unavailable = self._is_late = False
                self.unavailable_reason = ""
                if refusal is None:
                    self.refused_in_a_row = 0
                return
        middle = len(batch) // 2
        self._offer(batch[:middle])
        self._offer(batch[middle:])

    @staticmethod
    def _put_aside(
        set_aside: Callable[[Event, BaseException], None], error: BaseException, events: Sequence[Event]
    ) -> None:
        set_aside(events[0], error)

    def _refused(self, event: Event, error: BaseException) -> None:
        """The listener does not take an event, and will not later: count it, and say so, but not a thousand times."""
        kind = type(event).__name__
        self.refused_in_a_row += 1
        self.last_refusal = f"{kind}: {error!r}"[:300]
        self._errors.exception((kind, type(error)), "%s: refused %s", self.name, kind)
        self._lost += 1
        self.drop("error")

    def _singly(self, listener: Listener) -> Deliver:
        def deliver(batch: Sequence[Event]) -> None:
            for event in batch:
                try:
                    listener(event)
                except BaseException as error:
                    self._refused(event, error)
                else:
                    self.refused_in_a_row = 0

        return deliver
