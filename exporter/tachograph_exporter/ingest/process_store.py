"""Measurements of processes on their way to their rows; what is not kept is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from tachograph_exporter.ingest.process_metrics import Measurement
from tachograph_exporter.store import locking
from tachograph_exporter.store.process_rows import Point, ProcessRow, ProcessRows

LIMIT: Final = "limit"
"""A point of a process or series too many."""


class MetricsTaken(NamedTuple):
    """The number of points that were kept, and of others by reason."""

    stored: int
    dropped: Counter[str]


class ProcessStore:
    """Stores what processes measured."""

    def __init__(self, dialect: Dialect) -> None:
        self._rows = ProcessRows(dialect)

    def take(self, connection: Connection, workspace_id: str, arrived: Sequence[Measurement]) -> MetricsTaken:
        """Store measurements."""
        dropped: Counter[str] = Counter()
        points = []
        for each in arrived:
            if each.process is None:
                dropped[each.reason] += each.count
            else:
                process = ProcessRow(*each.process)
                points.append(
                    Point(process, each.name, each.attributes, each.unit, each.kind, each.time_ns, each.value)
                )
        if points:
            locking.lock(connection)
            dropped[LIMIT] += self._rows.put(connection, workspace_id, points)
        return MetricsTaken(len(points) - dropped[LIMIT], +dropped)
