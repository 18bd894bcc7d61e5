"""What processes measured of themselves: the latest, lowest and highest value of each series in every minute.

A point that is sent again changes nothing: of a window, points count whose time is later than the latest one's. What a
series with the kind ``increase`` adds is added up within the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, delete, func, or_, select
from sqlalchemy.engine import Dialect

from tachograph.clock import NS
from tachograph_exporter.store import locking
from tachograph_exporter.store.inserting import upsert
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.schema import process_metrics, processes, span_resources, spans

WINDOW_SECONDS: Final = 60
KEPT_SECONDS: Final = 7 * 86_400
MAX_SERIES: Final = 100
"""Series of one process; points of further ones are dropped."""
MAX_PROCESSES: Final = 10_000
"""Processes of a workspace; further ones are dropped until old ones are forgotten."""
INCREASE: Final = "increase"
"""The kind of series whose points say what was added."""
_MAX_RESOURCES: Final = 200
_MAX_POINTS: Final = 20_000
_CHUNK: Final = 200

_metrics = process_metrics.c
_processes = processes.c


class ProcessRow(NamedTuple):
    """A row of ``processes``, but for its workspace and when it was seen."""

    process_id: str
    service: str
    instance_id: str
    host: str
    pid: int | None


class Point(NamedTuple):
    """A value of a series of a process."""

    process: ProcessRow
    name: str
    attributes: str
    unit: str
    kind: str
    time_ns: int
    value: float


class ProcessRows:
    """Writes what processes measured."""

    def __init__(self, dialect: Dialect) -> None:
        self._put_process = upsert(dialect, processes)
        self._put_metric = upsert(dialect, process_metrics)

    def put(self, connection: Connection, workspace_id: str, points: Sequence[Point]) -> int:
        """Store points; returns how many were dropped, because there are too many processes or series."""
        by_process: dict[ProcessRow, list[Point]] = {}
        for point in points:
            by_process.setdefault(point.process, []).append(point)
        dropped = 0
        seen_processes: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        room = self._room(connection, workspace_id, by_process)
        for process, of_process in by_process.items():
            if process not in room:
                dropped += len(of_process)
                continue
            windows, lost = self._windows(
                connection, workspace_id, process.process_id, of_process, is_new=not room[process]
            )
            dropped += lost
            if windows:
                seen_ns = max(room[process], *[point.time_ns for point in of_process])
                seen_processes.append({**process._asdict(), "workspace_id": workspace_id, "seen_ns": seen_ns})
                changed += windows
        if changed:
            connection.execute(self._put_process, seen_processes)
            connection.execute(self._put_metric, changed)
        return dropped

    def _room(self, connection: Connection, workspace_id: str, arrived: Iterable[ProcessRow]) -> dict[ProcessRow, int]:
        """Those of the processes that may be stored, with the time when they were last seen (0: never)."""
        by_id = {process.process_id: process for process in arrived}
        ids = list(by_id)
        room: dict[ProcessRow, int] = {}
        for i in range(0, len(ids), _CHUNK):
            parameters = {"workspace": workspace_id, KEYS: ids[i : i + _CHUNK]}
            for process_id, seen in connection.execute(_SEEN.of(connection.dialect), parameters):
                room[by_id[process_id]] = seen
        if len(room) < len(by_id):
            count = connection.execute(
                select(func.count()).select_from(processes).where(_processes.workspace_id == workspace_id)
            ).scalar_one()
            new = [process for process in by_id.values() if process not in room]
            room |= dict.fromkeys(new[: max(0, MAX_PROCESSES - count)], 0)
        return room

    def _windows(
        self, connection: Connection, workspace_id: str, process_id: str, points: Sequence[Point], *, is_new: bool
    ) -> tuple[list[dict[str, Any]], int]:
        """The rows that change, and the number of points that are dropped."""
        is_process = and_(_metrics.workspace_id == workspace_id, _metrics.process_id == process_id)
        firsts = [_window(point) for point in points]
        is_window = _metrics.window_s.between(min(firsts), max(firsts))
        statement = select(process_metrics).where(is_process, is_window)
        stored = connection.execute(statement).mappings() if not is_new else ()
        rows: dict[tuple[str, str, int], dict[str, Any]] = {
            (row["name"], row["attributes"], row["window_s"]): dict(row) for row in stored
        }
        series = {key[:2] for key in rows}
        if not is_new and any((point.name, point.attributes) not in series for point in points):
            names = select(_metrics.name, _metrics.attributes).where(is_process).distinct()
            series |= {(row[0], row[1]) for row in connection.execute(names)}
        changed: dict[tuple[str, str, int], dict[str, Any]] = {}
        dropped = 0
        for point in sorted(points, key=lambda point: point.time_ns):
            if (point.name, point.attributes) not in series:
                if len(series) >= MAX_SERIES:
                    dropped += 1
                    continue
                series.add((point.name, point.attributes))
            key = (point.name, point.attributes, _window(point))
            row = rows.get(key)
            if row is None:
                rows[key] = changed[key] = {
                    "workspace_id": workspace_id, "process_id": process_id, "name": point.name,
                    "attributes": point.attributes, "window_s": key[2], "unit": point.unit, "kind": point.kind,
                    "latest": point.value, "low": point.value, "high": point.value, "latest_ns": point.time_ns,
                }  # fmt: skip
            elif point.time_ns > row["latest_ns"]:
                is_added = point.kind == INCREASE
                row["latest"] = row["latest"] + point.value if is_added else point.value
                row["low"], row["high"] = min(row["low"], point.value), max(row["high"], point.value)
                row["latest_ns"] = point.time_ns
                changed[key] = row
        return list(changed.values()), dropped


_SEEN: Final = keyed(
    select(_processes.process_id, _processes.seen_ns).where(_processes.workspace_id == bindparam("workspace")),
    processes.c.process_id,
)


def _window(point: Point) -> int:
    return point.time_ns // NS // WINDOW_SECONDS * WINDOW_SECONDS


def resources_of(connection: Connection, workspace_id: str, trace_id: str) -> list[bytes]:
    """The resources of a trace's spans, encoded; at most `_MAX_RESOURCES`."""
    of_trace = (
        select(spans.c.resource_id)
        .where(spans.c.workspace_id == workspace_id, spans.c.trace_id == trace_id)
        .distinct()
        .limit(_MAX_RESOURCES)
    )
    statement = select(span_resources.c.payload).where(span_resources.c.id.in_(of_trace))
    return list(connection.execute(statement).scalars())


