"""The event log: committed events in order, so that every process on a database can follow the others.

A row holds one group of events. An event's sequence number is its row's number times 65,536 plus its index in the row:
it grows in commit order, survives restarts, and marks where a follower resumes. Rows are kept for `KEEP_SECONDS`.

Logging costs as much as writing the rows themselves, so it happens only while someone listens. Listeners register in
``store_state``, all in one row, and renew that again and again. Writers, whatever their process, look for listeners
in every transaction, and a listener registers while nobody else writes: what is committed after the registration is in
the log. What was committed while nobody listened is not: the first listener marks the place with a
gap row, and nobody can resume from before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    LargeBinary,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
)

from tachograph.clock import NS
from tachograph.events import Event, Heartbeat, StepReady, StepStacks, WorkflowExpected
from tachograph_exporter.store import locking, state
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.schema import event_log, store_state

KEEP_SECONDS: Final = 900.0
LISTENER_SECONDS: Final = 120.0
"""How long a registration lasts without renewal; long enough for a restart."""
CHANNEL: Final = "tachograph_events"
"""The channel of PostgreSQL's notifications of new rows."""
MAX_SEARCHED_BYTES: Final = 64 << 20
MAX_SEARCHED_EVENTS: Final = 200_000
"""How much of the log is searched for the events of one execution."""
_LISTENER: Final = "listener:any"
_GAP: Final = "gap"
_PER_ROW: Final = 1 << 16

_log = event_log.c
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Event]).decode


class Logged(NamedTuple):
    """An event and its sequence number."""

    sequence: int
    event: Event


_UNLOGGED: Final = frozenset({Heartbeat, StepReady, StepStacks, WorkflowExpected})


def append(connection: Connection, origin: str, events: Sequence[Event]) -> None:
    """Log a group of events in the transaction that commits them, without those that only the store needs."""
    logged = [event for event in events if type(event) not in _UNLOGGED]
    if not logged:
        return
    # A follower that has read a row looks for later ones only.
    locking.claim(connection, Claim.ORDER)
    for i in range(0, len(logged), _PER_ROW):
        part = logged[i : i + _PER_ROW]
        connection.execute(
            insert(event_log).values(time_ns=_now(connection)),
            {"origin": origin, "count": len(part), "events": _encode(part)},
        )
    if _is_postgresql(connection):
        connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


_AFTER: Final = (
    select(_log.sequence, _log.events, _log.origin)
    .where(_log.sequence >= bindparam("row"))
    .order_by(_log.sequence)
    .limit(bindparam("limit"))
)


