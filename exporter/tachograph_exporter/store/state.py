"""Values that the store keeps under a name."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from tachograph_exporter.store.schema import (
    store_state,
)

WATERMARK: Final = "archived_before_s"
"""Name in ``store_state``: what ended before this (unix seconds, a whole day) may be gone from the tables."""


def watermark_of(connection: Connection) -> int:
    """Before when (unix seconds) executions may be gone from the tables; 0: never."""
    found = connection.execute(select(store_state.c.value).where(store_state.c.name == WATERMARK)).scalar()
    return int(found) if found is not None else 0


def set_watermark(connection: Connection, moment_s: int) -> None:
    """Note that executions that ended before a moment (a whole day) may be gone."""
    set_state(connection, WATERMARK, str(max(moment_s, watermark_of(connection))))


def set_state(connection: Connection, name: str, value: str) -> None:
    """Keep a value under a name."""
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(store_state)
    values = {"name": name, "value": value, "updated_ns": time.time_ns()}
    changed = {key: insert.excluded[key] for key in ("value", "updated_ns")}
    connection.execute(insert.values(values).on_conflict_do_update(index_elements=["name"], set_=changed))
