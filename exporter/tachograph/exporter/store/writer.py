"""The one writer: applies events to the run tables, a group at a time, one transaction a group.

A group is first folded in memory (a short step's start and end become one row), then written with one statement per
table. Rows merge by the rules in `schema`, so a group may be applied again, or after a later one.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from typing import Any, Final, cast

import msgspec
from sqlalchemy import Connection, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionRef,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    StepCost,
    StepFinished,
    StepLogged,
    StepMeasured,
    StepReady,
    StepRef,
    StepReport,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
    new_id,
    workspace_id,
)
from tachograph.exporter.store import archive, partitions, rollups
from tachograph.exporter.store import log as event_log
from tachograph.exporter.store.database import Database
from tachograph.exporter.store.schema import (
    ATTEMPT_ROWS,
    EXECUTION_ROWS,
    STEP_ROWS,
    Rows,
    execution_rank,
    projects,
    step_rank,
    workflow_definitions,
    workflow_executions,
    workflow_step_reports,
    workspaces,
)
from tachograph.instrumentation.lane import Unavailable
from tachograph.instrumentation.recorder import LEASE_SECONDS

log = logging.getLogger(__name__)

_encode: Final = msgspec.json.Encoder().encode
_OPEN_SECONDS: Final = LEASE_SECONDS / 3
_PARAMETERS: Final = 30_000
"""Values in one statement at most (SQLite's own limit is 32,766)."""
_OPEN_LIMIT: Final = 10_000
_CHUNK: Final = 500
_NO_DEPENDENCIES: Final = "[]"
_NO_ERROR: Final = (None, None, None)


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
        self._insert = insert

    def apply(self, events: Sequence[Event]) -> None:
        """Commit a group of events. Raises `Unavailable` when the database cannot take it now."""
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
            raise Unavailable(str(error.orig)) from error
        except self._driver.OperationalError as error:
            raise Unavailable(str(error)) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise Unavailable(str(error.orig)) from error
            raise
        except OSError as error:
            raise Unavailable(str(error)) from error
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
        rollups.lock(connection)
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
            self._register(connection, batch.workflows[key])
        self._put(connection, batch)
        if before or batch.ended:
            rollups.fold(connection, before, batch.ended)
        batch.months = months

    def replace(
        self, connection: Connection, events: Sequence[Event], remove: Iterable[str] = (), *, known: Collection[str]
    ) -> None:
        """Write these events in place of all that is stored of their executions, and count them anew.

        For executions that are put together from what arrives: the newest reading of it is the whole truth.
        ``remove``: executions (by id) that are no more. ``known``: those that are there now.
        """
        rollups.lock(connection)
        batch = Batch(events)
        ids = sorted({*batch.touched, *remove})
        gone = self._archived(connection, set(ids))
        batch.forget(gone)
        ids = [one for one in ids if one not in gone]
        partitions.ensure(connection, {month for month in map(partitions.month_of_id, ids) if month is not None})
        there = [one for one in ids if one in known]
        before = rollups.ended(connection, there) if there else {}
        for rows in (workflow_step_reports, ATTEMPT_ROWS.table, STEP_ROWS.table, EXECUTION_ROWS.table):
            for i in range(0, len(there), _CHUNK):
                connection.execute(delete(rows).where(rows.c.execution_id.in_(there[i : i + _CHUNK])))
        for key in batch.workflows.keys() - self._known:
            self._register(connection, batch.workflows[key])
        self._put(connection, batch)
        rollups.fold(connection, before, batch.ended)

    def _put(self, connection: Connection, batch: Batch) -> None:
        for (_, statement), rows in zip(self._upserts, (batch.executions, batch.steps, batch.attempts), strict=True):
            if rows:
                insert_many(connection, statement, list(rows.values()))
        if batch.reports:
            insert_many(connection, self._insert_report, batch.reports)
        if batch.seen:
            connection.execute(_SEEN, [{"id": key, "seen": seen} for key, seen in batch.seen.items()])

    def _ended_before(self, connection: Connection, touched: set[str], ended: set[str]) -> dict[str, rollups.Ended]:
        """Those of the executions that have ended already.

        One that was open a moment ago, and of which this writer still hears, is not asked about again: nobody else
        ends it before it was silent for a whole lease.
        """
        now = time.monotonic()
        known = self._open
        doubtful = [one for one in touched if one in ended or known.get(one, 0.0) < now]
        if not doubtful:
            return {}
        found = rollups.ended(connection, doubtful)
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
            self._watermark, self._watermark_at = rollups.watermark_of(connection), now + event_log.LOOK_SECONDS
        watermark = self._watermark
        old = [one for one in touched if partitions.seconds_of_id(one) < watermark] if watermark else []
        gone = archive.among(connection, old) if old else set()
        if gone:
            log.warning("%d execution(s) are archived; what was recorded of them since is left out", len(gone))
        return gone

    def _register(self, connection: Connection, ref: ExecutionRef) -> None:
        """Make sure that the workspace, project and workflow an execution belongs to have rows."""
        now = time.time_ns()
        add_workspace(connection, ref.workspace, now)
        add_project(connection, ref.workspace, ref.project, now)
        connection.execute(
            self._insert(workflow_definitions)
            .values(
                id=ref.workflow_id,
                workspace_id=workspace_id(ref.workspace),
                project=ref.project,
                name=ref.workflow,
                version=ref.version,
                created_ns=now,
                updated_ns=now,
            )
            .on_conflict_do_nothing()
        )

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        self.database.after_fork()

    def close(self) -> None:
        """Close the database, if it was opened for this writer."""
        if self._owns_database:
            self.database.close()


def insert_many(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run an INSERT of one row, in the driver's own SQL, for many rows."""
    if not rows:
        return
    # Straight to the driver: SQLAlchemy looks at every row once more, which costs half as much as writing it.
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name != "sqlite":
            cursor.executemany(statement, rows)
            return
        # SQLite's driver gives up the interpreter for every statement, and while the workflow's own thread is busy it
        # takes milliseconds to get it back: many rows go into one statement.
        width = len(rows[0])
        i = 0
        for size in (_PARAMETERS // width, 32, 1):
            many = _of_many(statement, width, size)
            while len(rows) - i >= size:
                cursor.execute(many, list(chain.from_iterable(rows[i : i + size])))
                i += size
    finally:
        cursor.close()


@functools.cache
def _of_many(statement: str, width: int, count: int) -> str:
    """A statement that inserts one row, made to insert many."""
    row = f"({', '.join('?' * width)})"
    head, found, tail = statement.partition(row)
    if not found:
        raise ValueError(f"no values in: {statement}")
    return f"{head}{', '.join([row] * count)}{tail}"


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


def add_workspace(connection: Connection, slug: str, now_ns: int, name: str | None = None) -> str:
    """Make the workspace's row if it is not there; its id."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    identifier = workspace_id(slug)
    values = {"id": identifier, "slug": slug, "name": name or slug, "created_ns": now_ns}
    connection.execute(insert(workspaces).values(values).on_conflict_do_nothing())
    return identifier


def add_project(connection: Connection, workspace: str, slug: str, now_ns: int, name: str | None = None) -> None:
    """Make the project's row if it is not there."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = {
        "id": workspace_id(f"{workspace}/{slug}"),
        "workspace_id": workspace_id(workspace),
        "slug": slug,
        "name": name or slug,
        "created_ns": now_ns,
    }
    connection.execute(insert(projects).values(values).on_conflict_do_nothing())


class Batch:
    """A group of events, folded to the rows they make. Rows are tuples in column order (see `schema`)."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.workflows: dict[tuple[str, str, str], ExecutionRef] = {}
        self.executions: dict[Any, tuple[Any, ...]] = {}
        self.steps: dict[Any, tuple[Any, ...]] = {}
        self.attempts: dict[Any, tuple[Any, ...]] = {}
        self.reports: list[tuple[Any, ...]] = []
        self.seen: dict[str, int] = {}
        self.ended: set[str] = set()
        self.months: set[partitions.Month] = set()
        events = list(events)
        # A step that ended at its first attempt says again all that its earlier events said.
        ended = {event.step.span_id for event in events if type(event) is StepFinished and event.attempt == 1}
        for event in events:
            kind = type(event)
            if (kind is StepStarted or kind is StepReady) and event.step.span_id in ended:  # type: ignore[union-attr]
                continue
            self.add(event)

    @property
    def touched(self) -> set[str]:
        """Ids of the executions something is written of."""
        return {*self.executions, *[key[0] for key in self.steps], *[row[0] for row in self.reports]}

    def forget(self, ids: set[str]) -> None:
        """Leave everything about these executions out."""
        for rows in (self.executions, self.steps, self.attempts):
            for key in [key for key, row in rows.items() if row[0] in ids]:
                del rows[key]
        self.reports = [row for row in self.reports if row[0] not in ids]
        self.ended -= ids

    def add(self, event: Event) -> None:
        """Fold one event in."""
        _FOLD[type(event)](self, event)

    def _execution(self, ref: ExecutionRef, row: tuple[Any, ...]) -> None:
        self.workflows.setdefault((ref.workspace, ref.project, ref.workflow_id), ref)
        _put(self.executions, EXECUTION_ROWS, ref.execution_id, row)

    def queued(self, event: ExecutionQueued) -> None:
        at = event.time_ns
        row = _execution_row(
            event.execution, at, ExecutionStatus.PENDING, queued=at, process=event.process, inputs=event.inputs
        )
        self._execution(event.execution, row)

    def started(self, event: ExecutionStarted) -> None:
        at = event.time_ns
        row = _execution_row(
            event.execution, at, ExecutionStatus.RUNNING,
            started=at, process=event.process, inputs=event.inputs, counts=(event.step_count, 0, 0, 0),
        )  # fmt: skip
        self._execution(event.execution, row)

    def finished(self, event: ExecutionFinished) -> None:
        self.ended.add(event.execution.execution_id)
        row = _execution_row(
            event.execution, event.started_ns, event.status,
            started=event.started_ns, finished=event.time_ns, inputs=event.inputs, failure=event.failure,
            counts=(event.step_count, event.completed_step_count, event.failed_step_count, event.skipped_step_count),
            work=event.work_ns, critical=sum(part.duration_ns for part in event.critical_path),
            path=_encode([part.step_id for part in event.critical_path]).decode(),
        )  # fmt: skip
        self._execution(event.execution, row)

    def heartbeat(self, event: Heartbeat) -> None:
        key = event.execution.execution_id
        self.seen[key] = max(event.time_ns, self.seen.get(key, 0))

    def _step(self, row: tuple[Any, ...]) -> None:
        _put(self.steps, STEP_ROWS, (row[0], row[1]), row)

    def step_ready(self, event: StepReady) -> None:
        self._step(_step_row(event.step, StepStatus.PENDING, 0, ready=event.time_ns))

    def step_started(self, event: StepStarted) -> None:
        first = event.attempt == 1
        self._step(
            _step_row(
                event.step, StepStatus.RUNNING, event.attempt,
                ready=event.time_ns - event.queue_ns if first else None,
                started=event.time_ns if first else None, attempt_started=event.time_ns,
                waits=(event.dependency_ns if first else None, event.queue_ns, event.backoff_ns),
                inputs=event.inputs,
            )
        )  # fmt: skip

    def step_retrying(self, event: StepRetrying) -> None:
        first = event.attempt == 1
        self._step(
            _step_row(
                event.step, StepStatus.RETRYING, event.attempt,
                started=event.started_ns if first else None, attempt_started=event.started_ns,
                waits=(event.dependency_ns if first else None, event.queue_ns, event.backoff_ns),
                failure=event.failure,
            )
        )  # fmt: skip
        self._attempt(
            event.step, event.attempt, event.status, event.started_ns, event.time_ns,
            event.queue_ns, event.backoff_ns, event.failure,
        )  # fmt: skip

    def step_finished(self, event: StepFinished) -> None:
        # Written out: this is the row that every step comes to.
        step, status, failure = event.step, event.status, event.failure
        execution_id, step_id, attempt = step.execution.execution_id, step.step_id, event.attempt
        row = (
            execution_id, step_id, step.name, step.step_type, step.step_order, step.index, step.parent_step_id,
            step.span_id, step.parent_span_id,
            _encode(step.depends_on).decode() if step.depends_on else _NO_DEPENDENCIES,
            step_rank(status, attempt), status._value_, attempt,
            event.started_ns - event.queue_ns if attempt == 1 else None,
            event.started_ns, event.attempt_started_ns, event.time_ns,
            event.dependency_ns, event.queue_ns, event.backoff_ns, event.run_ns,
            *(_NO_ERROR if failure is None else (failure.type[:300], failure.message, failure.stack)),
            None, event.inputs, event.output,
        )  # fmt: skip
        key = (execution_id, step_id)
        known = self.steps.get(key)
        self.steps[key] = row if known is None else STEP_ROWS.merge(known, row)
        if attempt > 1 and not event.between_attempts:
            self._attempt(
                step, attempt, status, event.attempt_started_ns, event.time_ns,
                event.last_queue_ns, event.last_backoff_ns, failure,
            )  # fmt: skip

    def step_skipped(self, event: StepSkipped) -> None:
        row = _step_row(event.step, StepStatus.SKIPPED, 0, finished=event.time_ns, skip_reason=event.reason._value_)
        self._step(row)

    def _attempt(
        self, step: StepRef, attempt: int, status: StepStatus, started: int, finished: int, queue: int, backoff: int,
        why: Failure | None,
    ) -> None:  # fmt: skip
        row = (
            step.execution.execution_id, step.step_id, attempt, status._value_, started, finished, queue, backoff,
            why.type if why else None, why.message if why else None,
        )  # fmt: skip
        self.attempts.setdefault(row[:3], row)

    def report(self, event: StepReport) -> None:
        step = event.step
        head = (step.execution.execution_id, step.step_id, event.sequence, event.attempt)
        if isinstance(event, StepMeasured):
            self.reports.append((*head, "measure", event.time_ns, event.name, event.unit, event.value, 0, 0))
        elif isinstance(event, StepCost):
            tokens = (event.tokens_in, event.tokens_out)
            self.reports.append((*head, "cost", event.time_ns, event.model, "USD", event.usd, *tokens))
        else:
            self.reports.append((*head, "log", event.time_ns, event.message, event.level, 0.0, 0, 0))


_FOLD: Final = cast(
    "dict[type[Event], Callable[[Batch, Any], None]]",
    {
        ExecutionQueued: Batch.queued,
        ExecutionStarted: Batch.started,
        ExecutionFinished: Batch.finished,
        Heartbeat: Batch.heartbeat,
        StepReady: Batch.step_ready,
        StepStarted: Batch.step_started,
        StepRetrying: Batch.step_retrying,
        StepFinished: Batch.step_finished,
        StepSkipped: Batch.step_skipped,
        StepMeasured: Batch.report,
        StepCost: Batch.report,
        StepLogged: Batch.report,
    },
)


def _put(rows: dict[Any, tuple[Any, ...]], kind: Rows, key: Any, row: tuple[Any, ...]) -> None:
    old = rows.get(key)
    rows[key] = row if old is None else kind.merge(old, row)


def _execution_row(
    ref: ExecutionRef,
    created: int,
    status: ExecutionStatus,
    *,
    queued: int | None = None,
    started: int | None = None,
    finished: int | None = None,
    process: str | None = None,
    counts: tuple[int, int, int, int] = (0, 0, 0, 0),
    work: int | None = None,
    critical: int | None = None,
    failure: Failure | None = None,
    inputs: str | None = None,
    path: str | None = None,
) -> tuple[Any, ...]:
    return (
        ref.execution_id, workspace_id(ref.workspace), ref.project, ref.workflow_id, ref.workflow, ref.version,
        ref.trace_id, ref.span_id, ref.parent_span_id, created, execution_rank(status), status._value_,
        queued, started, finished, finished or created, process or None, *counts, work, critical,
        failure.type[:300] if failure else None,
        failure.message if failure else None,
        failure.stack if failure else None,
        inputs, path,
    )  # fmt: skip


def _step_row(
    step: StepRef,
    status: StepStatus,
    attempt: int,
    *,
    ready: int | None = None,
    started: int | None = None,
    attempt_started: int | None = None,
    finished: int | None = None,
    waits: tuple[int | None, int | None, int | None] = (None, None, None),
    failure: Failure | None = None,
    skip_reason: str | None = None,
    inputs: str | None = None,
) -> tuple[Any, ...]:
    """The row of a step that has not ended by its own work: no run time, no output (see `Batch.step_finished`)."""
    error: tuple[str | None, str | None, str | None] = _NO_ERROR
    if failure is not None:
        error = (failure.type[:300], failure.message, failure.stack)
    depends_on = _encode(step.depends_on).decode() if step.depends_on else _NO_DEPENDENCIES
    return (
        step.execution.execution_id, step.step_id, step.name, step.step_type, step.step_order, step.index,
        step.parent_step_id, step.span_id, step.parent_span_id, depends_on, step_rank(status, attempt),
        status._value_, attempt, ready, started, attempt_started, finished, *waits, None, *error,
        skip_reason, inputs, None,
    )  # fmt: skip
