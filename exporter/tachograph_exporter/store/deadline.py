"""When a read has to end: a slow query, or a slow reader of rows, is stopped in the middle of its work."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
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

    def check(self, *_: Any) -> None:
        """Raise `QueryTimeout` if it has passed."""
        if time.monotonic() > self._end:
            raise QueryTimeout(self.seconds)

    def call(self, work: Callable[[Connection], T], connection: Connection) -> T:
        """Call ``work`` on a connection to SQLite, whose statements end then. Raises `QueryTimeout`."""
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: time.monotonic() > self._end, _STEPS)
        try:
            return work(connection)
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise QueryTimeout(self.seconds) from None
            raise
        finally:
            driver.set_progress_handler(None, 0)
