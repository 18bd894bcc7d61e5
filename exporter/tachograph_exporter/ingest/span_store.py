"""Spans stored whole, and the executions they describe, in one transaction.

A span that arrives again changes nothing, except that one that has not ended is alive (see `store.open_spans`). The
executions of a trace are assembled whenever some of its spans arrive;
those of a long trace later, and those of a trace without its root once more when it has been quiet (see `reassembly`).
When very many spans arrive at once, they are stored first (see `deferred`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest.announcements import (
    Announced,
    changed_states,
    mark_announced,
    mark_assembled,
    note_untold,
    untold_of,
    when_assembled,
    when_rewritten,
    write_untold,
)
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.leases import Leases, lost_as_told, lost_now, says_more, with_losses
from tachograph_exporter.ingest.lineage.joining import engine_key
from tachograph_exporter.ingest.lineage.lineage_store import Arrived, LineageStore
from tachograph_exporter.ingest.readings import Fault, Readings, add_logged_errors
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.span_rows import (
    LATER_SECONDS,
    MAX_AT_ONCE,
    SpanRows,
    ends_of,
    make_due,
    of_trace,
    states_of,
    stored_spans,
    trace_rows,
)
from tachograph_exporter.ingest.spans import SpanRecord, export_request, told_apart
from tachograph_exporter.ingest.trace_executions import TraceExecutions, Update
from tachograph_exporter.ingest.trace_groups import TraceGroups, Unit, size_of, units_of
from tachograph_exporter.store import failures, locking, open_spans, refused
from tachograph_exporter.store.lineage import LineageRows
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.open_spans import OpenSpans
from tachograph_exporter.store.writer import StoreWriter

MAX_TRACE_SPANS: Final = 200_000
"""Spans that are kept of a trace."""
DEFERRED_SECONDS: Final = 30.0
"""When a trace is due whose spans have only been stored: if the process that stored them has died."""

SpanKey: TypeAlias = tuple[str, str]
"""(trace id, span id)"""
_FaultOf: TypeAlias = tuple[str, str, Fault]
"""(workspace id, its name, the trace)"""
_T = TypeVar("_T")
_MAX_KNOWN_FAULTS: Final = 10_000

quiet: Final = QuietLog(logging.getLogger(__name__))


class Taken(NamedTuple):
    """What became of spans: events that listeners have not received, the number of new spans, and refused spans.

    ``deferred``: the new spans that executions do not have yet, by trace.
    """

    events: list[Event]
    stored: int
    refused: AbstractSet[SpanKey]
    deferred: Mapping[str, Kept] = {}


class Kept(NamedTuple):
    """Spans of a trace that were stored at ``at_ns``, and with which it has not been assembled.

    If they are all of the trace, it is not read again. ``at_ns`` is 0 if it has to be in any case.
    """

    at_ns: int
    spans: Sequence[SpanRecord]

    def is_all_of(self, row: Row[Any] | None) -> bool:
        """Whether the trace with this row has these spans, as they are here, and nothing was announced of them."""
        if row is None or (row.changed_ns, row.span_count) != (self.at_ns, len(self.spans)):
            return False
        return len(untold_of(row)) == len(self.spans)


class SpanStore:
    """Spans and their executions, in the tables that ``writer`` writes.

    Args:
        writer: commits, and stores executions.
        publish: receives events that were new, once they are committed, in the order of commits.
        book: the rules by which spans are executions, steps or attempts.
    """

    def __init__(
        self, writer: StoreWriter, publish: Callable[[Sequence[Event]], None], book: Rulebook = BUILT_IN
    ) -> None:
        self.database = writer.database
        self.executions = TraceExecutions(writer, book)
        self._writer = writer
        self._publish = publish
        self._publishing = threading.Lock()
        self._faults: list[_FaultOf] = []
        self._known_faults: set[tuple[str, str]] = set()
        self.book = book
        self._rows = SpanRows(writer.database.dialect)
        self.rests = self._rows.rests
        self._groups = TraceGroups(writer.database.dialect, book)
        self._open_spans = OpenSpans(writer.database.dialect)
        self.lineage = LineageStore(self.executions, self._rows, LineageRows(writer.database.dialect))
        """Stores what OpenLineage events tell of the same runs."""

    def commit(self, work: Callable[[Connection], tuple[_T, Sequence[Event]]]) -> _T:
        """Run ``work`` in a transaction, publish the events it returns once they are committed, return the rest.

        Raises `StoreUnavailable` when the database is unavailable.
        """
        # An execution's events are published in order, whichever thread assembled it.
        with self._publishing:
            is_committed = False
            self._faults.clear()
            try:
                result, events = self._writer.commit(work)
                is_committed = True
            finally:
                self._rows.settle(is_committed=is_committed)
            faults = self._faults.copy()
            if events:
                self._publish(events)
        if faults:
            self._set_faults_aside(faults)
        return result

    def assemble(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        readings: Readings,
        now: int,
        emptied: AbstractSet[str] = frozenset(),
        *,
        arrived: AbstractSet[str] = frozenset(),
    ) -> Update:
        """Bring the executions of traces up to date.

        A trace of a group that cannot be assembled is left out of it, and set aside with the reason when the
        transaction is committed. Raises what is wrong with one of ``arrived``: of these, no span has been stored yet.
        """
        try:
            return self.executions.update(connection, workspace_id, workspace, readings.readings, now, emptied)
        except StoreUnavailable:
            raise
        except Exception as error:
            faults = [] if failures.is_away(error) else readings.leave_out_faults(self.executions, workspace, now)
            if not faults or not arrived.isdisjoint([fault.trace_id for fault in faults]):
                raise
            self._faults += [(workspace_id, workspace, fault) for fault in faults]
            return self.executions.update(connection, workspace_id, workspace, readings.readings, now, emptied)

    def _set_faults_aside(self, faults: Sequence[_FaultOf]) -> None:
        for workspace_id, workspace, fault in faults:
            key = (workspace_id, fault.trace_id)
            if key in self._known_faults:
                continue
            quiet.warning(type(fault.error), "trace %s is left out of its run: %r", fault.trace_id, fault.error)
            try:
                # Its spans are stored; one of them is enough to try again.
                spans = self.database.look(lambda c, k=key: of_trace(c, *k))[:1]  # type: ignore[misc]
                self.set_aside(workspace, spans, fault.error)
            except StoreUnavailable:
                continue  # It will be found again.
            if len(self._known_faults) < _MAX_KNOWN_FAULTS:
                self._known_faults.add(key)

    def set_aside(self, workspace: str, spans: Sequence[SpanRecord], error: BaseException) -> None:
        """Keep spans of a trace that were refused, with the reason. Raises `StoreUnavailable`."""
        trace_id = spans[0].trace_id
        self._writer.set_record_aside(refused.TRACE, workspace, trace_id, error, export_request(spans))

    def set_event_aside(self, workspace: str, arrived: Arrived, error: BaseException) -> None:
        """Keep an OpenLineage event that was refused, with the reason. Raises `StoreUnavailable`."""
        self._writer.set_record_aside(refused.LINEAGE, workspace, arrived.event.run_id, error, arrived.payload)

    def take(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        arrived: Iterable[SpanRecord],
        *,
        is_hurried: bool = False,
    ) -> Taken:
        """Store spans and bring the executions of their traces up to date.

        ``is_hurried``: store them only; `assemble_deferred` is called for their traces later.
        """
        candidates = self._newest(arrived)
        self._share(connection, workspace_id, candidates)
        now = time.time_ns()
        emptied = self._join(connection, workspace_id, candidates)
        rows = trace_rows(connection, workspace_id, list(candidates))
        leases = Leases(connection, workspace_id, list(rows), now)
        leases.take_heartbeats(candidates)
        units = self._groups.join(connection, workspace_id, candidates)
        others = {member for unit in units.values() for member in unit.traces} - candidates.keys()
        rows |= trace_rows(connection, workspace_id, sorted(others))
        leases.read(sorted(others & rows.keys()))
        if not is_hurried:
            write_untold(connection, workspace_id, rows)
        spans_of = {trace_id: row.span_count for trace_id, row in rows.items()}
        units = units_of(units, spans_of, MAX_TRACE_SPANS)
        short = {
            member
            for unit in units.values()
            if size_of(unit, spans_of) <= MAX_AT_ONCE and not is_hurried
            for member in unit.traces
            if member in rows
        }
        stored, announced = stored_spans(connection, workspace_id, sorted(short))
        fresh: dict[str, list[SpanRecord]] = {}
        refused: set[SpanKey] = set()
        counts: dict[str, int] = {}
        ends_by_trace: dict[str, Mapping[str, int]] = {}
        for trace_id, trace_spans in candidates.items():
            row = rows.get(trace_id)
            ends = _ends(connection, workspace_id, trace_id, row, stored.get(trace_id), list(trace_spans))
            ends_by_trace[trace_id] = ends
            count = row.span_count if row is not None else 0
            chosen = []
            for span_id, span in trace_spans.items():
                end = ends.get(span_id)
                if end is None:
                    if count >= MAX_TRACE_SPANS:
                        refused.add((trace_id, span_id))
                        continue
                    count += 1
                elif not leases.says_more(span, end):
                    continue
                chosen.append(span)
            if chosen:
                fresh[trace_id], counts[trace_id] = chosen, count
                leases.take(chosen)
        sizes = {trace_id: size_of(units[trace_id], counts, spans_of) for trace_id in fresh}
        changed = {units[trace_id] for trace_id, size in sizes.items() if size <= MAX_AT_ONCE and not is_hurried}
        # From now on the traces of these are each by itself.
        split = {member for i, size in sizes.items() if size > MAX_TRACE_SPANS for member in units[i].traces}
        make_due(connection, workspace_id, split & rows.keys(), now + round(LATER_SECONDS * NS))
        whole: dict[str, list[SpanRecord]] = {}
        told: dict[str, list[SpanRecord]] = {}
        for trace_id in sorted(trace_id for unit in changed for trace_id in unit.traces):
            before, new = stored.get(trace_id, {}), fresh.get(trace_id, ())
            if before or new:
                now_known = {**before, **{span.span_id: span for span in new}}
                whole[trace_id] = leases.as_known(trace_id, now_known.values())
                told[trace_id] = leases.as_told(trace_id, before.values())
        add_logged_errors(connection, workspace_id, whole)
        readings = Readings(self.book)
        for unit in changed:
            readings.add(unit, whole, told, announced)
        update = self.assemble(connection, workspace_id, workspace, readings, now, emptied, arrived=fresh.keys())
        withheld = readings.by_trace(update.withheld)
        again = {}
        for trace_id, own in fresh.items():
            known = [span.span_id for span in own if span.span_id in ends_by_trace[trace_id]]
            if not known:
                continue
            if trace_id in whole:
                states, now_told = announced.get(trace_id, {}), withheld.get(trace_id)
                if now_told is not None:
                    again[trace_id] = {
                        i: when_assembled(now_told.get(i, Announced.NOTHING), states[i]) for i in known if i in states
                    }
            else:
                again[trace_id] = self._unread(connection, workspace_id, trace_id, known, rows.get(trace_id))
        if fresh:
            self._rows.put(connection, workspace_id, fresh, sizes, withheld, again, fresh.keys() - rows.keys())
            due = {trace_id: update.due[key] for trace_id in fresh if (key := units[trace_id].key) in update.due}
            deferred_ns = now + round(DEFERRED_SECONDS * NS) if is_hurried else None
            self._rows.put_traces(
                connection, workspace_id, fresh, counts, rows, due, now, sizes, deferred_ns=deferred_ns
            )
            for trace_id in whole:
                # Of the spans that had arrived before, too.
                new = {span.span_id for span in fresh.get(trace_id, ())}
                earlier = {i: state for i, state in announced.get(trace_id, {}).items() if i not in new}
                mark_announced(connection, workspace_id, trace_id, changed_states(earlier, withheld.get(trace_id)))
        leases.write(self._open_spans, fresh, readings.traces)
        deferred = {
            # What is known of spans that have arrived again, their rows say.
            i: Kept(now if i not in again else 0, own)
            for i, own in fresh.items()
            if is_hurried and sizes[i] <= MAX_AT_ONCE
        }
        return Taken(update.new, sum(map(len, fresh.values())), refused, deferred)

    def _unread(
        self, connection: Connection, workspace_id: str, trace_id: str, span_ids: Sequence[str], row: Row[Any] | None
    ) -> dict[str, Announced]:
        """What is announced of spans that have arrived again, of a trace that is not assembled with them now."""
        states = states_of(connection, workspace_id, trace_id, span_ids)
        # The rows of these say nothing.
        untold = set(untold_of(row)) if row is not None else set()
        return {i: state if i in untold else when_rewritten(state) for i, state in states.items()}

    def _share(self, connection: Connection, workspace_id: str, trace_ids: Iterable[str]) -> None:
        """Write beside others that do not write to these traces."""
        self._writer.share(connection)
        locking.claim(connection, Claim.TRACE, {locking.trace_key(workspace_id, trace_id) for trace_id in trace_ids})

    def _newest(self, arrived: Iterable[SpanRecord]) -> dict[str, dict[str, SpanRecord]]:
        """The spans that arrived, by trace id and span id; of one that is there twice the version that says more."""
        newest: dict[str, dict[str, SpanRecord]] = defaultdict(dict)
        for span in arrived:
            if repetition := self.book.repetition(span):
                span = told_apart(span, repetition)
            trace_spans = newest[span.trace_id]
            other = trace_spans.get(span.span_id)
            if other is None or says_more(span, other.end_ns, len(other.payload)):
                trace_spans[span.span_id] = span
        return newest

    def _join(
        self, connection: Connection, workspace_id: str, candidates: Mapping[str, dict[str, SpanRecord]]
    ) -> AbstractSet[str]:
        """Add the spans that stand for lineage of the same runs; the traces that these have left."""
        keys = {
            key: trace_id
            for trace_id, spans in candidates.items()
            for span in spans.values()
            if (key := engine_key(span)) is not None
        }
        if not keys:
            return frozenset()
        # Spans move from one trace to another.
        locking.lock(connection)
        left = self.lineage.join(connection, workspace_id, keys)
        for target in left.values():
            candidates[target].update(
                {span.span_id: span for span in self.lineage.spans_of(connection, workspace_id, target)}
            )
        return left.keys()

    def refresh(
        self, connection: Connection, workspace_id: str, workspace: str, trace_ids: AbstractSet[str]
    ) -> Sequence[Event]:
        """Assemble traces again whose log records tell of new exceptions; events that listeners have not received.

        A long trace is assembled later.
        """
        again = self._read_again(connection, workspace_id, trace_ids)
        now = time.time_ns()
        make_due(connection, workspace_id, again.long, now + round(LATER_SECONDS * NS))
        readings = Readings(self.book)
        for unit in again.units:
            # Where the spans say it themselves, nothing changes; what waits to be assembled gets it then.
            is_waiting = any(again.rows[i].untold for i in unit.traces if i in again.rows)
            if not is_waiting and not again.changed.isdisjoint(unit.traces):
                readings.add(unit, again.whole, again.told, again.announced)
        update = self.assemble(connection, workspace_id, workspace, readings, now)
        withheld = readings.by_trace(update.withheld)
        for trace_id in readings.traces & again.announced.keys():
            changed = changed_states(again.announced[trace_id], withheld.get(trace_id))
            mark_announced(connection, workspace_id, trace_id, changed)
        open_spans.mark_told(connection, workspace_id, sorted(readings.traces & again.leased))
        return update.new

    def assemble_deferred(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        trace_ids: AbstractSet[str],
        kept: Mapping[str, Kept] = {},
    ) -> Sequence[Event]:
        """Assemble traces of which spans have only been stored; events that listeners have not received.

        ``kept``: those of them that need not be read, unless they have changed.
        Nothing happens to those that were assembled meanwhile, and to long ones, which are due in any case.
        """
        self._share(connection, workspace_id, trace_ids)
        again = self._read_again(connection, workspace_id, trace_ids, kept)
        in_rows = {trace_id: dict(states) for trace_id, states in again.announced.items()}
        note_untold(again.announced, again.rows)
        readings = Readings(self.book)
        for unit in again.units:
            if any(again.rows[i].untold for i in unit.traces if i in again.rows):
                readings.add(unit, again.whole, again.told, again.announced)
        update = self.assemble(connection, workspace_id, workspace, readings, time.time_ns())
        withheld = readings.by_trace(update.withheld)
        for trace_id in readings.traces & again.rows.keys():
            untold = set(untold_of(again.rows[trace_id]))
            changed = changed_states(in_rows.get(trace_id, {}), withheld.get(trace_id), untold)
            mark_announced(connection, workspace_id, trace_id, changed)
        due: dict[str, int | None] = {}
        for key, reading in readings.readings.items():
            due |= {i: update.due.get(key) for i in reading.traces if i in trace_ids}
        rows = {i: again.rows[i] for i in readings.traces if i in again.rows}
        mark_assembled(connection, workspace_id, rows, due)
        open_spans.mark_told(connection, workspace_id, sorted(readings.traces & again.leased))
        return update.new

    def _read_again(
        self, connection: Connection, workspace_id: str, trace_ids: AbstractSet[str], kept: Mapping[str, Kept] = {}
    ) -> _Again:
        units = TraceGroups.of(connection, workspace_id, sorted(trace_ids))
        rows = trace_rows(connection, workspace_id, sorted({member for u in units.values() for member in u.traces}))
        spans_of = {trace_id: row.span_count for trace_id, row in rows.items()}
        bounded = units_of(units, spans_of, MAX_TRACE_SPANS)
        present = {unit for trace_id, unit in bounded.items() if trace_id in rows}
        short = {unit for unit in present if size_of(unit, spans_of) <= MAX_AT_ONCE}
        long = rows.keys() & {trace_id for unit in present - short for trace_id in unit.traces}
        ids = sorted({trace_id for unit in short for trace_id in unit.traces if trace_id in rows})
        whole_kept = {i for i in ids if (own := kept.get(i)) is not None and own.is_all_of(rows[i])}
        stored, announced = stored_spans(connection, workspace_id, [i for i in ids if i not in whole_kept])
        for trace_id in whole_kept:
            stored[trace_id] = {span.span_id: span for span in kept[trace_id].spans}
            announced[trace_id] = dict.fromkeys(stored[trace_id], Announced.EVERYTHING)
        leases = open_spans.of_traces(connection, workspace_id, ids)
        whole: dict[str, list[SpanRecord]] = {}
        told: dict[str, list[SpanRecord]] = {}
        for trace_id in ids:
            spans, known = stored[trace_id].values(), leases.get(trace_id, {})
            whole[trace_id] = with_losses(spans, lost_now(known))
            told[trace_id] = with_losses(spans, lost_as_told(known))
        changed = add_logged_errors(connection, workspace_id, whole)
        return _Again(short, long, rows, whole, told, announced, changed, leases.keys())


class _Again(NamedTuple):
    """What is stored of traces, to assemble them again.

    ``units``: they and those that they are assembled with; ``long``: the traces that are too long for that. By trace:
    ``rows``; ``whole``: all spans; ``told``: the same as listeners may know them; ``announced``. ``changed``: traces
    with exceptions that were sent as log records; ``leased``: those with open spans.
    """

    units: AbstractSet[Unit]
    long: AbstractSet[str]
    rows: Mapping[str, Row[Any]]
    whole: Mapping[str, list[SpanRecord]]
    told: Mapping[str, list[SpanRecord]]
    announced: Mapping[str, dict[str, Announced]]
    changed: AbstractSet[str]
    leased: AbstractSet[str]


def _ends(
    connection: Connection,
    workspace_id: str,
    trace_id: str,
    row: Row[Any] | None,
    stored: Mapping[str, SpanRecord] | None,
    span_ids: Sequence[str],
) -> Mapping[str, int]:
    """The stored ends of a trace's spans, by span id. ``stored``: its spans, if they were read."""
    if row is None:
        return {}
    if stored is not None:
        return {span_id: span.end_ns for span_id, span in stored.items()}
    return ends_of(connection, workspace_id, trace_id, span_ids)
