"""How far the batches of each sender of events are stored, so that one that arrives again is not stored again.

A sender numbers its batches from 1 and sends one at a time. So whatever has a number that is not higher than the
highest stored one was stored before.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select

from tachograph.clock import NS
from tachograph_exporter.store.inserting import upsert
from tachograph_exporter.store.schema import event_senders

KEEP_SECONDS: Final = 7 * 86_400.0
"""How long a sender is remembered that sends nothing. Later, rows are still merged, but streams show events again."""

_senders = event_senders.c
_SEQUENCES: Final = select(_senders.sender, _senders.sequence).where(
    _senders.workspace_id == bindparam("workspace"), _senders.sender.in_(bindparam("senders", expanding=True))
)


def sequences(connection: Connection, workspace_id: str, senders: Collection[str]) -> dict[str, int]:
    """The number of the last batch that is stored of each of these senders; none of those that are new."""
    parameters = {"workspace": workspace_id, "senders": sorted(senders)}
    return {row.sender: row.sequence for row in connection.execute(_SEQUENCES, parameters)}


def note(connection: Connection, workspace_id: str, last: Mapping[str, int]) -> None:
    """Note the numbers of the last batches, in the transaction that stores them."""
    now = time.time_ns()
    rows = [
        {"workspace_id": workspace_id, "sender": sender, "sequence": sequence, "seen_ns": now}
        for sender, sequence in sorted(last.items())
    ]
    if rows:
        connection.execute(upsert(connection.dialect, event_senders), rows)


def prune(connection: Connection) -> None:
    """Forget senders that have sent nothing for `KEEP_SECONDS`."""
    connection.execute(delete(event_senders).where(_senders.seen_ns < time.time_ns() - round(KEEP_SECONDS * NS)))
