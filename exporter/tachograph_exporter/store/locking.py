"""The lock that lets one process write at a time, and how PostgreSQL plans what is looked up by key."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

_LOCK: Final = 0x7461_6368
_NO_SCAN: Final = "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true)"


def lock(connection: Connection) -> None:
    """Take the writers' lock until the transaction ends. SQLite needs none: it has one of its own."""
    if connection.dialect.name == "postgresql":
        # A writer always looks rows up by key.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK}), {_NO_SCAN}")


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
