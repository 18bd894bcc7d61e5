"""The one classifier of database errors: is the database away, or is the data bad?

"Away" may pass without anyone changing the data: nobody answers, a time-out, a lock, a full disk, no memory, a
read-only standby, a damaged file. What was to be written is kept and written again later, and a request is answered
with 503. Everything else is bad data, which would fail again.
"""

from __future__ import annotations

import concurrent.futures
import re
import sqlite3
from collections.abc import Iterator
from typing import Final

from sqlalchemy import exc

from tachograph.errors import DatabaseUnavailable, StoreUnavailable

_BAD_DATA_CLASSES: Final = ("22", "23", "42")
"""Classes of SQLSTATE that blame the statement or its values: data exception, integrity constraint violation, and
syntax error or access rule violation; see https://www.postgresql.org/docs/current/errcodes-appendix.html."""
_AWAY_STATES: Final = frozenset({"42501", "42P01", "42703", "42883"})
"""The exceptions in class 42: a missing permission, table, column or function blames the database, not the data."""
_BAD_DATA_SQLITE: Final = frozenset({18, 19, 20, 25})
"""SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH, SQLITE_RANGE; see https://sqlite.org/rescode.html."""
_DAMAGED_SQLITE: Final = frozenset({11, 26})
"""SQLITE_CORRUPT, SQLITE_NOTADB."""
_DAMAGED_STATES: Final = ("XX001", "XX002")
"""Data corrupted, index corrupted."""
_NO_THREAD: Final = "can't start new thread"
_ADAPTER: Final = "sqlalchemy.dialects.postgresql.asyncpg"
_CLASS_NAME: Final = re.compile(r"<class '[^']*'>: ")


def is_away(error: BaseException) -> bool:
    """Whether an error says that the database is not available now, but may be later."""
    for cause in _causes(error):
        if isinstance(cause, StoreUnavailable | OSError | MemoryError | exc.TimeoutError):
            return True
        if isinstance(cause, concurrent.futures.CancelledError):
            return True  # Its connection was closed.
        if isinstance(cause, RuntimeError) and _NO_THREAD in str(cause):
            return True
        state = getattr(cause, "sqlstate", None)
        if isinstance(state, str) and state:
            return state in _AWAY_STATES or not state.startswith(_BAD_DATA_CLASSES)
        code = getattr(cause, "sqlite_errorcode", None)
        if isinstance(code, int):
            return code & 0xFF not in _BAD_DATA_SQLITE
        if isinstance(cause, ValueError | OverflowError | TypeError):
            return False  # The driver refuses a value before it sends it.
    # A driver's own error without a code: the connection is closed, or not in a state to be used.
    return _is_connection_error(error)


def is_damage(error: BaseException) -> bool:
    """Whether an error says that what the database has stored is damaged."""
    for cause in _causes(error):
        code, state = getattr(cause, "sqlite_errorcode", None), getattr(cause, "sqlstate", None)
        if (isinstance(code, int) and code & 0xFF in _DAMAGED_SQLITE) or state in _DAMAGED_STATES:
            return True
    return False


def reason_of(error: BaseException) -> str:
    """What the driver says, in one line, without the statement and its values."""
    *_, cause = _causes(error)
    text = _CLASS_NAME.sub("", " ".join(str(cause).split()))
    return text[:300] or type(cause).__name__


def unavailable(error: BaseException, name: str) -> StoreUnavailable:
    """The error to raise for one that `is_away`. ``name``: the database's, for display."""
    if isinstance(error, StoreUnavailable):
        return error
    return DatabaseUnavailable(f"the database {name} is unavailable: {reason_of(error)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was made from: SQLAlchemy wraps its adapter's errors, and the adapter the driver's."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        is_wrapper = isinstance(cause, exc.SQLAlchemyError) or type(cause).__module__ == _ADAPTER
        cause = (getattr(cause, "orig", None) or cause.__cause__) if is_wrapper else None


def _is_connection_error(error: BaseException) -> bool:
    cause = error
    for cause in _causes(error):
        if isinstance(cause, exc.ResourceClosedError | exc.DisconnectionError):
            return True
    if isinstance(cause, sqlite3.Error):
        # A code says more; of those without one, these blame the statement or its values.
        return not isinstance(cause, sqlite3.ProgrammingError | sqlite3.IntegrityError | sqlite3.DataError)
    return type(cause).__module__.startswith(("asyncpg.", _ADAPTER))
