"""OpenLineage events stored whole, and the executions that they tell of, in one transaction.

An event that arrives again changes nothing. The runs that events name together (a run, the one above it, the topmost
one) are in one trace; whenever an event of it arrives, its spans are made anew from all its events, and its executions
are assembled from its spans. Where an engine sends spans of its own as well (Airflow), both are in one trace.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.events import Event
from tachograph.identity import DEFAULT_WORKSPACE, derived_trace_id, reported_execution_id
from tachograph_exporter.ingest.announcements import (
    Announced,
    as_announced,
    as_open,
    changed_states,
    mark_announced,
    when_assembled,
    write_untold,
)
from tachograph_exporter.ingest.lineage import vocabulary
from tachograph_exporter.ingest.lineage.events import LineageEvent
from tachograph_exporter.ingest.lineage.keys import keys_of
from tachograph_exporter.ingest.lineage.translation import spans_of, trace_id_of
from tachograph_exporter.ingest.span_rows import (
    LATER_SECONDS,
    MAX_AT_ONCE,
    SPANS_PER_SECOND,
    SpanRows,
    make_due,
    stored_spans,
    trace_rows,
)
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.trace_executions import Reading, TraceExecutions
from tachograph_exporter.ingest.trace_groups import TraceGroups
from tachograph_exporter.store import lineage as rows
from tachograph_exporter.store import locking
from tachograph_exporter.store.executions import trace_of_any
from tachograph_exporter.store.lineage import LineageRows, StoredEvent

MAX_TRACE_EVENTS: Final = 200_000
"""Events that are kept of a trace."""
encode_event: Final = msgspec.msgpack.Encoder().encode
"""What is read of an event, as it is stored."""
_decoder: Final = msgspec.msgpack.Decoder(LineageEvent)


class Arrived(NamedTuple):
    """An event, and its JSON."""

    event: LineageEvent
    payload: bytes


class TakenEvents(NamedTuple):
    """What became of events: those for listeners, the number that was new, and the ids of those without room.

    ``deferred``: traces whose executions do not have the new events yet, and when `LineageStore.refresh` is to give
    them to these, in unix nanoseconds.
    """

    events: list[Event]
    stored: int
    refused: AbstractSet[str]
    deferred: Mapping[str, int] = {}


class LineageStore:
    """Stores events and their executions. ``span_rows``: writes spans; its owner settles it after each transaction."""

    def __init__(self, executions: TraceExecutions, span_rows: SpanRows, lineage_rows: LineageRows) -> None:
        self._executions = executions
        self._span_rows = span_rows
        self._rows = lineage_rows

    def take(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        arrived: Sequence[Arrived],
        *,
        is_hurried: bool = False,
    ) -> TakenEvents:
        """Store events, and bring the executions of their traces up to date; ``is_hurried``: the latter is deferred."""
        locking.lock(connection)
        now = time.time_ns()
        by_trace, known_traces, emptied = self._placed(connection, workspace_id, workspace, arrived)
        old = [trace_id for trace_id in by_trace if trace_id in known_traces]
        counts = rows.counts_of(connection, workspace_id, old)
        ids = [event_id for trace_id in old for event_id in by_trace[trace_id]]
        known = rows.known_events(connection, workspace_id, old, ids)
        fresh: dict[str, list[StoredEvent]] = {}
        changed: dict[str, list[LineageEvent]] = {}
        deferred: dict[str, int] = {}
        refused: set[str] = set()
        for trace_id, events in by_trace.items():
            own = [item for event_id, item in events.items() if (trace_id, event_id) not in known]
            count = counts.get(trace_id, 0)
            room = max(0, MAX_TRACE_EVENTS - count)
            refused.update(item.event.event_id for item in own[room:])
            if not own[:room]:
                continue
            fresh[trace_id] = [
                StoredEvent(item.event.event_id, item.event.time_ns, encode_event(item.event), item.payload)
                for item in own[:room]
            ]
            count += len(own)
            if count > MAX_AT_ONCE:
                deferred[trace_id] = now + round((LATER_SECONDS + count / SPANS_PER_SECOND) * NS)
            elif is_hurried:
                deferred[trace_id] = now
            else:
                changed[trace_id] = [item.event for item in own]
        self._rows.put_events(connection, workspace_id, fresh, deferred.keys())
        rows.mark_read(connection, workspace_id, [trace_id for trace_id in changed if trace_id in counts])
        # All events of a new trace have just arrived.
        stored = [trace_id for trace_id in changed if trace_id in counts]
        changed |= self._events_of(connection, workspace_id, stored)
        new = self._bring_up_to_date(connection, workspace_id, workspace, changed, emptied, now, known_traces)
        return TakenEvents(new, sum(map(len, fresh.values())), refused, deferred)

    def refresh(
        self, connection: Connection, workspace_id: str, workspace: str, trace_ids: Sequence[str]
    ) -> list[Event]:
        """Bring executions of traces up to date with events that were deferred; the events for listeners."""
        locking.lock(connection)
        unread = rows.mark_read(connection, workspace_id, trace_ids)
        events = self._events_of(connection, workspace_id, unread)
        return self._bring_up_to_date(
            connection, workspace_id, workspace, events, frozenset(), time.time_ns(), events.keys()
        )

    def _placed(
        self, connection: Connection, workspace_id: str, workspace: str, arrived: Iterable[Arrived]
    ) -> tuple[dict[str, dict[str, Arrived]], AbstractSet[str], AbstractSet[str]]:
        """The events by trace and id, the traces that were known, and those of them that have moved into others."""
        events = list({item.event.event_id: item for item in arrived}.values())
        keys = {item.event.event_id: keys_of(item.event) for item in events}
        stored = rows.traces_of(connection, workspace_id, sorted({key for own in keys.values() for key in own}))
        trace_of = dict(stored)
        known = set(stored.values())
        moved: dict[str, str] = {}

        def final(trace_id: str) -> str:
            target = trace_id
            while target in moved:
                target = moved[target]
            while trace_id in moved:
                # The next look is shorter.
                moved[trace_id], trace_id = target, moved[trace_id]
            return target

        for item in events:
            own = keys[item.event.event_id]
            targets = sorted({final(trace_of[key]) for key in own if key in trace_of})
            if not targets:
                event = item.event
                top = event.root or event.parent
                target = self._trace_of_hooks(connection, workspace_id, workspace, event) or trace_id_of(
                    workspace_id, top.run_id if top is not None else event.run_id
                )
            else:
                old = [trace_id for trace_id in targets if trace_id in known] or targets
                target = old[0] if len(old) == 1 else self._best(connection, workspace_id, old)
                moved |= {other: target for other in targets if other != target}
            trace_of |= dict.fromkeys(own, target)
        emptied = frozenset(moved.keys() & known)
        for source in emptied:
            self.move(connection, workspace_id, source, final(source))
        settled = {key: final(trace_id) for key, trace_id in trace_of.items()}
        self._rows.put_keys(connection, workspace_id, {k: t for k, t in settled.items() if stored.get(k) != t})
        by_trace: dict[str, dict[str, Arrived]] = defaultdict(dict)
        for item in events:
            by_trace[settled[keys[item.event.event_id][0]]][item.event.event_id] = item
        return by_trace, {final(trace_id) for trace_id in stored.values()}, emptied

    def _trace_of_hooks(
        self, connection: Connection, workspace_id: str, workspace: str, event: LineageEvent
    ) -> str | None:
        """The trace of the run of Airflow that an event tells of, as hooks report it, or will; None: of another one."""
        facts = event.airflow
        if facts is None or not facts.dag_id or not facts.run_id:
            return None
        # Those who report may not know of the workspace that their token stands for.
        ids = [reported_execution_id(slug, facts.dag_id, facts.run_id) for slug in (workspace, DEFAULT_WORKSPACE)]
        known = trace_of_any(connection, workspace_id, ids)
        return known if known is not None else derived_trace_id(ids[0])

    def _best(self, connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> str:
        """Into which of these traces the others move: one that an engine's own spans are in, if there is one."""
        spans, _ = stored_spans(connection, workspace_id, trace_ids)
        for trace_id in trace_ids:
            if any(span.scope != vocabulary.SCOPE for span in spans[trace_id].values()):
                return trace_id
        return trace_ids[0]

    def move(self, connection: Connection, workspace_id: str, source: str, target: str) -> None:
        """Move the events of a trace into another one; their spans are made there."""
        rows.move(connection, workspace_id, source, target)
        spans, _ = stored_spans(connection, workspace_id, [source])
        own = [span.span_id for span in spans[source].values() if span.scope == vocabulary.SCOPE]
        rows.delete_spans(connection, workspace_id, source, own)
        if len(own) == len(spans[source]):
            rows.delete_trace(connection, workspace_id, source)

    def join(self, connection: Connection, workspace_id: str, keys: Mapping[str, str]) -> dict[str, str]:
        """Note in which traces an engine's spans are, by the keys of their runs, and move lineage of these there.

        Returns the traces that lineage has left, with those that it is in now.
        """
        stored = rows.traces_of(connection, workspace_id, sorted(keys))
        self._rows.put_keys(connection, workspace_id, {k: t for k, t in keys.items() if k not in stored})
        left: dict[str, str] = {}
        for key, target in keys.items():
            source = stored.get(key, target)
            if source == target or source in left:
                continue
            spans, _ = stored_spans(connection, workspace_id, [source])
            if spans[source] and all(span.scope == vocabulary.SCOPE for span in spans[source].values()):
                self.move(connection, workspace_id, source, target)
                left[source] = target
        return left

    def spans_of(self, connection: Connection, workspace_id: str, trace_id: str) -> list[SpanRecord]:
        """The spans that stand for the events of a trace."""
        return spans_of(self._events_of(connection, workspace_id, [trace_id])[trace_id], trace_id)

    def _events_of(
        self, connection: Connection, workspace_id: str, trace_ids: Sequence[str]
    ) -> dict[str, list[LineageEvent]]:
        events: dict[str, list[LineageEvent]] = {trace_id: [] for trace_id in trace_ids}
        for trace_id, summary in rows.summaries(connection, workspace_id, trace_ids):
            events[trace_id].append(_decoder.decode(summary))
        return events

    def _bring_up_to_date(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        events: Mapping[str, Sequence[LineageEvent]],
        emptied: AbstractSet[str],
        now: int,
        known_traces: AbstractSet[str],
    ) -> list[Event]:
        """Make the spans of traces anew from all their events, store those that changed, replace the executions."""
        present = [trace_id for trace_id in events if trace_id in known_traces]
        trace_states = trace_rows(connection, workspace_id, present)
        write_untold(connection, workspace_id, trace_states)
        stored, announced = stored_spans(connection, workspace_id, present)
        readings: dict[str, Reading] = {}
        fresh: dict[str, list[SpanRecord]] = {}
        counts: dict[str, int] = {}
        for trace_id, own in events.items():
            before, states = stored.get(trace_id, {}), announced.get(trace_id, {})
            spans = spans_of(own, trace_id)
            kept = {key: span for key, span in before.items() if span.scope != vocabulary.SCOPE}
            whole = {**kept, **{span.span_id: span for span in spans}}
            gone = sorted(before.keys() - whole.keys())
            rows.delete_spans(connection, workspace_id, trace_id, gone)
            changed = [span for span in spans if _differs(before.get(span.span_id), span)]
            if not (changed or gone or emptied) and all(span.end_ns for span in spans):
                # The events tell nothing new, not even that something runs. Assembled now, an execution that is
                # settled would wait for more.
                continue
            counts[trace_id] = len(whole)
            if changed:
                fresh[trace_id] = changed
            if whole:
                started = [as_open(span) for i, span in before.items() if states.get(i) is Announced.START]
                earlier = as_announced(before.values(), states)
                readings[trace_id] = Reading(list(whole.values()), states, earlier, started=started)
        update = self._executions.update(connection, workspace_id, workspace, readings, now, emptied)
        again = {
            trace_id: {
                span.span_id: _when_remade(now_told.get(span.span_id, Announced.NOTHING), before, states, span)
                for span in fresh.get(trace_id, ())
                if span.span_id in states
            }
            for trace_id, now_told in update.withheld.items()
            for before, states in [(stored.get(trace_id, {}), announced.get(trace_id, {}))]
        }
        self._span_rows.put(connection, workspace_id, fresh, counts, update.withheld, again)
        for trace_id in readings:
            new = {span.span_id for span in fresh.get(trace_id, ())}
            states = {i: state for i, state in announced.get(trace_id, {}).items() if i not in new}
            mark_announced(connection, workspace_id, trace_id, changed_states(states, update.withheld.get(trace_id)))
        self._span_rows.put_traces(connection, workspace_id, fresh, counts, trace_states, update.due, now)
        for trace_id in sorted(update.due.keys() - fresh.keys()):
            make_due(connection, workspace_id, {trace_id}, update.due[trace_id])
        # Where spans of other engines in such a trace tell of a run in several traces, these are assembled again.
        units = TraceGroups.of(connection, workspace_id, readings).values()
        make_due(connection, workspace_id, {i for unit in units if unit.is_group for i in unit.traces}, now)
        return update.new


def _differs(before: SpanRecord | None, span: SpanRecord) -> bool:
    return before is None or before.payload != span.payload or before.resource_id != span.resource_id


def _when_remade(
    now: Announced, before: Mapping[str, SpanRecord], states: Mapping[str, Announced], span: SpanRecord
) -> Announced:
    """What is announced of a span that was made anew: ``now``, by its trace; ``before`` and ``states``: as it was."""
    state, old = states[span.span_id], before.get(span.span_id)
    is_same_end = old is not None and old.end_ns and span.end_ns and _word_of(old) == _word_of(span)
    if state is Announced.EVERYTHING and is_same_end:
        # How it ended has been told; a time or an edge has changed.
        return state
    return when_assembled(now, state)


def _word_of(span: SpanRecord) -> object:
    """How a run ended, in its engine's word."""
    return span.attributes.get(vocabulary.STATE)