def of_processes(
    connection: Connection, workspace_id: str, process_ids: Sequence[str], host: str = "", pid: int | None = None
) -> Sequence[Row[Any]]:
    """The stored ones of these processes, and those with this host and pid."""
    is_one: ColumnElement[bool] = _processes.process_id.in_(process_ids)
    if host and pid is not None:
        is_one = or_(is_one, and_(_processes.host == host, _processes.pid == pid))
    statement = select(processes).where(_processes.workspace_id == workspace_id, is_one).order_by(_processes.process_id)
    return connection.execute(statement).all()


def windows_of(
    connection: Connection, workspace_id: str, process_ids: Sequence[str], from_ns: int, to_ns: int
) -> Sequence[Row[Any]]:
    """What these processes measured in a range of time, by process, series and time; at most `_MAX_POINTS` rows."""
    statement = (
        select(process_metrics)
        .where(
            _metrics.workspace_id == workspace_id,
            _metrics.process_id.in_(process_ids),
            _metrics.window_s.between(from_ns // NS - WINDOW_SECONDS + 1, to_ns // NS),
        )
        .order_by(_metrics.process_id, _metrics.name, _metrics.attributes, _metrics.window_s)
        .limit(_MAX_POINTS)
    )
    return connection.execute(statement).all()


def prune(connection: Connection, before_ns: int) -> None:
    """Delete what was measured before a moment, and processes that have not been seen since."""
    locking.lock(connection)
    connection.execute(delete(process_metrics).where(_metrics.window_s < before_ns // NS))
    connection.execute(delete(processes).where(_processes.seen_ns < before_ns))
