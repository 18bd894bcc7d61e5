"""When a read has to end: a slow query, or a slow reader of rows, is stopped in the middle of its work."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tachograph.errors import QueryTimeout

T = TypeVar("T")

_STEPS: Final = 10_000
"""Instructions of SQLite's machine between two looks at the clock: less than a millisecond."""


class Deadline:
    """A point in time, ``seconds`` from now."""

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then."""
        return max(0.0, self._end - time.monotonic())

    def has_passed(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() > self._end

    def check(self, *_: Any) -> None:
        """Raise `QueryTimeout` if it has passed."""
        if self.has_passed():
            raise QueryTimeout(self.seconds)

    def call(self, work: Callable[[Connection], T], connection: Connection) -> T:
        """Call ``work`` on a connection to SQLite, whose statements end then. Raises `QueryTimeout`."""
        with self._interrupting(connection):
            return work(connection)

    @contextmanager
    def _interrupting(self, connection: Connection, outer: Deadline | None = None) -> Iterator[None]:
        """Until it is left, statements of SQLite end then; afterwards, when ``outer`` has passed."""
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(self.has_passed, _STEPS)
        try:
            yield
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise QueryTimeout(self.seconds) from None
            raise
        finally:
            driver.set_progress_handler(outer.has_passed if outer is not None else None, _STEPS)


_CANCELED: Final = "57014"
"""SQLSTATE of a statement that took longer than it may."""


@contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[Deadline]:
    """End what only reads after so many seconds; the connection can be used afterwards. Raises `QueryTimeout`.

    On PostgreSQL, one statement may take so long; whoever runs several looks at the deadline in between.
    """
    limit = Deadline(seconds)
    if connection.dialect.name == "sqlite":
        with limit._interrupting(connection, connection.get_execution_options().get("tachograph_deadline")):
            yield limit
        return
    # To roll it back ends what has failed, and takes the setting back.
    nested = connection.begin_nested()
    try:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}")
        yield limit
    except Exception as error:
        if not connection.invalidated:
            nested.rollback()
        if getattr(getattr(error, "orig", None), "sqlstate", None) == _CANCELED:
            raise QueryTimeout(seconds) from None
        raise
    nested.rollback()
