"""The one writer: applies events to the run tables, a group at a time, one transaction a group.

A group is first folded in memory (a short step's start and end become one row), then written with one statement per
table. Rows merge by the rules in `schema`, so a group may be applied again, or after a later one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from tachograph.errors import StoreUnavailable
from tachograph.events import (
    Event,
)
from tachograph.identity import new_id
from tachograph.recording.recorder import LEASE_SECONDS
from tachograph_exporter.store import archive, definitions, locking, partitions, state
from tachograph_exporter.store import event_log as event_log
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.rollups import counting, folding
from tachograph_exporter.store.schema import (
    ATTEMPT_ROWS,
    EXECUTION_ROWS,
    STEP_ROWS,
    workflow_executions,
    workflow_step_reports,
)

log = logging.getLogger(__name__)
_OPEN_SECONDS: Final = LEASE_SECONDS / 3
_OPEN_LIMIT: Final = 10_000
_CHUNK: Final = 500


class StoreWriter:
    """A `BatchListener` that makes events durable. When `apply` returns, its events are committed.

    Args:
        database: where to.
        observe: told how many seconds each commit took.
        committed: told after each commit.
    """

    def __init__(
        self,
        database: Database,
        observe: Callable[[float], None] | None = None,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self.database = database
        self._observe = observe
        self._committed = committed
        self._origin = new_id()
        self._is_listened_to = False
        self._look_at = 0.0
        self._open: dict[str, float] = {}
        self._watermark, self._watermark_at = 0, 0.0
        self._owns_database = False
        self._known: set[tuple[str, str, str]] = set()
        self._months: set[partitions.Month] = set()
        self._prepare(database.dialect)

    def _prepare(self, dialect: Dialect) -> None:
        self._driver = dialect.loaded_dbapi
        self._upserts = [(rows, rows.upsert(dialect)) for rows in (EXECUTION_ROWS, STEP_ROWS, ATTEMPT_ROWS)]
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._insert_report = str(insert(workflow_step_reports).on_conflict_do_nothing().compile(dialect=dialect))

    def apply(self, events: Sequence[Event]) -> None:
        """Commit a group of events. Raises `StoreUnavailable` when the database cannot take it now."""
        started = time.perf_counter()
        batch = Batch(events)

        def work(connection: Connection) -> None:
            self.write(connection, batch)
            if started >= self._look_at:
                self._is_listened_to = event_log.is_listened_to(connection)
            if self._is_listened_to:
                event_log.append(connection, self._origin, events)

        try:
            self.database.run(work)
        except (OperationalError, InterfaceError) as error:
            raise StoreUnavailable(str(error.orig)) from error
        except self._driver.OperationalError as error:
            raise StoreUnavailable(str(error)) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreUnavailable(str(error.orig)) from error
            raise
        except OSError as error:
            raise StoreUnavailable(str(error)) from error
        self._known.update(batch.workflows)
        self._months |= batch.months
        now = time.perf_counter()
        if started >= self._look_at:
            self._look_at = now + event_log.LOOK_SECONDS
        if self._observe is not None:
            self._observe(now - started)
        if self._committed is not None:
            self._committed()

    def write(self, connection: Connection, batch: Batch) -> None:
        """Write a folded group on an open connection, without committing it.

        Executions that end in it, or that had ended before and still change, are counted in the rollups.
        """
        locking.lock(connection)
        touched = batch.touched
        gone = self._archived(connection, touched)
        if gone:
            batch.forget(gone)
            touched = batch.touched
        months = {month for month in map(partitions.month_of_id, touched) if month is not None} - self._months
        if months:
            partitions.ensure(connection, months)
        before = self._ended_before(connection, touched, batch.ended)
        for key in batch.workflows.keys() - self._known:
            definitions.register_recorded(connection, batch.workflows[key], time.time_ns())
        self._put(connection, batch)
        if before or batch.ended:
            folding.fold(connection, before, batch.ended)
        batch.months = months

    def replace(
        self, connection: Connection, events: Sequence[Event], remove: Iterable[str] = (), *, known: Collection[str]
    ) -> None:
        """Write these events in place of all that is stored of their executions, and count them anew.

        For executions that are put together from what arrives: the newest reading of it is the whole truth.
        ``remove``: executions (by id) that are no more. ``known``: those that are there now.
        """
        locking.lock(connection)
        batch = Batch(events)
        ids = sorted({*batch.touched, *remove})
        gone = self._archived(connection, set(ids))
        batch.forget(gone)
        ids = [one for one in ids if one not in gone]
        partitions.ensure(connection, {month for month in map(partitions.month_of_id, ids) if month is not None})
        there = [one for one in ids if one in known]
        before = counting.ended(connection, there) if there else {}
        for rows in (workflow_step_reports, ATTEMPT_ROWS.table, STEP_ROWS.table, EXECUTION_ROWS.table):
            for i in range(0, len(there), _CHUNK):
                connection.execute(delete(rows).where(rows.c.execution_id.in_(there[i : i + _CHUNK])))
        for key in batch.workflows.keys() - self._known:
            definitions.register_recorded(connection, batch.workflows[key], time.time_ns())
        self._put(connection, batch)
        folding.fold(connection, before, batch.ended)

    def _put(self, connection: Connection, batch: Batch) -> None:
        for (_, statement), rows in zip(self._upserts, (batch.executions, batch.steps, batch.attempts), strict=True):
            if rows:
                insert_many(connection, statement, list(rows.values()))
        if batch.reports:
            insert_many(connection, self._insert_report, batch.reports)
        if batch.seen:
            connection.execute(_SEEN, [{"id": key, "seen": seen} for key, seen in batch.seen.items()])

    def _ended_before(self, connection: Connection, touched: set[str], ended: set[str]) -> dict[str, counting.Ended]:
        """Those of the executions that have ended already.

        One that was open a moment ago, and of which this writer still hears, is not asked about again: nobody else
        ends it before it was silent for a whole lease.
        """
        now = time.monotonic()
        known = self._open
        doubtful = [one for one in touched if one in ended or known.get(one, 0.0) < now]
        if not doubtful:
            return {}
        found = counting.ended(connection, doubtful)
        if len(known) > _OPEN_LIMIT:
            known.clear()
        for one in doubtful:
            if one in ended or one in found:
                known.pop(one, None)
            else:
                known[one] = now + _OPEN_SECONDS
        return found

    def _archived(self, connection: Connection, touched: set[str]) -> set[str]:
        """Which of the executions are archived: what comes of them now is too late, and they are counted already."""
        now = time.monotonic()
        if now >= self._watermark_at:
            self._watermark, self._watermark_at = state.watermark_of(connection), now + event_log.LOOK_SECONDS
        watermark = self._watermark
        old = [one for one in touched if partitions.seconds_of_id(one) < watermark] if watermark else []
        gone = archive.among(connection, old) if old else set()
        if gone:
            log.warning("%d execution(s) are archived; what was recorded of them since is left out", len(gone))
        return gone

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        self.database.after_fork()

    def close(self) -> None:
        """Close the database, if it was opened for this writer."""
        if self._owns_database:
            self.database.close()


_SEEN: Final = (
    update(workflow_executions)
    .where(
        workflow_executions.c.execution_id == bindparam("id"), workflow_executions.c.last_seen_ns < bindparam("seen")
    )
    .values(last_seen_ns=bindparam("seen"))
)


def open_writer(url: str) -> StoreWriter:
    """A writer on the database at ``url``; how a process that only records gets its store."""
    writer = StoreWriter(Database(url))
    writer._owns_database = True
    return writer
