"""The only writer of the run tables: applies events in batches, one transaction a batch.

A batch is folded in memory first (a short step's start and end become one row), then written with one statement per
table. Rows merge by the rules in `schema`, so a batch may be applied again, or after a later one.

On PostgreSQL, writers of different workflows commit at the same time. What they seldom do, for instance register a
workflow or add a month's tables, they do alone (see `locking`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, TypeVar

from sqlalchemy import Connection, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.events import Event, ExecutionFinished, ExecutionQueued, ExecutionStarted
from tachograph.expectation import Expectation, merged
from tachograph.identity import ExecutionRef, new_id, workspace_id
from tachograph.names import clean_name
from tachograph.quiet_log import QuietLog
from tachograph.recording.recorder import LEASE_SECONDS
from tachograph.stacks.wishes import fulfil
from tachograph_exporter.store import (
    archive,
    definitions,
    executions,
    expectations,
    locking,
    numbers,
    partitions,
    refused,
    settling,
    stacks,
    state,
    told_twice,
)
from tachograph_exporter.store import event_log as event_log
from tachograph_exporter.store.batch import Batch, reassigned
from tachograph_exporter.store.database import BUSY_SECONDS, Database
from tachograph_exporter.store.failure_groups import occurrences
from tachograph_exporter.store.input_values import InputValues
from tachograph_exporter.store.inserting import insert_many, insert_new
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.recorded_names import RecordedNames
from tachograph_exporter.store.rollups import counting, folding, fresh
from tachograph_exporter.store.schema import (
    ATTEMPT_ROWS,
    EXECUTION_ROWS,
    STEP_ROWS,
    workflow_executions,
    workflow_step_lines,
    workflow_step_reports,
)
from tachograph_exporter.store.series import rows as series_rows
from tachograph_exporter.store.series.counting import Counted, SeriesCounter, correct_latest
from tachograph_exporter.store.step_lines import StepLineRows

log = logging.getLogger(__name__)
quiet = QuietLog(log)

_T = TypeVar("_T")
_OF_EXECUTIONS: Final = frozenset({ExecutionQueued, ExecutionStarted, ExecutionFinished})
_OPEN_SECONDS: Final = LEASE_SECONDS / 3
_MAX_OPEN: Final = 10_000
_WATERMARK_SECONDS: Final = 1.0
"""How long it may take until a writer notices that executions were archived."""
_CHUNK: Final = 500


class StoreWriter:
    """A `BatchListener` that makes events durable. When `apply` returns, its events are committed.

    Args:
        database: where the tables are.
        observe: called with the seconds that writing a batch took.
        committed: called after each commit.
        refused: called with the kind of each record that was refused (see `refused`).
    """

    takes_folded: Final = False

    def __init__(
        self,
        database: Database,
        observe: Callable[[float], None] | None = None,
        committed: Callable[[], None] | None = None,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        self.database = database
        self._note_refused = refused
        self._observe = observe
        self._committed = committed
        self._id = new_id()
        self._open: dict[str, float] = {}
        self._owned: dict[str, str] = {}
        self._watermark, self._watermark_at = 0, 0.0
        self._owns_database = False
        self._registered: set[tuple[str, str, str]] = set()
        # Workflows that have another id here than in the process that ran them.
        self._same_as: dict[str, str] = {}
        self._months: set[partitions.Month] = set()
        self._expected: dict[tuple[str, str, str], Expectation | None] = {}
        self._deltas = 0
        self._wishes = stacks.Wishes()
        self._prepare(database.dialect)

    def _prepare(self, dialect: Dialect) -> None:
        self._upserts = [(rows, rows.upsert(dialect)) for rows in (EXECUTION_ROWS, STEP_ROWS, ATTEMPT_ROWS)]
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._insert_report = str(insert(workflow_step_reports).on_conflict_do_nothing().compile(dialect=dialect))
        self._names = RecordedNames(dialect)
        self._lines = StepLineRows(dialect)
        self._inputs = InputValues(dialect)

    def apply(self, events: Sequence[Event]) -> None:
        """Commit a batch of events. Raises `StoreUnavailable` when the database is unavailable."""
        started = time.perf_counter()
        batch = self.run(lambda connection: self.put(connection, events))
        self.stored(batch)
        if self._deltas > series_rows.MAX_DELTAS:
            self._deltas = 0
            self._absorb_deltas()
        if self._observe is not None:
            self._observe(time.perf_counter() - started)

    def put(self, connection: Connection, events: Sequence[Event]) -> Batch:
        """Write events on an open connection, without committing them; `stored` must be called after the commit."""
        self.share(connection, events)
        batch = Batch(events)
        counted = self.write(connection, batch)
        batch.notes = self._names.note(connection, batch, reassigned(events, self._same_as))
        # Last, because other writers wait for what is numbered here until it is committed.
        if counted is not None:
            self._record(connection, counted)
        self.append_log(connection, [*batch.resumed, *events] if batch.resumed else events)
        return batch

    def run(self, work: Callable[[Connection], _T]) -> _T:
        """Run ``work`` in a transaction that may write beside others (see `locking`), and commit it.

        Raises `StoreUnavailable` when the database is unavailable; any other exception comes from the work itself.
        """
        return locking.retried_alone(self.database.run, work)

    def share(self, connection: Connection, events: Iterable[Event] = ()) -> None:
        """Write beside other writers, but in one transaction of this writer at a time: it remembers what it stored.

        Where these events need what only one may do, write alone at once.
        """
        latest: ExecutionRef | None = None
        for event in events:
            if type(event) in _OF_EXECUTIONS and (ref := event.execution) is not latest:
                latest = ref
                if self._is_new(ref):
                    locking.lock(connection)
                    break
        locking.share(connection)
        locking.claim(connection, Claim.WRITER, (self._id,))

    def stored(self, batch: Batch) -> None:
        """Note that a batch was committed, and tell whoever waits for commits."""
        self._registered.update(batch.workflows)
        self._expected |= {key: self._said(key, expects) for key, expects in batch.expects.items()}
        self._months |= batch.months
        if batch.notes is not None:
            self._names.remember(batch.notes)
        self._inputs.remember(batch.inputs)
        if self._committed is not None:
            self._committed()
        if batch.heartbeats:
            self._ask(batch)

    def _ask(self, batch: Batch) -> None:
        """Find out what is asked of the processes whose heartbeats were stored, and do it if this is one of them."""
        try:
            batch.wishes = self.database.look(lambda c: self._wishes.of(c, batch.heartbeats, self._same_as))
        except Exception as error:
            # They were stored, and that counts. The next heartbeat asks again.
            quiet.warning(("wishes", type(error)), "it is not known whether stacks are asked for: %s", error)
        else:
            fulfil(batch.wishes)

    def _said(self, key: tuple[str, str, str], expects: Expectation | None) -> Expectation | None:
        """What is stored of what a source says, once this is."""
        is_more = key[2] == expectations.CODE and expects is not None
        return merged(self._expected.get(key), expects) if is_more and expects is not None else expects

    def _absorb_deltas(self) -> None:
        """Absorb deltas of series if no service does, so that they do not pile up."""

        def work(connection: Connection) -> None:
            if series_rows.waiting_deltas(connection) > series_rows.MAX_DELTAS:
                series_rows.absorb(connection)

        self.database.run(work)

    def commit(self, work: Callable[[Connection], _T]) -> _T:
        """Run ``work`` in a transaction, commit it and return its result.

        Raises `StoreUnavailable` when the database is unavailable; any other exception comes from the work itself.
        """
        result = self.run(work)
        if self._committed is not None:
            self._committed()
        return result

    def set_aside(self, event: Event, error: BaseException) -> None:
        """Keep an event that was refused, with the reason. Raises `StoreUnavailable`."""
        execution = event.execution
        payload = refused.encode_event(event)
        self.set_record_aside(refused.EVENT, execution.workspace, execution.execution_id, error, payload)

    def set_record_aside(self, kind: str, workspace: str, subject: str, error: BaseException, payload: bytes) -> None:
        """Keep a record that was refused, with the reason. Raises `StoreUnavailable`."""
        if self._note_refused is not None:
            self._note_refused(kind)
        if not self.database.run(lambda c: refused.add(c, kind, workspace, subject, error, payload)):
            quiet.warning("full", "a refused record is not kept: it is too large, or %d are kept", refused.MAX_RECORDS)

    def append_log(self, connection: Connection, events: Sequence[Event]) -> None:
        """Append events to the event log, if anyone follows it, in the transaction that stores them."""
        if event_log.has_listeners(connection):
            event_log.append(connection, self._id, reassigned(events, self._same_as))

    def _is_new(self, ref: ExecutionRef) -> bool:
        """Whether an execution may be of a workflow, or a month, that has to be added."""
        month = partitions.month_of_id(ref.execution_id)
        is_registered = (ref.workspace, ref.project, ref.workflow_id) in self._registered
        return not is_registered or (month is not None and month not in self._months)

    def write(self, connection: Connection, batch: Batch) -> Counted | None:
        """Write a folded batch on an open connection, without committing it.

        Executions that end in it, or that had ended before and change again, are counted in the rollups. Returns what
        they add to the series of ``/metrics``, which is still to be recorded.
        """
        self.share(connection)
        if batch.is_contradictory:
            locking.lock(connection)
        if batch.reported:
            # Their spans may be assembled at the same time, and make no execution of their own if these are there.
            refs = [batch.refs[id_] for id_ in batch.reported]
            traces = {locking.trace_key(workspace_id(ref.workspace), ref.trace_id) for ref in refs}
            locking.claim(connection, Claim.TRACE, traces)
        locking.claim(connection, Claim.WORKFLOW, {ref.workflow_id for ref in batch.refs.values()})
        touched = batch.touched
        gone = self._archived(connection, touched | {key[0] for key in batch.stacks})
        if gone:
            batch.forget(gone)
            touched = batch.touched
        months = {month for month in map(partitions.month_of_id, touched) if month is not None} - self._months
        if months:
            partitions.ensure(connection, months)
        counted_before = SeriesCounter(connection)
        # One that is reported may be ended by the service while a process still tells of it.
        before = self._ended_before(connection, touched, batch.ended | batch.reported, counted_before)
        self._register(connection, batch)
        for key, expectation in batch.expects.items():
            workspace, workflow, source = key
            if expectation is None:
                expectations.forget(connection, workspace_id(workspace), clean_name(workflow), (source,))
            elif self._expected.get(key) != self._said(key, expectation):
                locking.lock(connection)
                say = expectations.say_more if source == expectations.CODE else expectations.say
                say(connection, workspace_id(workspace), workflow, source, expectation, time.time_ns())
        new = numbers.assign(connection, batch.executions) if batch.executions else set[str]()
        fresh = self._fresh(connection, batch, new)
        self._put(connection, batch, new)
        batch.inputs = self._inputs.note(connection, batch.executions, new)
        if locking.is_shared(connection):
            self._check_owners(connection, batch)
        if batch.reported and batch.executions:
            told_twice.read_again(connection, batch.executions, batch.reported, time.time_ns())
        changed = set(before)
        if batch.reported and (ended := batch.reported & (batch.ended | before.keys())):
            resumed = settling.settle(connection, ended, before.keys() - batch.ended)
            batch.resumed = [
                ExecutionStarted(execution=batch.refs[execution_id], time_ns=started_ns, is_resumed=True)
                for execution_id, started_ns in resumed.items()
            ]
            changed |= ended
        noted = occurrences.note(connection, batch.executions, batch.steps, batch.attempts, new)
        batch.months = months
        if not before and not batch.ended:
            return None
        failed = occurrences.settle(connection, batch.ended, changed, new, noted)
        return self._count(connection, before, batch.ended, counted_before, frozenset(), failed, fresh)

    @staticmethod
    def _fresh(connection: Connection, batch: Batch, new: AbstractSet[str]) -> fresh.Fresh:
        """The executions of a batch that have begun and ended in it."""
        ended = (batch.ended & new) - batch.reported
        if not ended:
            return fresh.NOTHING_FRESH
        others = {key[0] for key in batch.attempts} | {row[0] for row in batch.reports}
        return fresh.fresh(connection, batch.executions, batch.steps.values(), others, ended)

    def _check_owners(self, connection: Connection, batch: Batch) -> None:
        """Raises `locking.NotAlone` if an execution is another workflow's than its events say.

        Whoever has claimed that one may write to it at the same time. Rows that are written are locked by now, so what
        is read of them stays.
        """
        refs = {key: batch.refs[key] for key in batch.touched}
        unsure = [key for key, ref in refs.items() if self._owned.get(key) != ref.workflow_id]
        owners = executions.owners_of(connection, unsure)
        for key in unsure:
            # There may be none: steps of an execution that nobody has told of, as far as can be seen from here.
            if owners.get(key) != (workspace_id(refs[key].workspace), refs[key].workflow_id):
                raise locking.NotAlone
        if len(self._owned) > _MAX_OPEN:
            self._owned.clear()
        self._owned.update({key: refs[key].workflow_id for key in unsure if key not in batch.ended})

    def _register(self, connection: Connection, batch: Batch) -> None:
        """Ensure that the workflows of a batch's executions have rows: no execution is without its workflow.

        They are looked up each time, because another process may have deleted one.
        """
        if not batch.workflows:
            return
        present = definitions.existing(connection, {workflow_id for _, _, workflow_id in batch.workflows})
        for key, ref in batch.workflows.items():
            if ref.workflow_id in present and (key in self._registered or definitions.has_project(connection, ref)):
                self._registered.add(key)
                self._same_as.pop(ref.workflow_id, None)
                continue
            registered_id = definitions.register_recorded(connection, ref, time.time_ns())
            if registered_id == ref.workflow_id:
                self._same_as.pop(ref.workflow_id, None)
            else:
                self._same_as[ref.workflow_id] = registered_id
        batch.reassign(self._same_as)

    def _count(
        self,
        connection: Connection,
        before: dict[str, counting.EndedExecution],
        ended: set[str],
        counted_before: SeriesCounter,
        unsettled: AbstractSet[str],
        failed: Mapping[str, Mapping[str, int]] | None = None,
        fresh: fresh.Fresh = fresh.NOTHING_FRESH,
    ) -> Counted:
        """Count executions that ended, in the rollups. Returns what they add to the series of ``/metrics``.

        ``before``: those that had ended already, as they were, and ``counted_before`` what they had added to series.
        ``unsettled``: those that are not counted in series yet. ``failed``: how many failures of which groups began in
        those that failed; None: it is read. ``fresh``: what need not be read.
        """
        counter = SeriesCounter(skip=unsettled, failed=failed)
        folding.fold(connection, before, ended, counter, fresh)
        counter.counted.add(counted_before.counted, -1)
        workflow_ids = {key[1] for key in counter.counted.by_workflow} | {entry.key[1] for entry in before.values()}
        locking.require(connection, Claim.WORKFLOW, workflow_ids)
        correct_latest(connection, counter.counted, counted_before.counted)
        if unsettled or counted_before.skipped:
            series_rows.set_unsettled(connection, counted_before.skipped, unsettled & ended)
        return counter.counted

    def _record(self, connection: Connection, counted: Counted) -> None:
        self._deltas += series_rows.record(connection, counted, time.time_ns())

    def replace(
        self,
        connection: Connection,
        events: Sequence[Event],
        remove: Iterable[str] = (),
        *,
        known: Collection[str],
        unsettled: AbstractSet[str] = frozenset(),
    ) -> None:
        """Replace everything stored of these events' executions, and count the executions again.

        For executions assembled from spans: the newest assembly is the whole truth. ``remove``: ids of executions that
        no longer exist. ``known``: ids of those that are stored now. ``unsettled``: ids of those whose next spans may
        take something back; the series of ``/metrics``, which cannot, count them later.
        """
        self.share(connection)
        batch = Batch(events)
        locking.claim(connection, Claim.WORKFLOW, {ref.workflow_id for ref in batch.refs.values()})
        gone_for_good = sorted(set(remove) - batch.touched)
        ids = sorted({*batch.touched, *gone_for_good})
        gone = self._archived(connection, set(ids))
        batch.forget(gone)
        ids = [execution_id for execution_id in ids if execution_id not in gone]
        partitions.ensure(connection, {month for month in map(partitions.month_of_id, ids) if month is not None})
        stored = [execution_id for execution_id in ids if execution_id in known]
        counted_before = SeriesCounter(connection)
        before = counting.ended_executions(connection, stored, counted_before) if stored else {}
        numbered = numbers.of_stored(connection, stored)
        for rows in (workflow_step_reports, ATTEMPT_ROWS.table, STEP_ROWS.table, EXECUTION_ROWS.table):
            for i in range(0, len(stored), _CHUNK):
                connection.execute(delete(rows).where(rows.c.execution_id.in_(stored[i : i + _CHUNK])))
        occurrences.remove(connection, stored)
        stacks.remove(connection, [execution_id for execution_id in stored if execution_id not in batch.executions])
        for i in range(0, len(gone_for_good), _CHUNK):
            ids_gone = gone_for_good[i : i + _CHUNK]
            connection.execute(delete(workflow_step_lines).where(workflow_step_lines.c.execution_id.in_(ids_gone)))
        self._register(connection, batch)
        numbers.assign(connection, batch.executions, numbered)
        self._put(connection, batch, batch.executions.keys())
        self._inputs.note(connection, batch.executions, batch.executions.keys())
        occurrences.note(connection, batch.executions, batch.steps, batch.attempts)
        self._record(connection, self._count(connection, before, batch.ended, counted_before, unsettled))

    def _put(self, connection: Connection, batch: Batch, new: AbstractSet[str]) -> None:
        """Write the rows of a batch. ``new``: executions that are not stored yet."""
        for (of, statement), rows in zip(self._upserts, (batch.executions, batch.steps, batch.attempts), strict=True):
            if not rows:
                continue
            # In the order of their keys: writers that meet in some rows wait for one another in one direction.
            ordered = [rows[key] for key in sorted(rows)]
            if new:
                others = [row for row in ordered if row[0] not in new]
                # Unless steps were stored of an execution that nobody had told of.
                fresh_rows = [row for row in ordered if row[0] in new] if others else ordered
                insert_new(connection, of.table, statement, fresh_rows)
                ordered = others
            insert_many(connection, statement, ordered)
        if batch.reports:
            insert_many(connection, self._insert_report, batch.reports)
        if batch.stacks:
            stacks.put(connection, batch.stacks.values())
        if batch.lines:
            self._lines.put(connection, batch.lines)
        if batch.seen:
            connection.execute(_SEEN, [{"id": key, "seen": seen} for key, seen in sorted(batch.seen.items())])

    def _ended_before(
        self, connection: Connection, touched: set[str], ended: set[str], counter: SeriesCounter
    ) -> dict[str, counting.EndedExecution]:
        """Which of the executions had ended before this batch; ``counter`` sees them.

        An execution that was open a moment ago is not looked up again: while this writer receives its events, nobody
        else ends it before a whole lease has passed.
        """
        now = time.monotonic()
        open_until = self._open
        unsure = [key for key in touched if key in ended or open_until.get(key, 0.0) < now]
        if not unsure:
            return {}
        ended_before = counting.ended_executions(connection, unsure, counter)
        if len(open_until) > _MAX_OPEN:
            open_until.clear()
        for key in unsure:
            if key in ended or key in ended_before:
                open_until.pop(key, None)
            else:
                open_until[key] = now + _OPEN_SECONDS
        return ended_before

    def _archived(self, connection: Connection, touched: set[str]) -> set[str]:
        """Which of the executions are archived: they are already counted, so late events are left out."""
        now = time.monotonic()
        if now >= self._watermark_at:
            self._watermark, self._watermark_at = state.watermark_of(connection), now + _WATERMARK_SECONDS
        watermark = self._watermark
        old = [key for key in touched if partitions.seconds_of_id(key) < watermark] if watermark else []
        gone = archive.among(connection, old) if old else set()
        if gone:
            log.warning("%d execution(s) are archived; their late events are left out", len(gone))
        return gone

    def after_fork(self) -> None:
        """In a forked child, leave the parent's connections alone."""
        self.database.after_fork()

    def close(self) -> None:
        """Close the database if it was opened for this writer."""
        if self._owns_database:
            self.database.close()


_SEEN: Final = (
    update(workflow_executions)
    .where(
        workflow_executions.c.execution_id == bindparam("id"), workflow_executions.c.last_seen_ns < bindparam("seen")
    )
    .values(last_seen_ns=bindparam("seen"))
)


def open_writer(url: str, *, wait_seconds: float = BUSY_SECONDS) -> StoreWriter:
    """A writer with its own database at ``url``, for a process that only records.

    Raises `StoreError`; `DatabaseUnavailable` when the database is not available within ``wait_seconds``.
    """
    writer = StoreWriter(Database(url, wait_seconds=wait_seconds))
    writer._owns_database = True
    return writer
