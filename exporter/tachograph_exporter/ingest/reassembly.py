"""Traces that are due to be assembled again: long ones, and those that were missing a span."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, select, update

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest import span_rows, trace_executions
from tachograph_exporter.ingest.announcements import Announced, mark_reassembled
from tachograph_exporter.ingest.leases import lost_as_told, lost_now, with_losses
from tachograph_exporter.ingest.span_store import SpanStore, add_logged_errors
from tachograph_exporter.ingest.trace_executions import Reading
from tachograph_exporter.store import locking, open_spans
from tachograph_exporter.store.schema import traces, workspaces

quiet = QuietLog(logging.getLogger(__name__))

_CLAIM_SECONDS: Final = 120.0

_traces = traces.c


class DueTrace(NamedTuple):
    """A trace to assemble again.

    ``is_quiet``: no more spans are expected if none has arrived by then. ``claimed_ns``: when it is due once more if
    nobody assembles it.
    """

    workspace_id: str
    workspace: str
    trace_id: str
    changed_ns: int
    is_quiet: bool
    claimed_ns: int


def has_due(connection: Connection) -> bool:
    """Whether any trace is due."""
    query = select(_traces.trace_id).where(_traces.due_ns <= time.time_ns()).limit(1)
    return connection.execute(query).first() is not None


def claim_due(connection: Connection, limit: int = 20) -> list[DueTrace]:
    """Claim traces that are due; a claim holds for `_CLAIM_SECONDS`, then the trace is due again."""
    now = time.time_ns()
    query = (
        select(_traces.workspace_id, workspaces.c.slug, _traces.trace_id, _traces.changed_ns)
        .join(workspaces, workspaces.c.id == _traces.workspace_id)
        .where(_traces.due_ns <= now)
        .order_by(_traces.due_ns)
        .limit(limit)
    )
    claimed = []
    again_ns = now + round(_CLAIM_SECONDS * NS)
    for workspace_id, slug, trace_id, changed in connection.execute(query).all():
        connection.execute(
            update(traces)
            .where(_traces.workspace_id == workspace_id, _traces.trace_id == trace_id)
            .values(due_ns=again_ns)
        )
        # A long trace is assembled while it still grows, and any trace as soon as a span of it is lost.
        is_quiet = now - changed >= trace_executions.QUIET_SECONDS * NS
        claimed.append(DueTrace(workspace_id, slug, trace_id, changed, is_quiet, again_ns))
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
        quiet.exception(type(error), "trace %s could not be assembled again", due.trace_id)
        first = store.database.look(lambda c: span_rows.of_trace(c, due.workspace_id, due.trace_id))[:1]
        if first:
            # Its spans are stored; one of them is enough to try again.
            store.set_aside(due.workspace, first, error)
        # Unless it has become due meanwhile, because of a span that was lost, for instance.
        is_ours = (
            (_traces.workspace_id == due.workspace_id)
            & (_traces.trace_id == due.trace_id)
            & (_traces.due_ns == due.claimed_ns)
        )
        store.database.run(lambda c: c.execute(update(traces).where(is_ours).values(due_ns=None)))


def _reassemble(store: SpanStore, due: DueTrace) -> None:
    kept = store.database.look(lambda c: span_rows.of_trace(c, due.workspace_id, due.trace_id, is_slim=True))
    if not kept:
        return

    def work(connection: Connection) -> tuple[None, Sequence[Event]]:
        locking.lock(connection)
        is_trace = (_traces.workspace_id == due.workspace_id) & (_traces.trace_id == due.trace_id)
        row = connection.execute(select(_traces.changed_ns, _traces.span_count).where(is_trace)).first()
        if row is None:
            return None, []  # Deleted in the meantime.
        changed = row.changed_ns
        if changed != due.changed_ns and row.span_count <= span_rows.MAX_AT_ONCE:
            return None, []  # More spans have arrived, and the trace was assembled with them.
        announced = span_rows.announced_of(connection, due.workspace_id, due.trace_id)
        leases = open_spans.of_traces(connection, due.workspace_id, [due.trace_id]).get(due.trace_id, {})
        told = with_losses(kept, lost_as_told(leases))
        earlier = [span for span in told if announced.get(span.span_id) is Announced.EVERYTHING]
        is_quiet = due.is_quiet and changed == due.changed_ns
        reading = Reading(with_losses(kept, lost_now(leases)), announced, earlier, is_quiet)
        add_logged_errors(connection, due.workspace_id, {due.trace_id: reading})
        now = time.time_ns()
        result = store.executions.update(connection, due.workspace_id, due.workspace, {due.trace_id: reading}, now)
        states = {span.span_id: announced.get(span.span_id, Announced.EVERYTHING) for span in kept}
        withheld = result.withheld.get(due.trace_id)
        mark_reassembled(connection, due.workspace_id, due.trace_id, states, withheld)
        if leases:
            open_spans.mark_told(connection, due.workspace_id, [due.trace_id])
        soon = now + round(span_rows.LATER_SECONDS * NS)
        due_ns = soon if changed != due.changed_ns else result.due.get(due.trace_id)
        connection.execute(update(traces).where(is_trace).values(due_ns=due_ns))
        return None, result.new

    store.commit(work)
