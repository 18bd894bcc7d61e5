"""A durable store that may be away: it is opened when it can be, and what it cannot take is spooled meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from tachograph.errors import StoreError, StoreUnavailable
from tachograph.events import Event
from tachograph.identity import random01
from tachograph.quiet_log import QuietLog
from tachograph.recording import fork_gate
from tachograph.recording.listener_queue import BatchListener
from tachograph.recording.spool import Kept, Spool

log = logging.getLogger(__name__)
quiet = QuietLog(log)

FIRST_OPEN_SECONDS: Final = 1.0
"""How long a program waits at most for its database when recording is set up."""
OPEN_SECONDS: Final = 10.0
"""How long the listener queue's thread waits for it, each time it tries again."""
LOOK_SECONDS: Final = 10.0
"""How often a recording process looks for events that earlier processes spooled."""
DELIVER_SECONDS: Final = 0.5
"""How long it delivers those before it turns to its own events again."""
PATIENCE_SECONDS: Final = 1.0
"""How long the store may be away before events go to the spool."""
MIN_RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 10.0
"""How long it is left alone at least and at most, unless it asks for more, before what was spooled is offered again."""


class Opener(Protocol):
    """Opens the store at a URL.

    Raises `StoreError`; it is a `StoreUnavailable` too if the store is only away now (locked, not reachable).
    """

    def __call__(self, url: str, /, *, wait_seconds: float) -> BatchListener: ...


