"""Leases of spans that have not ended: what an arrival means for them, and which of them are lost."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection

from tachograph_exporter.ingest.early_spans import with_early_attributes
from tachograph_exporter.ingest.lineage.vocabulary import SCOPE
from tachograph_exporter.ingest.span_rows import ends_of
from tachograph_exporter.ingest.spans import SpanRecord, read_resource
from tachograph_exporter.store import open_spans
from tachograph_exporter.store.open_spans import OpenSpan, OpenSpans, Sighting

_INSTANCE: Final = "service.instance.id"
_PROCESS: Final = "process.pid"
_HOSTS: Final = ("host.id", "container.id", "k8s.pod.uid", "host.name")
_NEVER_LARGER: Final = 1 << 62


def says_more(span: SpanRecord, end_ns: int, size: int) -> bool:
    """Whether a span says more than it did when it ended at ``end_ns`` (0: open) and had a payload of ``size`` bytes.

    The heartbeats of an open one may come in any order; what they say of it grows.
    """
    return span.end_ns > end_ns or (not span.end_ns and not end_ns and len(span.payload) > size)


class Leases:
    """The leases in traces of which spans arrive, while these are stored.

    ``trace_ids`` are those that are stored already.
    """

    def __init__(self, connection: Connection, workspace_id: str, trace_ids: Sequence[str], now_ns: int) -> None:
        self._connection = connection
        self._workspace_id = workspace_id
        self._trace_ids = trace_ids
        self._now_ns = now_ns
        self._rows = open_spans.of_traces(connection, workspace_id, trace_ids)
        self._sightings: list[Sighting] = []
        self._processes: set[str] = set()
        self._alive: dict[str, set[str]] = {}

    def read(self, trace_ids: Sequence[str]) -> None:
        """Read those of further traces, which are assembled together with the others."""
        self._rows |= open_spans.of_traces(self._connection, self._workspace_id, trace_ids)

    def take_heartbeats(self, candidates: dict[str, dict[str, SpanRecord]]) -> None:
        """Take out of ``candidates`` the open spans that say nothing new, so that their traces need no look.

        They are alive, or have ended meanwhile: then they were sent before their end was.
        """
        for trace_spans in candidates.values():
            self._processes.update([process_of(span) for span in trace_spans.values()])
        for trace_id, known in self._rows.items():
            trace_spans = candidates[trace_id]
            for span_id, row in known.items():
                span = trace_spans.get(span_id)
                if span is not None and not says_more(span, 0, row.size):
                    self._see(trace_spans.pop(span_id))
        for trace_id in self._trace_ids:
            trace_spans = candidates[trace_id]
            unsure = [span_id for span_id, span in trace_spans.items() if not span.end_ns]
            for span_id, end_ns in ends_of(self._connection, self._workspace_id, trace_id, unsure).items():
                if end_ns:
                    del trace_spans[span_id]
            if not trace_spans:
                del candidates[trace_id]

    def says_more(self, span: SpanRecord, end_ns: int) -> bool:
        """Whether a span says more than what is stored of it, which ends at ``end_ns``; if it is open, it is alive."""
        row = self._rows.get(span.trace_id, {}).get(span.span_id)
        if says_more(span, end_ns, row.size if row is not None else _NEVER_LARGER):
            return True
        if not end_ns and not span.end_ns:
            self._see(span)
        return False

    def take(self, spans: Iterable[SpanRecord]) -> None:
        """These spans are stored now."""
        for span in spans:
            if not span.end_ns:
                self._see(span)

    def _see(self, span: SpanRecord) -> None:
        if span.scope == SCOPE:
            # It stands for a run that OpenLineage tells of: nobody sends heartbeats of it.
            return
        now_ns, size = self._now_ns, len(span.payload)
        self._alive.setdefault(span.trace_id, set()).add(span.span_id)
        self._sightings.append(
            Sighting(
                self._workspace_id, span.trace_id, span.span_id, span.start_ns, now_ns, now_ns, size, process_of(span)
            )
        )

    def as_known(self, trace_id: str, spans: Collection[SpanRecord]) -> list[SpanRecord]:
        """The spans of a trace, those that are lost marked."""
        alive = self._alive.get(trace_id, ())
        return with_losses(spans, {i: at for i, at in lost_now(self._rows.get(trace_id, {})).items() if i not in alive})

    def as_told(self, trace_id: str, spans: Collection[SpanRecord]) -> list[SpanRecord]:
        """The spans of a trace, those marked of which listeners know that they are lost."""
        return with_losses(spans, lost_as_told(self._rows.get(trace_id, {})))

    def write(
        self,
        writer: OpenSpans,
        fresh: Mapping[str, Sequence[SpanRecord]],
        assembled: Collection[str],
    ) -> None:
        """Write what changed. ``fresh``: the spans that were stored; ``assembled``: the traces that were assembled."""
        connection, workspace_id = self._connection, self._workspace_id
        open_spans.note_processes(connection, workspace_id, self._processes - {""}, self._now_ns)
        writer.see(connection, self._sightings)
        ended = [
            (workspace_id, trace_id, span.span_id)
            for trace_id, spans in fresh.items()
            for span in spans
            if span.end_ns and span.span_id in self._rows.get(trace_id, {})
        ]
        open_spans.close(connection, ended)
        lost = {i for i, rows in self._rows.items() if any(row.lost_ns or row.told_lost_ns for row in rows.values())}
        open_spans.mark_told(connection, workspace_id, sorted(lost.intersection(assembled)))
        revived = [
            trace_id
            for trace_id in lost.difference(fresh)
            if any(self._rows[trace_id][span_id].lost_ns for span_id in self._alive.get(trace_id, ()))
        ]
        open_spans.assemble_again(connection, workspace_id, sorted(revived), self._now_ns)


def process_of(span: SpanRecord) -> str:
    """A key of the process that sent a span, or empty if its resource does not tell it from others.

    A process that sends spans is alive, and so is what it has open. Without a process id, or an id of the instance, the
    spans of one worker would keep those of another alive.
    """
    return _process(span.resource)


@functools.lru_cache(maxsize=1024)
def _process(resource: bytes) -> str:
    service, _, attributes = read_resource(resource)
    parts = [service]
    if attributes.get(_INSTANCE):
        parts += [_INSTANCE, str(attributes[_INSTANCE])]
    elif attributes.get(_PROCESS) and any(attributes.get(host) for host in _HOSTS):
        parts += [str(attributes[_PROCESS]), *[str(attributes.get(host, "")) for host in _HOSTS]]
    else:
        return ""
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=16).hexdigest()


def with_losses(spans: Iterable[SpanRecord], lost_at: Mapping[str, int]) -> list[SpanRecord]:
    """The spans of a trace, the lost ones marked. ``lost_at``: when each of these was last seen, by span id.

    Open ones say what they will say when they end, as far as it is known (see `early_spans`). A span was alive as long
    as what ran inside it, so it is lost no earlier than that ended or was lost.
    """
    spans = with_early_attributes(list(spans))
    if not any(lost_at.values()):
        return spans
    marked = {
        span.span_id: msgspec.structs.replace(span, lost_ns=lost_ns)
        if (lost_ns := lost_at.get(span.span_id, 0)) and not span.end_ns
        else span
        for span in spans
    }
    # The latest first, so that no span is moved twice.
    for span in sorted(marked.values(), key=_last_sign, reverse=True):
        at_ns, current = _last_sign(span), marked.get(span.parent_span_id)
        while current is not None and current.is_lost and current.lost_ns < at_ns:
            current.lost_ns = at_ns
            current = marked.get(current.parent_span_id)
    return list(marked.values())


def _last_sign(span: SpanRecord) -> int:
    return max(span.over_ns, span.start_ns)


def lost_now(rows: Mapping[str, OpenSpan]) -> dict[str, int]:
    """When spans were last seen that are lost, by id."""
    return {span_id: row.lost_ns for span_id, row in rows.items() if row.lost_ns}


def lost_as_told(rows: Mapping[str, OpenSpan]) -> dict[str, int]:
    """The same of those that listeners know to be lost."""
    return {span_id: row.told_lost_ns for span_id, row in rows.items() if row.told_lost_ns}
