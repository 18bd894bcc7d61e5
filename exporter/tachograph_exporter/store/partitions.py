"""Monthly partitions of the run tables on PostgreSQL: deleting old executions is dropping a table.

Tables are partitioned by execution id. Ids are UUIDs of version 7 (RFC 9562), whose first 48 bits are unix
milliseconds: ids sort by time, and an execution's steps, attempts, reports and lines are in the partitions of the same
month. Other ids go to the default partition, or by chance to a month's, so a partition is dropped only if it is empty.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tachograph_exporter.store import locking

PARTITIONED: Final = (
    "workflow_executions",
    "workflow_step_executions",
    "workflow_step_attempts",
    "workflow_step_reports",
    "workflow_step_lines",
)

Month = tuple[int, int]
"""(year, month) in UTC."""
_DAY_MILLIS: Final = 86_400_000
_MAX_DAY: Final = 365 * 300


def month_of_id(execution_id: str) -> Month | None:
    """The month in which an execution id was made, or None if it is not a UUID of version 7."""
    if len(execution_id) != 36 or execution_id[14] != "7":
        return None
    try:
        return _month_of_day(int(execution_id[:8] + execution_id[9:13], 16) // _DAY_MILLIS)
    except ValueError:
        return None


@functools.lru_cache(4096)
def _month_of_day(day: int) -> Month | None:
    # Outside these years it is not one of ours, or a clock was wrong.
    if day > _MAX_DAY:
        return None
    moment = datetime.fromtimestamp(day * 86_400, UTC)
    return (moment.year, moment.month) if 2000 <= moment.year <= 2200 else None


def seconds_of_id(execution_id: str) -> int:
    """When an execution id was made, in unix seconds; 0 if it is not a UUID of version 7."""
    if month_of_id(execution_id) is None:
        return 0
    return int(execution_id[:8] + execution_id[9:13], 16) // 1000


def _bound(month: Month) -> str:
    millis = round(datetime(*month, 1, tzinfo=UTC).timestamp() * 1000)
    text = f"{millis:012x}"
    return f"{text[:8]}-{text[8:]}"


def _after(month: Month) -> Month:
    return (month[0] + 1, 1) if month[1] == 12 else (month[0], month[1] + 1)


def name_of(table: str, month: Month) -> str:
    """The name of a month's partition."""
    return f"{table}_y{month[0]}m{month[1]:02d}"


def ensure(connection: Connection, months: Iterable[Month]) -> None:
    """Create the partitions of these months where they are missing. Does nothing on SQLite."""
    if connection.dialect.name != "postgresql":
        return
    for month in sorted(set(months)):
        existing = connection.exec_driver_sql(f"SELECT to_regclass('{name_of(PARTITIONED[-1], month)}')").scalar()
        if existing is not None:
            continue
        # To attach a partition, no other transaction may write to its table.
        locking.lock(connection)
        low, high = _bound(month), _bound(_after(month))
        try:
            with connection.begin_nested():
                for table in PARTITIONED:
                    connection.exec_driver_sql(
                        f"CREATE TABLE IF NOT EXISTS {name_of(table, month)} PARTITION OF {table} "
                        f"FOR VALUES FROM ('{low}') TO ('{high}')"
                    )
        except DBAPIError:
            # The default partition has rows of that month. They stay there, and queries find them.
            continue


def ensure_coming(connection: Connection) -> None:
    """Create the partitions of this month and the next."""
    now = datetime.fromtimestamp(time.time(), UTC)
    ensure(connection, [(now.year, now.month), _after((now.year, now.month))])


def months(connection: Connection) -> Sequence[Month]:
    """The months that have partitions."""
    if connection.dialect.name != "postgresql":
        return ()
    names = connection.exec_driver_sql(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'workflow_executions'::regclass ORDER BY 1"
    ).scalars()
    parts = [name.removeprefix(f"{PARTITIONED[0]}_y").split("m") for name in names if "_y" in name]
    return [(int(year), int(month)) for year, month in parts]


def drop(connection: Connection, month: Month) -> None:
    """Drop a month's partitions and their rows."""
    for table in PARTITIONED:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name_of(table, month)}")
