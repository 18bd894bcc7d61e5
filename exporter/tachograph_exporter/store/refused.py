"""Records that were refused: what could not be stored as what it is, set aside with the reason until somebody looks.

An event that the writer refuses, or a trace whose executions cannot be assembled or stored, costs no other record. It
can be tried again, for instance after an upgrade. At most `MAX_RECORDS` are kept; further ones are only counted.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from tachograph.events import Event
from tachograph.identity import new_id, workspace_id
from tachograph_exporter.store.schema import refused_records

log = logging.getLogger(__name__)

EVENT: Final = "event"
"""Kind of a record whose payload is an event as JSON."""
TRACE: Final = "trace"
"""Kind of a record whose payload is an OTLP request with spans of one trace."""
LINEAGE: Final = "lineage"
"""Kind of a record whose payload is an OpenLineage event as it arrived."""
MAX_RECORDS: Final = 10_000
MAX_PAYLOAD_BYTES: Final = 8 << 20
"""A larger record is counted and not kept."""
_MAX_REASON: Final = 2_000

_records = refused_records.c


class RefusedRecord(NamedTuple):
    """A record that was refused. ``subject``: the id of its execution or trace. ``tries``: how often it was refused."""

    id: str
    kind: str
    workspace_id: str
    workspace: str
    subject: str
    reason: str
    payload: bytes
    refused_ns: int
    tries: int


def add(connection: Connection, kind: str, workspace: str, subject: str, error: BaseException, payload: bytes) -> bool:
    """Keep a record. Returns False, and keeps nothing, if it is too large or too many are kept already."""
    workspace = _storable(workspace)[:200]
    if len(payload) > MAX_PAYLOAD_BYTES or count(connection) >= MAX_RECORDS:
        return False
    connection.execute(
        insert(refused_records),
        {
            "id": new_id(), "kind": kind, "workspace_id": workspace_id(workspace), "workspace": workspace,
            "subject": _storable(subject)[:200], "reason": reason_of(error), "payload": payload,
            "refused_ns": time.time_ns(), "tries": 1,
        },
    )  # fmt: skip
    return True


def encode_event(event: Event) -> bytes:
    """An event as JSON, with numbers of any size and texts that no database stores."""
    return json.dumps(msgspec.to_builtins(event)).encode()


def decode_event(payload: bytes) -> Event:
    """The event that `encode_event` encoded. Raises `msgspec.ValidationError` if it is none of this version's."""
    event: Event = msgspec.convert(json.loads(payload), Event)
    return event


def reason_of(error: BaseException) -> str:
    """Why a record was refused, in one line."""
    cause = getattr(error, "orig", None) or error
    return _storable(" ".join(f"{type(cause).__name__}: {cause}".split()))[:_MAX_REASON]


def count(connection: Connection) -> int:
    """How many records are kept."""
    return connection.execute(select(func.count()).select_from(refused_records)).scalar_one()


def find(connection: Connection, identifier: str) -> RefusedRecord | None:
    """A record by its id."""
    row = connection.execute(select(refused_records).where(_records.id == identifier)).first()
    return RefusedRecord(*row) if row is not None else None


def listed(connection: Connection, after: str = "", limit: int = 100) -> Sequence[RefusedRecord]:
    """Records, oldest first, beginning after an id."""
    statement = select(refused_records).where(_records.id > after).order_by(_records.id).limit(limit)
    return [RefusedRecord(*row) for row in connection.execute(statement)]


def refused_again(connection: Connection, identifier: str, error: BaseException) -> None:
    """Note that a record was tried again, in vain."""
    changes = {"reason": reason_of(error), "tries": _records.tries + 1}
    connection.execute(update(refused_records).where(_records.id == identifier).values(**changes))


def remove(connection: Connection, identifier: str) -> bool:
    """Delete a record. Returns False if there is none."""
    return bool(connection.execute(_REMOVE, {"identifier": identifier}).rowcount)


_REMOVE: Final = delete(refused_records).where(_records.id == bindparam("identifier"))


def _storable(text: Any) -> str:
    """A text as every database can store it."""
    return str(text).replace("\0", "\ufffd").encode(errors="replace").decode()
