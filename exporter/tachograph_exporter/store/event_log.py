"""The event log: committed events in order, so that every process on a database can follow the others.

A row holds one group of events. An event's sequence number is its row's number times 65,536 plus its index in the row:
it grows in commit order, survives restarts, and marks where a follower resumes. Rows are kept for `KEEP_SECONDS`.

Logging costs as much as writing the rows themselves, so it happens only while someone listens. A listener registers in
``store_state`` under its own name and renews that again and again; writers check for listeners at most once in
`LOOK_SECONDS`. Events committed before every writer has checked may be missing, so a gap row then marks the place:
nobody can resume from before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select

from tachograph.clock import NS
from tachograph.events import Event, Heartbeat, StepReady
from tachograph_exporter.store import state
from tachograph_exporter.store.schema import event_log, store_state

KEEP_SECONDS: Final = 900.0
LISTENER_SECONDS: Final = 120.0
"""How long a registration lasts without renewal; long enough for a restart."""
LOOK_SECONDS: Final = 1.0
CHANNEL: Final = "tachograph_events"
"""The channel of PostgreSQL's notifications of new rows."""
_LISTENER: Final = "listener:"
_SETTLED: Final = "settled"
_GAP: Final = "gap"
_PER_ROW: Final = 1 << 16

_log = event_log.c
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Event]).decode


class Logged(NamedTuple):
    """An event and its sequence number."""

    sequence: int
    event: Event


def append(connection: Connection, origin: str, events: Sequence[Event]) -> None:
    """Log a group of events in the transaction that commits them, without those that only the store needs."""
    logged = [event for event in events if type(event) is not Heartbeat and type(event) is not StepReady]
    if not logged:
        return
    for i in range(0, len(logged), _PER_ROW):
        part = logged[i : i + _PER_ROW]
        connection.execute(
            insert(event_log),
            {"origin": origin, "time_ns": time.time_ns(), "count": len(part), "events": _encode(part)},
        )
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


_AFTER: Final = (
    select(_log.sequence, _log.events, _log.origin)
    .where(_log.sequence >= bindparam("row"))
    .order_by(_log.sequence)
    .limit(bindparam("limit"))
)


class EventsMissed(Exception):
    """Events after a follower's position are no longer kept, or were never logged."""


def read(connection: Connection, after: int, rows: int = 50) -> list[Logged]:
    """Events after a sequence number, from at most ``rows`` rows; empty if there are none yet.

    Raises `Missed` at a gap.
    """
    first, index = divmod(after, _PER_ROW)
    events: list[Logged] = []
    for row in connection.execute(_AFTER, {"row": first, "limit": rows + 1}):
        if row[2] == _GAP and row[0] > first:
            raise EventsMissed(f"events since {after} were not all kept")
        for i, event in enumerate(_decode(row[1])):
            if row[0] > first or i > index:
                events.append(Logged(row[0] * _PER_ROW + i, event))
    return events


def check(connection: Connection, after: int) -> None:
    """Raises `Missed` if a follower cannot resume after this sequence number."""
    oldest, last = connection.execute(select(func.min(_log.sequence), func.max(_log.sequence))).one()
    if oldest is not None and after + 1 < oldest * _PER_ROW:
        raise EventsMissed(f"events since {after} are no longer kept")
    if after >= ((last or 0) + 1) * _PER_ROW:
        raise EventsMissed(f"no event has the number {after}")


def newest(connection: Connection) -> int:
    """The current position: events committed from now on have higher sequence numbers."""
    row = connection.execute(select(func.max(_log.sequence))).scalar()
    return (row + 1) * _PER_ROW - 1 if row is not None else 0


def prune(connection: Connection) -> None:
    """Delete rows older than `KEEP_SECONDS`, except the newest: sequence numbers continue from it."""
    before = time.time_ns() - round(KEEP_SECONDS * NS)
    last = select(func.max(_log.sequence)).scalar_subquery()
    connection.execute(delete(event_log).where(_log.time_ns < before, _log.sequence < last))


def listen(connection: Connection, name: str) -> bool:
    """Register or renew a listener. Returns False if the log has a gap, as nobody listened before; see `settle`."""
    is_complete = _has_listener(connection, _SETTLED)
    state.set_state(connection, _LISTENER + name, _SETTLED if is_complete else "")
    return is_complete


def settle(connection: Connection, name: str) -> None:
    """Mark the gap, `LOOK_SECONDS` after the first listener registered: from here on every writer logs."""
    if not _has_listener(connection, _SETTLED):
        connection.execute(
            insert(event_log), {"origin": _GAP, "time_ns": time.time_ns(), "count": 0, "events": _encode([])}
        )
    state.set_state(connection, _LISTENER + name, _SETTLED)


def has_listeners(connection: Connection) -> bool:
    """Whether anyone listens."""
    return _has_listener(connection)


def _has_listener(connection: Connection, value: str | None = None) -> bool:
    since = time.time_ns() - round(LISTENER_SECONDS * NS)
    matches = store_state.c.name.startswith(_LISTENER) & (store_state.c.updated_ns > since)
    if value is not None:
        matches &= store_state.c.value == value
    return connection.execute(select(store_state.c.name).where(matches).limit(1)).first() is not None
