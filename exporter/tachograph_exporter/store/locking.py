"""Who may write to PostgreSQL at the same time. SQLite has a write lock of its own: there, nothing here does anything.

A transaction writes alone (`lock`), or shares the database with others (`share`) and claims what is its own: its
workflows, traces, senders (`claim`). What follows from several rows of a workflow, for instance its totals, is changed
only by who has claimed the workflow; so writers of different workflows commit at once.

No two wait for each other: claims are taken in the order of `Claim`, the keys of one in the order of their numbers, and
each kind at once. Whoever needs more than that, or finds that it has to do what only one may, raises `NotAlone`: the
transaction is rolled back and repeated alone (`retried_alone`). It never waits while others wait for it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection
from enum import IntEnum
from typing import Final, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")

_LOCK: Final = 0x7461_6368
_NAMESPACE: Final = 0x7461_6300
_TURN: Final = "tachograph_turn"
MAX_KEYS: Final = 256
"""Claims of one kind that a transaction may hold: PostgreSQL's table of locks has room for some thousands."""

_ALL: Final = "all"
# The planner underestimates fast-growing tables and would scan them.
_NO_SCAN: Final = "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true)"


class Claim(IntEnum):
    """What a transaction claims for itself while it shares the database, in the order of claiming."""

    WRITER = 1
    """A writer, which remembers what it has stored: its transactions are one after another."""
    SENDER = 2
    """Whoever sends batches or keys: one that is sent twice is stored once."""
    TRACE = 3
    WORKFLOW = 4
    GROUPS = 5
    """New groups of failures."""
    NAMES = 6
    """New names in the index of spans."""
    ORDER = 7
    """The end of the commit: what is numbered from here on (events in the log, deltas of series) becomes visible in the
    order of its numbers. A reader that has seen a number has seen all that are lower."""


class NotAlone(Exception):
    """The transaction has to be repeated alone."""


class _Turn:
    """What the transaction of a connection holds. ``keys``: by kind; None: everything."""

    __slots__ = ("keys", "transaction")

    def __init__(self, transaction: object, keys: dict[Claim, frozenset[str]] | None) -> None:
        self.transaction = transaction
        self.keys = keys


def _turn(connection: Connection) -> _Turn | None:
    turn: _Turn | None = connection.info.get(_TURN)
    # The dictionary belongs to the driver's connection, which has had other transactions.
    return turn if turn is not None and turn.transaction is connection.get_transaction() else None


def _begin(connection: Connection, keys: dict[Claim, frozenset[str]] | None) -> None:
    connection.info[_TURN] = _Turn(connection.get_transaction(), keys)


def lock(connection: Connection) -> None:
    """Write alone until the transaction ends. Raises `NotAlone` if it shares the database: it might wait for ever."""
    if connection.dialect.name != "postgresql":
        return
    turn = _turn(connection)
    if turn is None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK}), {_NO_SCAN}")
        _begin(connection, None)
    elif turn.keys is not None:
        raise NotAlone


def share(connection: Connection) -> None:
    """Write beside others until the transaction ends, unless it writes alone already."""
    if connection.dialect.name == "postgresql" and _turn(connection) is None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({_LOCK}), {_NO_SCAN}")
        _begin(connection, {})


def claim(connection: Connection, kind: Claim, keys: Collection[str] = (_ALL,)) -> None:
    """Claim what these keys name until the transaction ends; all that it will need of the kind.

    Raises `NotAlone` where that would be out of order, or too much.
    """
    if connection.dialect.name != "postgresql":
        return
    turn = _turn(connection)
    if turn is None:
        lock(connection)
        return
    if turn.keys is None:
        return
    new = frozenset(keys)
    if new <= turn.keys.get(kind, frozenset()):
        return
    if len(new) > MAX_KEYS or any(held >= kind for held in turn.keys):
        raise NotAlone
    numbers = sorted({_number(key) for key in new})
    connection.exec_driver_sql(
        f"SELECT count(pg_advisory_xact_lock({_NAMESPACE + kind}, key)) FROM unnest($1::int[]) AS key",  # noqa: S608
        (numbers,),
    )
    turn.keys[kind] = new


def trace_key(workspace_id: str, trace_id: str) -> str:
    """The key of a `Claim.TRACE`."""
    return f"{workspace_id}/{trace_id}"


def require(connection: Connection, kind: Claim, keys: Collection[str]) -> None:
    """Raises `NotAlone` unless the transaction has claimed these, or writes alone."""
    if connection.dialect.name == "postgresql":
        turn = _turn(connection)
        if turn is not None and turn.keys is not None and not turn.keys.get(kind, frozenset()).issuperset(keys):
            raise NotAlone


def is_shared(connection: Connection) -> bool:
    """Whether others may write at the same time."""
    if connection.dialect.name != "postgresql":
        return False
    turn = _turn(connection)
    return turn is not None and turn.keys is not None


def retried_alone(run: Callable[[Callable[[Connection], T]], T], work: Callable[[Connection], T]) -> T:
    """What ``run`` returns of ``work``, a transaction, which is repeated alone if it has to be."""
    try:
        return run(work)
    except NotAlone:
        return run(alone(work))


def alone(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
    """The same work, done alone."""

    def locked(connection: Connection) -> T:
        lock(connection)
        return work(connection)

    return locked


@functools.lru_cache(4096)
def _number(key: str) -> int:
    """A key as PostgreSQL's INTEGER. Keys that share one wait for each other, and that is all."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=4).digest(), "big", signed=True)


def look_up_by_key(connection: Connection) -> None:
    """Have PostgreSQL look rows up by index until the transaction ends.

    Of a table that grows fast it has no statistics, or old ones, and would read all of it for a few rows.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT {_NO_SCAN}")


def lock_schema(connection: Connection) -> None:
    """Take the same lock to change the schema, so that of processes that start together one migrates.

    The statements of a migration are planned as usual.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
