"""Runs of which several traces tell: the traces that are read together, and their spans as those of one trace.

Traces belong together where spans of them name the same run of an engine (`Rule.across_traces`) or share a key
(`Rule.together`), or where a span without a parent links to the span that asked for it (`Rule.linked`). Whichever
arrives first, it is noted in which group the run is, or the trace that was linked to. Groups are bounded: traces that
would make one too large stay by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from tachograph_exporter.ingest import span_rows
from tachograph_exporter.ingest.early_spans import with_early_attributes
from tachograph_exporter.ingest.lineage.vocabulary import SCOPE
from tachograph_exporter.ingest.rules import Role, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store import locking
from tachograph_exporter.store import trace_groups as rows
from tachograph_exporter.store.trace_groups import RUN, TRACE, TraceGroupRows

MAX_TRACES: Final = 1_000
"""Traces that are read together."""
MAX_TRACES_AT_ONCE: Final = 100
"""So many are assembled whenever a span of theirs arrives; more of them later, like a long trace."""
_T = TypeVar("_T")


class Unit(NamedTuple):
    """Traces that are assembled together: mostly one. ``key`` is one of them."""

    key: str
    traces: tuple[str, ...]

    @property
    def is_group(self) -> bool:
        """Whether there are several."""
        return len(self.traces) > 1


def alone(trace_id: str) -> Unit:
    """A trace that no other one is read with."""
    return Unit(trace_id, (trace_id,))


def ties_of(span: SpanRecord, book: Rulebook) -> Iterator[str]:
    """The keys of what a span says that its trace belongs to: runs, and the trace of the span that asked for it."""
    if span.scope == SCOPE or not book.may_tie(span) or (rule := book.find(span)) is None:
        return
    if rule.across_traces and rule.run_id is not None and (run := rule.run_id(span)) is not None:
        yield _run_key(f"{rule.engine}\0{run}")
    if rule.together is not None:
        for key in rule.together(span):
            yield _run_key(f"{rule.engine}\0together\0{key}")
    if rule.linked and not span.parent_span_id and span.elsewhere:
        yield TRACE + span.elsewhere[0][0]


def _run_key(run: str) -> str:
    return RUN + hashlib.blake2b(run.encode(errors="replace"), digest_size=16).hexdigest()


class TraceGroups:
    """Notes which traces belong together, by the rules of ``book``."""

    def __init__(self, dialect: Dialect, book: Rulebook) -> None:
        self._rows = TraceGroupRows(dialect)
        self._book = book

    def join(
        self, connection: Connection, workspace_id: str, arrived: Mapping[str, Mapping[str, SpanRecord]]
    ) -> dict[str, Unit]:
        """What each of these traces is assembled with, now that these spans of it have arrived."""
        ties = {
            trace_id: keys
            for trace_id, spans in arrived.items()
            if (keys := self._ties(spans.values()) - {TRACE + trace_id})
        }
        keys = {key for own in ties.values() for key in own}
        homes = rows.homes_of(connection, workspace_id, keys | {TRACE + trace_id for trace_id in arrived})
        if not homes and not ties:
            return {trace_id: alone(trace_id) for trace_id in arrived}
        # Other traces are read and written with these.
        locking.lock(connection)
        members = rows.members_of(connection, workspace_id, set(homes.values()))
        joining = _Joining(homes, members)
        for trace_id in sorted(ties):
            for key in sorted(ties[trace_id]):
                joining.tie(trace_id, key)
        for source, target in joining.merged:
            rows.merge(connection, workspace_id, source, target)
        self._rows.put(connection, workspace_id, joining.changed)
        return {trace_id: joining.unit(trace_id) for trace_id in arrived}

    def _ties(self, spans: Iterable[SpanRecord]) -> set[str]:
        return {key for span in with_early_attributes(list(spans)) for key in ties_of(span, self._book)}

    @staticmethod
    def of(connection: Connection, workspace_id: str, trace_ids: Iterable[str]) -> dict[str, Unit]:
        """What each of these traces is assembled with."""
        ids = list(trace_ids)
        homes = rows.homes_of(connection, workspace_id, [TRACE + trace_id for trace_id in ids])
        if not homes:
            return {trace_id: alone(trace_id) for trace_id in ids}
        locking.lock(connection)
        joining = _Joining(homes, rows.members_of(connection, workspace_id, set(homes.values())))
        return {trace_id: joining.unit(trace_id) for trace_id in ids}


class _Joining:
    """Groups while traces are joined. ``homes``: by key, as stored; ``members``: the traces of these, by home."""

    def __init__(self, homes: Mapping[str, str], members: dict[str, set[str]]) -> None:
        self._homes = dict(homes)
        self._members = members
        self._targets: dict[str, str] = {}
        self._changed: set[str] = set()
        self._units: dict[str, Unit] = {}
        self.merged: list[tuple[str, str]] = []
        """Homes of groups that became part of another one, with the home of that one; in order."""

    def tie(self, trace_id: str, key: str) -> None:
        """Let this trace belong to what the key names, unless too many do."""
        own = self._home(TRACE + trace_id, trace_id)
        if key.startswith(RUN) and key not in self._homes:
            self._homes[key] = own
            self._changed.add(key)
            return
        other = self._home(key, key.removeprefix(TRACE))
        if own == other or len(self._members[own]) + len(self._members[other]) > MAX_TRACES:
            return
        source, target = sorted((own, other), key=lambda home: (len(self._members[home]), home))
        self._members[target] |= self._members.pop(source)
        self._targets[source] = target
        self.merged.append((source, target))
        for home in (source, target):
            # The others have rows of their own.
            self._homes.setdefault(TRACE + home, home)
            self._changed.add(TRACE + home)

    def _home(self, key: str, without: str) -> str:
        home = path = self._homes.get(key, without)
        while home in self._targets:
            home = self._targets[home]
        while path in self._targets and path != home:
            # The next look is shorter.
            self._targets[path], path = home, self._targets[path]
        self._members.setdefault(home, {home})
        return home

    @property
    def changed(self) -> dict[str, str]:
        """The homes of groups that keys are in now and were not before, by key."""
        return {key: self._home(key, key.removeprefix(TRACE)) for key in self._changed}

    def unit(self, trace_id: str) -> Unit:
        """What a trace is assembled with, once all are joined."""
        home = self._home(TRACE + trace_id, trace_id)
        if home not in self._units:
            self._units[home] = Unit(home, tuple(sorted(self._members[home])))
        return self._units[home]


class Together:
    """The spans of several traces as those of one. Each trace's ids are its own: those that occur twice are changed.

    ``spans``: all that are known, by trace.
    """

    def __init__(self, spans: Mapping[str, Iterable[SpanRecord]], book: Rulebook) -> None:
        self._book = book
        self._ids: dict[tuple[str, str], str] = {}
        self._places: dict[str, tuple[str, str]] = {}
        targets = {span.elsewhere[0] for own in spans.values() for span in own if span.elsewhere}
        self._linked_to: dict[tuple[str, str], SpanRecord] = {}
        for trace_id in sorted(spans):
            for span in spans[trace_id]:
                place = (trace_id, span.span_id)
                new_id = span.span_id if span.span_id not in self._places else _apart(place)
                self._ids[place], self._places[new_id] = new_id, place
                if place in targets:
                    self._linked_to[place] = span

    def read(self, spans: Mapping[str, Iterable[SpanRecord]]) -> list[SpanRecord]:
        """These spans, each below the one that asked for it, with their links to spans of the other traces."""
        return with_early_attributes([self._read(span) for own in spans.values() for span in own])

    def _read(self, span: SpanRecord) -> SpanRecord:
        trace_id = span.trace_id
        parent = self._id((trace_id, span.parent_span_id)) if span.parent_span_id else ""
        span_id = self._ids[trace_id, span.span_id]
        links = tuple([self._id((trace_id, link)) for link in span.links])
        if span.elsewhere:
            if not parent and span.elsewhere[0] in self._linked_to and self._is_linked(span):
                parent = self._ids[span.elsewhere[0]]
            links += tuple([self._id(place) for place in span.elsewhere if place in self._ids])
        if (span_id, parent, links) == (span.span_id, span.parent_span_id, span.links):
            return span
        return msgspec.structs.replace(span, span_id=span_id, parent_span_id=parent, links=links)

    def _is_linked(self, span: SpanRecord) -> bool:
        """Whether a span is below the one that it links to: that one asked for it."""
        (early,) = with_early_attributes([span])
        rule, asking = self._book.find(early), self._book.find(self._linked_to[span.elsewhere[0]])
        if rule is None or asking is None or not rule.linked:
            return False
        return asking.role is Role.QUEUED and asking.engine == rule.engine

    def _id(self, place: tuple[str, str]) -> str:
        known = self._ids.get(place)
        if known is not None:
            return known
        # It has not arrived; a span of another trace may have its id.
        return place[1] if place[1] not in self._places else _apart(place)

    def states(self, states: Mapping[str, Mapping[str, _T]]) -> dict[str, _T]:
        """What is by trace and span, by the ids that the spans have here."""
        return {
            self._ids[trace_id, span_id]: state
            for trace_id, own in states.items()
            for span_id, state in own.items()
            if (trace_id, span_id) in self._ids
        }

    def by_trace(self, states: Mapping[str, _T]) -> dict[str, dict[str, _T]]:
        """What is by the ids that the spans have here, by trace and span; each trace has an entry."""
        apart: dict[str, dict[str, _T]] = {trace_id: {} for trace_id, _ in self._ids}
        for span_id, state in states.items():
            trace_id, own_id = self._places[span_id]
            apart[trace_id][own_id] = state
        return apart


def _apart(place: tuple[str, str]) -> str:
    return hashlib.blake2b("/".join(place).encode(), digest_size=8).hexdigest()


def units_of(units: Mapping[str, Unit], counts: Mapping[str, int], most: int) -> dict[str, Unit]:
    """The units by trace, where the traces of one with more than ``most`` spans are each by itself.

    ``counts``: the spans of each trace that are stored.
    """
    bounded: dict[str, Unit] = {}
    for trace_id, unit in units.items():
        is_bounded = not unit.is_group or sum(counts.get(member, 0) for member in unit.traces) <= most
        bounded[trace_id] = unit if is_bounded else alone(trace_id)
    return bounded


def size_of(unit: Unit, *counts: Mapping[str, int]) -> int:
    """How many spans a unit has, or as many as a long trace if it has many traces.

    Of each trace the first of ``counts`` that knows it says how many.
    """
    spans = sum(next((of[member] for of in counts if member in of), 0) for member in unit.traces)
    return max(spans, span_rows.MAX_AT_ONCE + 1) if len(unit.traces) > MAX_TRACES_AT_ONCE else spans
