"""Statistics for PostgreSQL's planner, of tables that grow fast.

PostgreSQL itself looks at a table at most once a minute, and not at what is not committed yet. Until then it plans for
an empty one, in which all indexes are alike: it takes any whose first column is the workspace, and reads all rows of
the workspace for each row of a trace. So whoever writes many rows has it look, in the same transaction: another one
would see an empty table with many pages, and believe that it stays so.

Only columns with an index are looked at: the others are long, and PostgreSQL looks at all of them in its own time.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

_ROWS: Final = 1_000
"""After so many rows, whoever writes them looks."""
_PAGES: Final = 8
"""A table without statistics gets them when it has so many pages (of 8 KiB); others when they have doubled."""
_MAX_PAGES: Final = 1 << 17
"""Of a table of a gigabyte, what the planner believes is right in proportion."""
_WRITTEN: Final = "tachograph_rows_written"

_GROWN: Final = text("""
    SELECT
        format('%I.%I', pg_namespace.nspname, pg_class.relname),
        (
            SELECT string_agg(format('%I', pg_attribute.attname), ', ') FROM pg_attribute
            WHERE pg_attribute.attrelid = pg_class.oid AND pg_attribute.attnum IN (
                SELECT unnest(pg_index.indkey) FROM pg_index WHERE pg_index.indrelid = pg_class.oid
            )
        )
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE pg_namespace.nspname = current_schema() AND pg_class.relkind = 'r' AND pg_class.relhasindex
      AND pg_has_role(pg_class.relowner, 'USAGE')
      AND greatest(pg_class.relpages, 0) < :most
      AND pg_relation_size(pg_class.oid) / current_setting('block_size')::integer
          >= greatest(:few, 2 * greatest(pg_class.relpages, 0))
""")


def grown(connection: Connection) -> dict[str, str]:
    """Tables that have at least doubled since PostgreSQL looked at them, with their columns in indexes, as in SQL.

    None on SQLite.
    """
    if connection.dialect.name != "postgresql":
        return {}
    return {row[0]: row[1] for row in connection.execute(_GROWN, {"few": _PAGES, "most": _MAX_PAGES})}


def refresh(connection: Connection) -> dict[str, str]:
    """Have PostgreSQL look at the tables that have grown; returns them.

    One that somebody else looks at, or that is locked, is left out.
    """
    tables = grown(connection)
    if tables:
        lists = ", ".join(f"{table} ({columns})" for table, columns in tables.items())
        connection.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) {lists}")
    return tables


def written(connection: Connection, count: int) -> None:
    """Rows were written in this transaction: `refresh`, if there were many since the last time."""
    if connection.dialect.name == "postgresql":
        info = connection.info
        info[_WRITTEN] = info.get(_WRITTEN, 0) + count
        if info[_WRITTEN] >= _ROWS:
            info[_WRITTEN] = 0
            refresh(connection)
