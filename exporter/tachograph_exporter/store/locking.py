"""The lock that lets one process write at a time."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

_LOCK: Final = 0x7461_6368


def lock(connection: Connection) -> None:
    """Take the writers' lock until the transaction ends. SQLite needs none: it has one of its own."""
    if connection.dialect.name == "postgresql":
        # The planner underestimates fast-growing tables and would scan them; a writer always looks rows up by key.
        no_scan = "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true)"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK}), {no_scan}")


def lock_schema(connection: Connection) -> None:
    """Take the same lock to change the schema, so that of processes that start together one migrates.

    The statements of a migration are planned as usual.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
