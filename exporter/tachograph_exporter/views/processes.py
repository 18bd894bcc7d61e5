"""What the processes of an execution measured of themselves while it ran."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Row

from tachograph.clock import NS
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.logs import ProcessEntry, ProcessPoint, ProcessSeries


def build_processes(processes: Sequence[Row[Any]], windows: Sequence[Row[Any]]) -> list[ProcessEntry]:
    """Processes with their series; ``windows`` are in order of process, series and time."""
    series: dict[str, list[ProcessSeries]] = {}
    for (process_id, name, attributes), rows in groupby(
        windows, lambda row: (row.process_id, row.name, row.attributes)
    ):
        series.setdefault(process_id, []).append(_series(name, attributes, list(rows)))
    return [
        ProcessEntry(
            row.process_id, row.service, row.instance_id, row.host, row.pid, series.get(row.process_id, [])
        )
        for row in processes
    ]  # fmt: skip


def _series(name: str, attributes: str, rows: Sequence[Row[Any]]) -> ProcessSeries:
    last = rows[-1]
    return ProcessSeries(
        name,
        msgspec.Raw(attributes.encode()) if attributes else {},
        last.unit,
        last.kind,
        min(row.low for row in rows),
        max(row.high for row in rows),
        last.latest,
        [ProcessPoint(rfc3339(row.window_s * NS), row.latest, row.low, row.high) for row in rows],
    )
