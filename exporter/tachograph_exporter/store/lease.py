"""A lease: of several processes on one database, one does something until it stops or falls silent.

The holder changes the lease's value every few seconds. Whoever sees it unchanged for `SILENCE_SECONDS`, by its own
clock, takes it; so the clocks of different machines need not agree. A holder on this machine that is dead is succeeded
at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from tachograph.identity import new_id
from tachograph.process import identity, is_alive
from tachograph_exporter.store.schema import store_state

BEAT_SECONDS: Final = 2.0
"""How often the holder renews it, and others look."""
SILENCE_SECONDS: Final = 6.0
"""Unchanged for this long, it is taken: with `BEAT_SECONDS`, within 8 s of the holder's death."""
LOOK_SECONDS: Final = 2.0
"""How long it may be relied on that it is ours after we have looked."""

_state = store_state.c


clock: Callable[[], float] = time.monotonic
"""Tells how long a lease has been silent."""


class Lease:
    """A process's claim to a lease. ``name``: of the lease, in the database's state."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._id = new_id()
        self._beat = 0
        self._seen: tuple[str, float] = ("", 0.0)
        self.is_held = False
        """Whether it was ours when we last looked."""

    @property
    def _owner(self) -> str:
        return f"{self._id} {identity()}"

    def _value(self, connection: Connection) -> str | None:
        return connection.execute(select(_state.value).where(_state.name == self._name)).scalar()

    def look(self, connection: Connection) -> bool:
        """Whether it is ours now."""
        self.is_held = (self._value(connection) or "").startswith(f"{self._id} ")
        return self.is_held

    def renew(self, connection: Connection) -> bool:
        """Renew it, or take it if nobody holds it. Returns whether it is ours. Writes."""
        value = self._value(connection)
        now = clock()
        if value and not value.startswith(f"{self._id} ") and not self._may_take(value, now):
            self.is_held = False
            return False
        self._beat += 1
        mine = {"value": f"{self._owner} {self._beat}", "updated_ns": time.time_ns()}
        try:
            if value is None:
                connection.execute(insert(store_state).values(name=self._name, **mine))
                self.is_held = True
            else:
                unchanged = (_state.name == self._name) & (_state.value == value)
                self.is_held = connection.execute(update(store_state).where(unchanged).values(**mine)).rowcount == 1
        except IntegrityError:
            self.is_held = False
            raise
        return self.is_held

    def _may_take(self, value: str, now: float) -> bool:
        owner = value.partition(" ")[2].rpartition(" ")[0]
        if owner != identity() and is_alive(owner) is False:
            return True
        if self._seen[0] != value:
            self._seen = (value, now)
        return now - self._seen[1] >= SILENCE_SECONDS

    def release(self, connection: Connection) -> None:
        """Give it up, so that another may take it at once."""
        value = self._value(connection)
        if value and value.startswith(f"{self._id} "):
            unchanged = (_state.name == self._name) & (_state.value == value)
            connection.execute(update(store_state).where(unchanged).values(value="", updated_ns=time.time_ns()))
        self.is_held = False
