"""One writer at a time, across processes."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

_LOCK: Final = 0x7461_6368


def lock(connection: Connection) -> None:
    """One writer at a time, across processes; until the transaction ends. SQLite has its own such lock."""
    if connection.dialect.name == "postgresql":
        # Tables that grow fast are estimated by what they were; what a writer looks up it finds by their keys.
        no_scan = "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true)"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK}), {no_scan}")
