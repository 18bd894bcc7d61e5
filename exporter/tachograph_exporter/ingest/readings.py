"""What is known of traces, as executions are assembled from it: those of a group as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from sqlalchemy import Connection

from tachograph_exporter.ingest.announcements import Announced, as_announced, as_open
from tachograph_exporter.ingest.log_records import EXCEPTION
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.trace_executions import Reading, TraceExecutions
from tachograph_exporter.ingest.trace_groups import Together, Unit
from tachograph_exporter.store.log_rows import errors_of

SpansByTrace = Mapping[str, Sequence[SpanRecord]]


class Fault(NamedTuple):
    """A trace that cannot be assembled, and why."""

    trace_id: str
    spans: Sequence[SpanRecord]
    error: Exception


class _Group(NamedTuple):
    """What was added of traces that are assembled together, see `Readings.add`."""

    unit: Unit
    spans: SpansByTrace
    told: SpansByTrace
    announced: Mapping[str, Mapping[str, Announced]]
    is_quiet: bool
    is_old: bool


class Readings:
    """Readings of traces that are assembled in one transaction, by the key of their unit."""

    def __init__(self, book: Rulebook) -> None:
        self._book = book
        self._together: dict[str, Together] = {}
        self._groups: dict[str, _Group] = {}
        self.readings: dict[str, Reading] = {}

    def add(
        self,
        unit: Unit,
        spans: SpansByTrace,
        told: SpansByTrace,
        announced: Mapping[str, Mapping[str, Announced]],
        *,
        is_quiet: bool = False,
        is_old: bool = False,
    ) -> None:
        """Add the traces of a unit.

        ``spans``: all their spans; ``told``: those that listeners may know, as these know them; ``announced``: what
        listeners have received. All of them by trace. ``is_quiet``, ``is_old``: see `Reading`.
        """
        present = tuple([trace_id for trace_id in unit.traces if trace_id in spans])
        whole, earlier, states = spans[present[0]], told[present[0]], announced.get(present[0], {})
        if unit.is_group:
            own = {trace_id: spans[trace_id] for trace_id in present}
            self._groups[unit.key] = _Group(unit, own, told, announced, is_quiet, is_old)
            together = self._together[unit.key] = Together(own, self._book)
            whole = together.read(own)
            earlier = together.read({trace_id: told[trace_id] for trace_id in present})
            states = together.states({trace_id: announced.get(trace_id, {}) for trace_id in present})
        started = [as_open(span) for span in earlier if states.get(span.span_id) is Announced.START]
        earlier = as_announced(earlier, states)
        self.readings[unit.key] = Reading(whole, states, earlier, is_quiet, unit.traces, started, is_old)

    def leave_out_faults(self, executions: TraceExecutions, workspace: str, now_ns: int) -> list[Fault]:
        """Leave out of groups what cannot be assembled even by itself, so that the rest can be. Returns these traces.

        For a group of which nothing could be assembled, nothing changes.
        """
        faults: list[Fault] = []
        for group in list(self._groups.values()):
            errors = executions.faults_of(workspace, group.spans, now_ns)
            rest = {trace_id: own for trace_id, own in group.spans.items() if trace_id not in errors}
            if errors and rest:
                faults += [Fault(trace_id, group.spans[trace_id], error) for trace_id, error in errors.items()]
                self.add(group.unit, rest, group.told, group.announced, is_quiet=group.is_quiet, is_old=group.is_old)
        return faults

    @property
    def traces(self) -> AbstractSet[str]:
        """The traces that are assembled."""
        return {trace_id for reading in self.readings.values() for trace_id in reading.traces}

    def by_trace(self, withheld: Mapping[str, Mapping[str, Announced]]) -> dict[str, Mapping[str, Announced]]:
        """What `Update.withheld` says of units, by trace and span."""
        result: dict[str, Mapping[str, Announced]] = {}
        for key, states in withheld.items():
            together = self._together.get(key)
            result |= together.by_trace(states) if together is not None else {key: states}
        return result


def add_logged_errors(connection: Connection, workspace_id: str, spans: SpansByTrace) -> set[str]:
    """Give spans the exceptions that were sent as log records, as if they were events of theirs.

    A record that only mentions an exception counts for a span that failed. ``spans``: by trace. Returns the traces
    that changed.
    """
    changed = set()
    for trace_id, errors in errors_of(connection, workspace_id, sorted(spans)).items():
        for span in spans[trace_id]:
            error = errors.get(span.span_id)
            if error is not None and span.exception is None and (span.is_error or error.event_name == EXCEPTION):
                span.exception = (error.type, error.message, error.stack)
                changed.add(trace_id)
    return changed
