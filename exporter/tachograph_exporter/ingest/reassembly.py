"""Traces that are due to be assembled again: long ones, and those that were missing a span."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, or_, select, update

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest import rests, span_rows, span_store, trace_executions
from tachograph_exporter.ingest.announcements import changed_states, mark_announced, write_untold
from tachograph_exporter.ingest.leases import lost_as_told, lost_now, with_losses
from tachograph_exporter.ingest.readings import Readings, add_logged_errors
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.trace_groups import TraceGroups, Unit, size_of, units_of
from tachograph_exporter.store import failures, locking, open_spans
from tachograph_exporter.store.schema import traces, workspaces

quiet = QuietLog(logging.getLogger(__name__))

_LATEST_SECONDS: Final = 2 * trace_executions.ENDED_SECONDS
"""More than any trace is put off."""

_traces = traces.c


class DueTrace(NamedTuple):
    """A trace to assemble again.

    ``is_quiet``: no more spans are expected if none has arrived by then; ``is_old``: not even those of what lasts for
    long. ``claimed_ns``: when it is due once more if nobody assembles it.
    """

    workspace_id: str
    workspace: str
    trace_id: str
    changed_ns: int
    is_quiet: bool
    claimed_ns: int
    is_old: bool = False


def has_due(connection: Connection) -> bool:
    """Whether any trace is due."""
    return connection.execute(select(_traces.trace_id).where(_is_due(time.time_ns())).limit(1)).first() is not None


def _is_due(now_ns: int) -> ColumnElement[bool]:
    """Due by the clock; a time that nothing is put off to is from before the clock was set back."""
    return or_(_traces.due_ns <= now_ns, _traces.due_ns > now_ns + round(_LATEST_SECONDS * NS))


def claim_due(connection: Connection, limit: int = 20) -> list[DueTrace]:
    """Claim traces that are due; a claim holds for `span_rows.CLAIM_SECONDS`, then the trace is due again."""
    now = time.time_ns()
    query = (
        select(_traces.workspace_id, workspaces.c.slug, _traces.trace_id, _traces.changed_ns)
        .join(workspaces, workspaces.c.id == _traces.workspace_id)
        .where(_is_due(now))
        .order_by(_traces.due_ns)
        .limit(limit)
    )
    claimed = []
    again_ns = now + round(span_rows.CLAIM_SECONDS * NS)
    for workspace_id, slug, trace_id, changed in connection.execute(query).all():
        connection.execute(
            update(traces)
            .where(_traces.workspace_id == workspace_id, _traces.trace_id == trace_id)
            .values(due_ns=again_ns)
        )
        # A long trace is assembled while it still grows, and any trace as soon as a span of it is lost.
        is_quiet = now - changed >= trace_executions.QUIET_SECONDS * NS
        is_old = now - changed >= trace_executions.PARENT_SECONDS * NS
        claimed.append(DueTrace(workspace_id, slug, trace_id, changed, is_quiet, again_ns, is_old))
    return claimed


def reassemble(store: SpanStore, due: DueTrace) -> None:
    """Assemble a trace's executions again and publish what is new. Blocks; reads its spans before the transaction.

    Raises `StoreUnavailable`. A trace that cannot be assembled is set aside with the reason, and is not due any more.
    """
    try:
        _reassemble(store, due)
    except StoreUnavailable:
        raise
    except Exception as error:
        if failures.is_away(error):
            # No memory, no thread: there is nothing wrong with the trace.
            raise failures.unavailable(error, store.database.name) from error
        quiet.exception(type(error), "trace %s could not be assembled again", due.trace_id)
        first = store.database.look(lambda c: span_rows.of_trace(c, due.workspace_id, due.trace_id))[:1]
        if first:
            # Its spans are stored; one of them is enough to try again.
            store.set_aside(due.workspace, first, error)
        # Unless it has become due meanwhile, because of a span that was lost, for instance.
        store.database.run(lambda c: c.execute(update(traces).where(_claimed(due)).values(due_ns=None)))


class _Kept(NamedTuple):
    """What is stored of traces that are assembled together: their rows, and the spans, by trace."""

    unit: Unit
    rows: Mapping[str, tuple[int, int]]
    spans: Mapping[str, Sequence[SpanRecord]]


def _unit(connection: Connection, due: DueTrace) -> tuple[Unit, dict[str, tuple[int, int]]]:
    """What a trace is assembled with, and of each of these traces when it changed and the number of its spans."""
    unit = TraceGroups.of(connection, due.workspace_id, [due.trace_id])[due.trace_id]
    stored = span_rows.trace_rows(connection, due.workspace_id, unit.traces)
    counts = {trace_id: row.span_count for trace_id, row in stored.items()}
    unit = units_of({due.trace_id: unit}, counts, span_store.MAX_TRACE_SPANS)[due.trace_id]
    rows = {i: (stored[i].changed_ns, stored[i].span_count) for i in unit.traces if i in stored}
    return unit, rows


def _kept(connection: Connection, due: DueTrace) -> _Kept:
    unit, rows = _unit(connection, due)
    spans = {i: span_rows.of_trace(connection, due.workspace_id, i, is_slim=True) for i in rows}
    return _Kept(unit, rows, {trace_id: own for trace_id, own in spans.items() if own})


def _reassemble(store: SpanStore, due: DueTrace) -> None:
    kept = store.database.look(lambda c: _kept(c, due))
    if due.trace_id not in kept.spans:
        return

    took = 0.0

    def work(connection: Connection) -> tuple[None, Sequence[Event]]:
        nonlocal took
        locking.lock(connection)
        began = time.monotonic()
        workspace_id = due.workspace_id
        unit, rows = _unit(connection, due)
        if due.trace_id not in rows:
            return None, []  # Deleted in the meantime.
        if unit.is_group and not _is_claimed(connection, due):
            return None, []  # It was assembled together with another one meanwhile.
        now = time.time_ns()
        has_changed = unit != kept.unit or rows != kept.rows
        if has_changed and size_of(unit, {i: count for i, (_, count) in rows.items()}) <= span_rows.MAX_AT_ONCE:
            # More spans have arrived, and the traces were assembled with them, unless it was this trace that was due.
            _free(connection, due, now)
            return None, []
        stored = span_rows.trace_rows(connection, workspace_id, list(kept.spans))
        write_untold(connection, workspace_id, stored)
        announced = {i: span_rows.announced_of(connection, workspace_id, i) for i in kept.spans}
        leases = open_spans.of_traces(connection, workspace_id, list(kept.spans))
        whole = {i: with_losses(own, lost_now(leases.get(i, {}))) for i, own in kept.spans.items()}
        told = {i: with_losses(own, lost_as_told(leases.get(i, {}))) for i, own in kept.spans.items()}
        add_logged_errors(connection, workspace_id, whole)
        # What has only been stored is assembled for the first time.
        is_first = any(row.untold for row in stored.values())
        is_quiet = due.is_quiet and not (has_changed or is_first or _is_growing(connection, due, unit, now))
        readings = Readings(store.book)
        readings.add(kept.unit, whole, told, announced, is_quiet=is_quiet, is_old=is_quiet and due.is_old)
        result = store.assemble(connection, workspace_id, due.workspace, readings, now)
        withheld = readings.by_trace(result.withheld)
        for trace_id, own in kept.spans.items():
            states = {i: announced[trace_id][i] for span in own if (i := span.span_id) in announced[trace_id]}
            changed = changed_states(states, withheld.get(trace_id))
            mark_announced(connection, workspace_id, trace_id, changed)
        open_spans.mark_told(connection, workspace_id, sorted(leases))
        took = time.monotonic() - began
        soon = now + max(round(span_rows.LATER_SECONDS * NS), rests.rest_ns(took))
        due_ns = soon if has_changed else result.due.get(kept.unit.key)
        # All of them have been assembled; one remembers when to do so again.
        for trace_id in kept.rows:
            value = due_ns if trace_id == due.trace_id else None
            connection.execute(update(traces).where(_is_trace(workspace_id, trace_id)).values(due_ns=value))
        return None, result.new

    store.commit(work)
    if took:
        store.rests.note(due.workspace_id, due.trace_id, took)


def _is_growing(connection: Connection, due: DueTrace, unit: Unit, now_ns: int) -> bool:
    """Whether a span of one of these traces has arrived a moment ago. If that may matter, the trace is due, too."""
    if not unit.is_group:
        return False
    after_ns = now_ns - round(trace_executions.QUIET_SECONDS * NS)
    rows = span_rows.trace_rows(connection, due.workspace_id, unit.traces).values()
    return any(row.due_ns is not None and row.changed_ns > after_ns for row in rows)


def _free(connection: Connection, due: DueTrace, due_ns: int) -> None:
    """Make a claimed trace due, unless it has been given another time since."""
    connection.execute(update(traces).where(_claimed(due)).values(due_ns=due_ns))


def _is_claimed(connection: Connection, due: DueTrace) -> bool:
    return connection.execute(select(_traces.trace_id).where(_claimed(due))).first() is not None


def _claimed(due: DueTrace) -> ColumnElement[bool]:
    """The trace, unless it has been given another time since it was claimed."""
    return _is_trace(due.workspace_id, due.trace_id) & (_traces.due_ns == due.claimed_ns)


def _is_trace(workspace_id: str, trace_id: str) -> ColumnElement[bool]:
    return (_traces.workspace_id == workspace_id) & (_traces.trace_id == trace_id)
