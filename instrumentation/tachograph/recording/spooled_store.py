"""A durable store that may be away: it is opened when it can be, and what it cannot take by the end is spooled."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

from tachograph.errors import StoreError, StoreUnavailable
from tachograph.events import Event
from tachograph.recording.listener_queue import BatchListener
from tachograph.recording.spool import Kept, Spool

log = logging.getLogger(__name__)

FIRST_OPEN_SECONDS: Final = 1.0
"""How long a program waits at most for its database when recording is set up."""
OPEN_SECONDS: Final = 10.0
"""How long the listener queue's thread waits for it, each time it tries again."""
LOOK_SECONDS: Final = 10.0
"""How often a recording process looks for events that earlier processes spooled."""
DELIVER_SECONDS: Final = 0.5
"""How long it delivers those before it turns to its own events again."""


class Opener(Protocol):
    """Opens the store at a database URL.

    Raises `StoreError`; it is a `StoreUnavailable` too if the store is only away now (locked, not reachable).
    """

    def __call__(self, url: str, /, *, wait_seconds: float) -> BatchListener: ...


class SpooledStore:
    """A `BatchListener` for the store at ``url``.

    While the store cannot be opened, or is away, `apply` raises `StoreUnavailable`. `keep` spools events for the next
    process that opens the same database; `apply` delivers what earlier processes have spooled.

    Args:
        url: the database's URL.
        opener: opens it.
        spool: where undelivered events are kept (default: the spool of this database).
    """

    takes_folded: Final = False

    def __init__(self, url: str, opener: Opener, *, spool: Spool | None = None) -> None:
        self.url = url
        self.spool = spool or Spool(url)
        self._opener = opener
        self.problem = ""
        """Why the store is not open yet."""
        self._store: BatchListener | None = None
        self._look_at = 0.0

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

    def apply(self, events: Sequence[Event]) -> None:
        """Commit a batch of events. Raises `StoreUnavailable` while the database cannot be opened or is away."""
        try:
            store = self.open(OPEN_SECONDS)
        except StoreError as error:
            # Somebody may create the directory, give the permission, or upgrade; until then the events wait.
            raise StoreUnavailable(str(error)) from error
        store.apply(events)
        if time.monotonic() >= self._look_at:
            self.deliver_spooled(DELIVER_SECONDS)
            self._look_at = 0.0 if not self.spool.is_empty else time.monotonic() + LOOK_SECONDS

    def deliver_spooled(self, seconds: float) -> int:
        """Commit what earlier processes spooled, for at most about this long; returns the number of events."""
        return self.spool.deliver(self.open().apply, seconds=seconds)

    def set_aside(self, event: Event, error: BaseException) -> None:
        """Have the store keep an event that it refused, with the reason, if it can."""
        store = self.open(OPEN_SECONDS)
        if (set_aside := getattr(store, "set_aside", None)) is not None:
            set_aside(event, error)

    def keep(self, events: Sequence[Event]) -> Kept:
        """Spool events that could not be delivered."""
        return self.spool.keep(events)

    def after_fork(self) -> None:
        """In a forked child, leave the parent's connections alone."""
        if (reset := getattr(self._store, "after_fork", None)) is not None:
            reset()

    def close(self) -> None:
        """Close the store if it was opened."""
        if (close := getattr(self._store, "close", None)) is not None:
            close()
