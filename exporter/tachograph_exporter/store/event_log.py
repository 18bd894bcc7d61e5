"""The event log: what was committed lately, in order, so that every process on a database can follow the others.

One row for every group of events. An event's sequence number is its row's, times 65,536, plus its place in the row: it
grows with the order of commits, survives restarts, and tells where to go on. Rows are kept for `KEEP_SECONDS`.

A log costs as much as the rows it tells of, so it is only written while somebody listens: whoever follows it says so in
``store_state`` under a name of its own, again and again; writers look at most once in `LOOK_SECONDS`. What was
committed before all of them had looked may be missing, so a row of its own then marks a gap: nobody goes on from before
it.
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
"""How long somebody who said to be listening is believed to be; long enough for a restart."""
LOOK_SECONDS: Final = 1.0
CHANNEL: Final = "tachograph_events"
"""What PostgreSQL tells listeners of new rows under."""
_LISTENER: Final = "listener:"
_SETTLED: Final = "settled"
_GAP: Final = "gap"
_PER_ROW: Final = 1 << 16

_log = event_log.c
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Event]).decode


class Logged(NamedTuple):
    """An event with its place in the log."""

    sequence: int
    event: Event


def append(connection: Connection, origin: str, events: Sequence[Event]) -> None:
    """Log a group of events in the transaction that commits them; what only the store needs is left out."""
    told = [event for event in events if type(event) is not Heartbeat and type(event) is not StepReady]
    if not told:
        return
    for i in range(0, len(told), _PER_ROW):
        part = told[i : i + _PER_ROW]
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


class Missed(Exception):
    """What a follower wants to go on from is no longer kept, or was not logged."""


def read(connection: Connection, after: int, rows: int = 50) -> list[Logged]:
    """Events behind a sequence number, from at most so many rows; an empty list: there are none yet.

    Raises `Missed` where there is a gap.
    """
    first, index = divmod(after, _PER_ROW)
    found: list[Logged] = []
    for row in connection.execute(_AFTER, {"row": first, "limit": rows + 1}):
        if row[2] == _GAP and row[0] > first:
            raise Missed(f"events since {after} were not all kept")
        for i, event in enumerate(_decode(row[1])):
            if row[0] > first or i > index:
                found.append(Logged(row[0] * _PER_ROW + i, event))
    return found


def check(connection: Connection, after: int) -> None:
    """Raises `Missed` when somebody who was at this sequence number cannot go on from there."""
    oldest, last = connection.execute(select(func.min(_log.sequence), func.max(_log.sequence))).one()
    if oldest is not None and after + 1 < oldest * _PER_ROW:
        raise Missed(f"events since {after} are no longer kept")
    if after >= ((last or 0) + 1) * _PER_ROW:
        raise Missed(f"no event has the number {after}")


def newest(connection: Connection) -> int:
    """The sequence number behind which lies what is committed from now on."""
    row = connection.execute(select(func.max(_log.sequence))).scalar()
    return (row + 1) * _PER_ROW - 1 if row is not None else 0


def prune(connection: Connection) -> None:
    """Let go of what is older than `KEEP_SECONDS`, except the newest row: sequence numbers go on from there."""
    before = time.time_ns() - round(KEEP_SECONDS * NS)
    last = select(func.max(_log.sequence)).scalar_subquery()
    connection.execute(delete(event_log).where(_log.time_ns < before, _log.sequence < last))


def listen(connection: Connection, name: str) -> bool:
    """Say that somebody follows the log. False: nobody did lately, so it has a gap; see `settle`."""
    is_whole = _said(connection, _SETTLED)
    state.set_state(connection, _LISTENER + name, _SETTLED if is_whole else "")
    return is_whole


def settle(connection: Connection, name: str) -> None:
    """Mark the gap, `LOOK_SECONDS` after somebody first said to listen: from here on all writers know."""
    if not _said(connection, _SETTLED):
        connection.execute(
            insert(event_log), {"origin": _GAP, "time_ns": time.time_ns(), "count": 0, "events": _encode([])}
        )
    state.set_state(connection, _LISTENER + name, _SETTLED)


def is_listened_to(connection: Connection) -> bool:
    """Whether somebody said lately to be following."""
    return _said(connection)


def _said(connection: Connection, value: str | None = None) -> bool:
    since = time.time_ns() - round(LISTENER_SECONDS * NS)
    wanted = store_state.c.name.startswith(_LISTENER) & (store_state.c.updated_ns > since)
    if value is not None:
        wanted &= store_state.c.value == value
    return connection.execute(select(store_state.c.name).where(wanted).limit(1)).first() is not None