class SpooledStore:
    """A `BatchListener` for the store at ``url``.

    While the store cannot be opened, or is away, `apply` raises `StoreUnavailable`, and after `PATIENCE_SECONDS` it
    appends events to this process's journal in the spool instead; they are delivered, in order, once it is back.
    `keep` spools events for the next process that opens the same store; `apply` delivers what earlier processes have
    spooled.

    Args:
        url: the database's or the service's URL.
        opener: opens it.
        spool: where undelivered events are kept (default: the spool of this store).
    """

    takes_folded: Final = False

    def __init__(self, url: str, opener: Opener, *, spool: Spool | None = None) -> None:
        self.url = url
        self.spool = spool or Spool(url)
        self._opener = opener
        self.problem = ""
        """Why the store is not open yet."""
        self.on_dropped: Callable[[int], None] | None = None
        """Called with the number of events that were dropped because the spool was full."""
        self._store: BatchListener | None = None
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._away_since: float | None = None
        self._try_at = 0.0
        self._delay = MIN_RETRY_SECONDS
        self._courier: threading.Thread | None = None
        self._is_closed = False
        self._spooled = 0

    def open(self, wait_seconds: float = FIRST_OPEN_SECONDS) -> BatchListener:
        """The opened store. Raises `StoreError`, which is a `StoreUnavailable` too if that may change by itself."""
        if self._store is None:
            try:
                self._store = self._opener(self.url, wait_seconds=wait_seconds)
            except StoreError as error:
                self.problem = str(error)
                raise
            self.problem = ""
        return self._store

    @property
    def is_spooling(self) -> bool:
        """Whether events go to the spool, because the store is away."""
        return not self.spool.is_delivered

    def apply(self, events: Sequence[Event]) -> None:
        """Commit a batch of events, or spool it when the store is away for longer.

        Raises `StoreUnavailable` while the store cannot be opened or is away.
        """
        with self._lock:
            if self.is_spooling and not self._caught_up():
                self._append(events)
                return
            asked_at = time.monotonic()
            try:
                store = self._open_now(OPEN_SECONDS)
                with fork_gate.sending():
                    store.apply(events)
            except StoreUnavailable as error:
                if self._away_since is None:
                    self._away_since = asked_at
                if time.monotonic() - self._away_since < PATIENCE_SECONDS:
                    raise
                try:
                    self._append(events)
                except OSError as failure:
                    quiet.warning("append", "events wait in memory, because they cannot be spooled: %s", failure)
                    raise error from None
                where = self.spool.directories[0]
                log.warning("%s is away: events go to the spool in %s until it is back", self.spool.destination, where)
                self._put_off(error)
                self._start_courier()
                return
            self._away_since = None
            if time.monotonic() >= self._look_at:
                self.deliver_spooled(DELIVER_SECONDS)
                self._look_at = 0.0 if not self.spool.is_empty else time.monotonic() + LOOK_SECONDS

    def _open_now(self, wait_seconds: float) -> BatchListener:
        try:
            return self.open(wait_seconds)
        except StoreError as error:
            # Somebody may create the directory, give the permission, or upgrade; until then the events wait.
            raise StoreUnavailable(str(error)) from error

    def _append(self, events: Sequence[Event]) -> None:
        dropped = self.spool.append(events)
        self._spooled += len(events)
        if dropped and self.on_dropped is not None:
            self.on_dropped(dropped)

    def _put_off(self, error: StoreUnavailable) -> None:
        asked_for = float(getattr(error, "retry_after_seconds", 0.0))
        # Not all at once: many processes may wait for the same service.
        self._try_at = time.monotonic() + max(self._delay * (0.5 + random01() / 2), asked_for * (1 + random01() / 4))
        self._delay = min(self._delay * 2, MAX_RETRY_SECONDS)

    def _caught_up(self) -> bool:
        """Deliver what this process has spooled, if it is time to try; whether nothing of it is left.

        The caller holds the lock.
        """
        if time.monotonic() < self._try_at:
            return False
        try:
            store = self._open_now(FIRST_OPEN_SECONDS)
            # Nothing at all: to see whether the store is there, before the journal is closed.
            store.apply([])
        except StoreUnavailable as error:
            self._put_off(error)
            return False
        self.spool.close_journal()
        # On a bad network it goes on as long as something arrives.
        while self._deliver(store, None) and not self.spool.is_delivered:
            pass
        is_delivered = self.spool.is_delivered
        if not is_delivered:
            # Away again, or another process is delivering it. The next batch begins a new journal.
            self._put_off(StoreUnavailable())
        else:
            log.info("%s is back: what was spooled is delivered", self.spool.destination)
            self._away_since, self._delay, self._spooled = None, MIN_RETRY_SECONDS, 0
        return is_delivered

    def _start_courier(self) -> None:
        """Have a thread deliver what was spooled even if nothing more is recorded."""
        if self._courier is None or not self._courier.is_alive():
            courier = threading.Thread(target=self._deliver_until_empty, name="tachograph-courier", daemon=True)
            try:
                courier.start()
            except RuntimeError:
                return  # No thread can be started now; the next batch tries.
            self._courier = courier

    def _deliver_until_empty(self) -> None:
        while True:
            time.sleep(max(0.05, min(self._try_at - time.monotonic(), MAX_RETRY_SECONDS)))
            with self._lock:
                if self._is_closed or not self.is_spooling:
                    # Whoever spools next starts another thread, though this one has not quite ended.
                    self._courier = None
                    return
                try:
                    self._caught_up()
                except Exception as error:
                    quiet.exception(type(error), "what was spooled cannot be delivered now")
                    self._put_off(StoreUnavailable())

    def deliver_spooled(self, seconds: float | None) -> int:
        """Commit what earlier processes spooled, for at most about this long; returns the number of events."""
        return self._deliver(self.open(), seconds)

    def _deliver(self, store: BatchListener, seconds: float | None) -> int:
        return self.spool.deliver(store.apply, seconds=seconds, apply_batch=getattr(store, "apply_batch", None))

    def set_aside(self, event: Event, error: BaseException) -> None:
        """Have the store keep an event that it refused, with the reason, if it can."""
        store = self.open(OPEN_SECONDS)
        if (set_aside := getattr(store, "set_aside", None)) is not None:
            set_aside(event, error)

    def keep(self, events: Sequence[Event]) -> Kept:
        """Spool events that could not be delivered."""
        return self.spool.keep(events)

    def after_fork(self) -> None:
        """In a forked child, leave the parent's connections and journal alone."""
        self._begin()
        self.spool.after_fork()
        if (reset := getattr(self._store, "after_fork", None)) is not None:
            reset()

    def close(self) -> None:
        """Close the store if it was opened; what was spooled is delivered by the next process."""
        self._is_closed = True
        if not self.spool.is_delivered:
            log.warning("spooled %d event(s) that could not be delivered; a later process will deliver them",
                        self._spooled)  # fmt: skip
        self.spool.close_journal()
        if (close := getattr(self._store, "close", None)) is not None:
            close()
