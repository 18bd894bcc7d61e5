"""Rows looked up, changed or deleted by many keys.

PostgreSQL compares every row of a prefix with a list of keys where it believes that the prefix has few rows, as it does
of a table that grows fast: minutes for the 50,000 spans of a trace. So it gets a join that looks each key up by itself,
and changes row by row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Delete, Select, String, Update, bindparam, func, select, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect

KEYS: Final = "keys"
"""The parameter with the list of keys."""
_CHUNK: Final = 500
_KEY: Final = "changed_key"
_MANY: Final = 1 << 30


class Keyed(NamedTuple):
    """A statement in the form of each database."""

    in_list: Select[Any]
    each: Select[Any]

    def of(self, dialect: Dialect) -> Select[Any]:
        """The statement for a database."""
        return self.each if dialect.name == "postgresql" else self.in_list


def keyed(statement: Select[Any], column: Column[Any]) -> Keyed:
    """The statement for those rows whose text ``column`` is one of `KEYS`."""
    key = func.unnest(bindparam(KEYS, type_=ARRAY(String))).table_valued("key").render_derived()
    # With a limit, which is none, it is not merged into the join.
    rows = statement.where(column == key.c.key).limit(_MANY).lateral()
    return Keyed(
        statement.where(column.in_(bindparam(KEYS, expanding=True))),
        select(rows).select_from(key.join(rows, true())),
    )


def change_each(connection: Connection, change: Update | Delete, column: Column[Any], keys: Iterable[Any]) -> None:
    """Change, or delete, the row whose ``column`` is a key, for each of the keys.

    The condition of ``change`` and that column make a primary key.
    """
    rows = list(keys)
    if connection.dialect.name == "sqlite":
        # Its driver gives the interpreter away with every statement.
        for i in range(0, len(rows), _CHUNK):
            connection.execute(change.where(column.in_(rows[i : i + _CHUNK])))
    elif rows:
        connection.execute(change.where(column == bindparam(_KEY)), [{_KEY: key} for key in rows])
