"""Log records kept with their spans; what belongs to no trace is counted and dropped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from tachograph.events import Event
from tachograph_exporter.ingest.log_records import LogRecord
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.store import locking, log_rows
from tachograph_exporter.store.log_rows import LogRow, LogRows

NO_TRACE: Final = "no_trace"
"""A record that names no trace."""
LIMIT: Final = "limit"
"""A record beyond what is kept of a span or a trace."""
_PRUNED_AFTER: Final = 1_000


class LogsTaken(NamedTuple):
    """What became of records: new ones, why others are not kept, and events that listeners have not received."""

    stored: int
    dropped: Counter[str]
    events: Sequence[Event]


class LogStore:
    """Log records, in the database of ``spans``, whose steps get the exceptions that the records tell of."""

    def __init__(self, spans: SpanStore, dialect: Dialect) -> None:
        self._spans = spans
        self._rows = LogRows(dialect)
        self._new_traces = 0

    def take(
        self, connection: Connection, workspace_id: str, workspace: str, arrived: Sequence[LogRecord]
    ) -> LogsTaken:
        """Store records, and bring the executions up to date whose exceptions they tell of."""
        locking.lock(connection)
        now = time.time_ns()
        rows = [_row(record) for record in arrived if record.trace_id]
        kept = self._rows.put(connection, workspace_id, rows, now)
        dropped = Counter({NO_TRACE: len(arrived) - len(rows), LIMIT: kept.dropped})
        events = self._spans.refresh(connection, workspace_id, workspace, kept.with_errors)
        self._new_traces += kept.new_traces
        if self._new_traces >= _PRUNED_AFTER:
            self._new_traces = 0
            log_rows.prune_unknown(connection, now)
        return LogsTaken(kept.new, +dropped, events)


def _row(record: LogRecord) -> LogRow:
    kind, message, stack = record.exception if record.exception is not None else (None, None, None)
    return LogRow(
        record.trace_id, record.span_id, record.time_ns, record.id, record.severity, record.service, record.event_name,
        record.body, record.attributes, kind, message, stack,
    )  # fmt: skip
