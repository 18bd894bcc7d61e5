"""Facts about the database itself: named values in ``store_state``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import msgspec
from sqlalchemy import Connection, select

from tachograph_exporter.store.inserting import upsert
from tachograph_exporter.store.schema import store_state

WATERMARK: Final = "archived_before_s"
"""Name of the watermark: executions that ended before it (unix seconds, a whole day) may be gone from the tables."""

SCRAPERS: Final = "workflow_metrics_scrapers"
"""Name of the scrapers of the workflow metrics, a JSON object."""

RESOURCES_SINCE: Final = "resources_counted_since_ns"
"""Since when it is counted what steps used: of those that ended before (unix ns) it is not."""


def watermark_of(connection: Connection) -> int:
    """The watermark in unix seconds; 0 if nothing was ever archived."""
    value = state_of(connection, WATERMARK)
    return int(value) if value is not None else 0


def set_watermark(connection: Connection, moment_s: int) -> None:
    """Raise the watermark to a moment; it never falls."""
    set_state(connection, WATERMARK, str(max(moment_s, watermark_of(connection))))


def scrapers_of(connection: Connection) -> dict[str, float]:
    """Who scrapes the workflow metrics, with the seconds between two scrapes (0: not known)."""
    value = state_of(connection, SCRAPERS)
    try:
        return msgspec.json.decode(value or "{}", type=dict[str, float])
    except msgspec.DecodeError:
        return {}


def set_scrapers(connection: Connection, scrapers: Mapping[str, float]) -> None:
    """Store who scrapes the workflow metrics."""
    set_state(connection, SCRAPERS, msgspec.json.encode(scrapers).decode())


def state_of(connection: Connection, name: str) -> str | None:
    """The value stored under a name."""
    value: str | None = connection.execute(select(store_state.c.value).where(store_state.c.name == name)).scalar()
    return value


def set_state(connection: Connection, name: str, value: str) -> None:
    """Store a value under a name, replacing the previous one."""
    values = {"name": name, "value": value, "updated_ns": time.time_ns()}
    connection.execute(upsert(connection.dialect, store_state), values)
