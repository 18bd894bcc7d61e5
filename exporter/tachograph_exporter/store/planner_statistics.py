"""Statistics for PostgreSQL's planner, of tables that grow fast.

PostgreSQL itself looks at a table at most once a minute, and not at what is not committed yet. Until then it plans for
an empty one, in which all indexes are alike: it takes any whose first column is the workspace, and reads all rows of
the workspace for each row of a trace. So whoever writes many rows of a table has it look, in the same transaction:
another one would see an empty table with many pages, and believe that it stays so.

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
    WHERE (pg_class.oid = to_regclass(:name) OR pg_class.oid IN (
            SELECT pg_inherits.inhrelid FROM pg_inherits WHERE pg_inherits.inhparent = to_regclass(:name)
        ))
      AND pg_class.relkind = 'r' AND pg_class.relhasindex
      AND pg_has_role(pg_class.relowner, 'USAGE')
      AND greatest(pg_class.relpages, 0) < :most
      AND pg_relation_size(pg_class.oid) / current_setting('block_size')::integer
          >= greatest(:few, 2 * greatest(pg_class.relpages, 0))
""")


def grown(connection: Connection, name: str) -> dict[str, str]:
    """A table, or its partitions, if they have at least doubled since PostgreSQL looked at them, with their columns in
    indexes, as in SQL.
    """
    parameters = {"name": name, "few": _PAGES, "most": _MAX_PAGES}
    return {row[0]: row[1] for row in connection.execute(_GROWN, parameters)}


def written(connection: Connection, name: str, count: int) -> None:
    """Rows of a table were written in this transaction: PostgreSQL looks at it, if it has grown.

    If somebody else looks at it, or it is locked, it is left out.
    """
    counts: dict[str, int] = connection.info.setdefault(_WRITTEN, {})
    counts[name] = counts.get(name, 0) + count
    if counts[name] < _ROWS:
        return
    counts[name] = 0
    if tables := grown(connection, name):
        lists = ", ".join(f"{table} ({columns})" for table, columns in tables.items())
        connection.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) {lists}")