class EventsMissed(Exception):
    """Events after a follower's position are no longer kept, or were never logged.

    ``position``: the sequence number from which on none is missing.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def read(connection: Connection, after: int, rows: int = 50) -> list[Logged]:
    """Events after a sequence number, from at most ``rows`` rows; empty if there are none yet.

    Raises `EventsMissed` at a gap.
    """
    first, index = divmod(after, _PER_ROW)
    events: list[Logged] = []
    for row in connection.execute(_AFTER, {"row": first, "limit": rows + 1}):
        if row[2] == _GAP and row[0] > first:
            if events:
                break
            raise EventsMissed(f"events since {after} were not all kept", row[0] * _PER_ROW)
        for i, event in enumerate(_decode(row[1])):
            if row[0] > first or i > index:
                events.append(Logged(row[0] * _PER_ROW + i, event))
    return events


def resume(connection: Connection, after: int, rows: int = 50) -> list[Logged]:
    """`read`, for a follower that may have been away for long. Raises `EventsMissed` if it cannot go on from there."""
    check(connection, after)
    return read(connection, after, rows)


class LoggedExecution(NamedTuple):
    """The events of an execution that the log holds, in order of commits, or the reason why they were not read.

    ``is_whole``: between the first and the last none is missing.
    """

    events: Sequence[Event] = ()
    is_whole: bool = False
    reason: str = ""


def of_execution(connection: Connection, execution_id: str, from_ns: int, to_ns: int | None) -> LoggedExecution:
    """An execution's events among those committed in a range of time (unix nanoseconds).

    Reads at most `MAX_SEARCHED_BYTES` of the log and decodes at most `MAX_SEARCHED_EVENTS` of it.
    """
    in_range = _log.time_ns >= from_ns
    if to_ns is not None:
        in_range &= _log.time_ns <= to_ns
    logged_bytes = connection.execute(select(func.sum(func.length(_log.events))).where(in_range)).scalar() or 0
    if logged_bytes > MAX_SEARCHED_BYTES:
        return LoggedExecution(reason="the event log has too much of its time")
    # Ids are plain text in msgpack, so rows without this execution need not be decoded.
    names = "position(CAST(:id AS bytea) IN events) > 0" if _is_postgresql(connection) else "instr(events, :id) > 0"
    rows = connection.execute(
        select(_log.sequence, _log.time_ns, _log.count.label("number"), _log.events)
        .where(in_range, text(names).bindparams(bindparam("id", execution_id.encode(), LargeBinary)))
        .order_by(_log.sequence)
    ).all()
    if sum(row.number for row in rows) > MAX_SEARCHED_EVENTS:
        return LoggedExecution(reason="the event log has too much of its time")
    try:
        logged = [event for row in rows for event in _decode(row.events)]
    except msgspec.MsgspecError as error:
        return LoggedExecution(reason=f"the event log cannot be read: {error}")
    events = [event for event in logged if event.execution.execution_id == execution_id]
    if not events:
        return LoggedExecution()
    gap = select(_log.sequence).where(
        _log.origin == _GAP, _log.sequence > rows[0].sequence, _log.sequence < rows[-1].sequence
    )
    is_whole = connection.execute(gap.limit(1)).first() is None
    return LoggedExecution(events, is_whole)


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def check(connection: Connection, after: int) -> None:
    """Raises `EventsMissed` if a follower cannot resume after this sequence number."""
    oldest, last = connection.execute(select(func.min(_log.sequence), func.max(_log.sequence))).one()
    if oldest is not None and after + 1 < oldest * _PER_ROW:
        raise EventsMissed(f"events since {after} are no longer kept", oldest * _PER_ROW - 1)
    if after >= ((last or 0) + 1) * _PER_ROW:
        raise EventsMissed(f"no event has the number {after}", newest(connection))


def newest(connection: Connection) -> int:
    """The current position: events committed from now on have higher sequence numbers."""
    row = connection.execute(select(func.max(_log.sequence))).scalar()
    return (row + 1) * _PER_ROW - 1 if row is not None else 0


def prune(connection: Connection) -> None:
    """Delete rows older than `KEEP_SECONDS`, except the newest, from which sequence numbers continue."""
    before = _now(connection) - round(KEEP_SECONDS * NS)
    last = select(func.max(_log.sequence)).scalar_subquery()
    connection.execute(delete(event_log).where(_log.time_ns < before, _log.sequence < last))
    # Earlier versions left a registration for each process.
    is_registration = store_state.c.name.startswith("listener:")
    connection.execute(delete(store_state).where(is_registration, store_state.c.updated_ns < before))


def listen(connection: Connection) -> int:
    """Register that someone listens, or renew it. Needs a transaction that may write.

    Returns the current position: everything that is committed from now on is in the log, after it. If nobody listened
    before, the log gets a gap there.
    """
    # Every other writer has committed, and the next one sees this registration.
    locking.lock(connection)
    if not has_listeners(connection):
        connection.execute(
            insert(event_log).values(time_ns=_now(connection)), {"origin": _GAP, "count": 0, "events": _encode([])}
        )
    state.set_state(connection, _LISTENER, "")
    if _is_postgresql(connection):
        connection.exec_driver_sql(_REGISTERED_NOW)
    return newest(connection)


# Hosts that share a PostgreSQL may have different times, so its own counts. The statements are written out and look up
# one row by its key, because every transaction that writes runs them.
_SERVER_NS: Final = "(extract(epoch FROM clock_timestamp()) * 1e6)::bigint * 1000"
_OURS: Final = f"name = '{_LISTENER}'"
_REGISTERED_NOW: Final = f"UPDATE store_state SET updated_ns = {_SERVER_NS} WHERE {_OURS}"  # noqa: S608 - constants
_IS_HEARD: Final = f"SELECT 1 FROM store_state WHERE {_OURS} AND updated_ns > "  # noqa: S608 - constants
_IS_HEARD_SQLITE: Final = f"{_IS_HEARD}?"
_IS_HEARD_POSTGRESQL: Final = f"{_IS_HEARD}{_SERVER_NS} - {round(LISTENER_SECONDS * NS)}"


def _now(connection: Connection) -> ColumnElement[int]:
    return literal_column(_SERVER_NS, BigInteger) if _is_postgresql(connection) else literal(time.time_ns(), BigInteger)


def has_listeners(connection: Connection) -> bool:
    """Whether anyone listens."""
    if _is_postgresql(connection):
        return connection.exec_driver_sql(_IS_HEARD_POSTGRESQL).first() is not None
    since = time.time_ns() - round(LISTENER_SECONDS * NS)
    return connection.exec_driver_sql(_IS_HEARD_SQLITE, (since,)).first() is not None
