"""Rate, errors and duration of a service's executions and steps over time, from the rollups.

What Jaeger's Monitor page shows: an execution is a span of kind server, a step one of kind internal. The figures are
those of the trends and of the metrics, read from the same rows, so their resolution is that of the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.spans import semconv
from tachograph_exporter.store.rollups import periods, read
from tachograph_exporter.store.services import active_workflows
from tachograph_exporter.store.totals import Totals, WorkflowTotals, combined
from tachograph_exporter.views.metrics import failures
from tachograph_exporter.views.otlp_spans import SERVICE

MIN_STEP_SECONDS: Final = periods.FIVE_MINUTES
"""Nothing is known of less than five minutes."""
MAX_POINTS: Final = 600
_UNITS: Final = (periods.FIVE_MINUTES, periods.HOUR, periods.DAY)
_FINE_SECONDS: Final = (periods.FIVE_MINUTE_DAYS - 1) * periods.DAY
"""How old a range may be that is read in five minutes: older rows are gone."""

ByStatus = Mapping[str, Totals]


class Range(NamedTuple):
    """A range of time (unix seconds), and the window that each point covers (seconds)."""

    end_s: int
    lookback_s: int
    window_s: int

    def unit(self, now_s: int) -> int:
        """The size of the rows to read, in seconds."""
        start = self.end_s - self.lookback_s
        for unit in _UNITS[:-1]:
            is_kept = unit != periods.FIVE_MINUTES or start >= now_s - _FINE_SECONDS
            if is_kept and self.lookback_s <= MAX_POINTS * unit:
                return unit
        return _UNITS[-1]

    def times(self, unit: int) -> list[int]:
        """The times of the points: the borders between the rows, and the end."""
        start = self.end_s - self.lookback_s
        borders = range(-(-start // unit) * unit, self.end_s, unit)
        return [*borders[-MAX_POINTS:], self.end_s]

    def window_start(self, time_s: int, unit: int) -> int:
        """Where the window begins that ends at a time: at least so long, and of whole rows."""
        return periods.floor(time_s - self.window_s, unit)


class Point(NamedTuple):
    """What ended in the ``seconds`` before a time (unix seconds), by status."""

    time_s: int
    seconds: int
    by_status: ByStatus

    @property
    def ended(self) -> int:
        """How many ended; a step that was skipped is no call."""
        return sum(totals.count for status, totals in self.by_status.items() if status != "skipped")

    @property
    def rate(self) -> float:
        """How many ended a second."""
        return self.ended / self.seconds

    @property
    def error_ratio(self) -> float | None:
        """Share of those that failed, from 0 to 1; None if nothing ended."""
        counts = {status: totals.count for status, totals in self.by_status.items()}
        return failures(counts) / self.ended if self.ended else None

    def quantile_seconds(self, quantile: float) -> float | None:
        """A quantile of their durations; None if nothing ended."""
        ended = combined(totals for status, totals in self.by_status.items() if status != "skipped")
        return ended.histogram().quantile(quantile) if ended.count else None


class Subject(NamedTuple):
    """A service, or one of its operations."""

    service: str
    operation: str | None


def service_rates(
    connection: Connection,
    workspace_id: str,
    services: Collection[str],
    kinds: Collection[str],
    of: Range,
    now_s: int,
    *,
    by_operation: bool,
) -> dict[Subject, list[Point]]:
    """The points of each of the services, or of their operations, that something ended of.

    ``kinds``: ``server`` counts executions, ``internal`` steps; other kinds have none.
    """
    unit = of.unit(now_s)
    times = of.times(unit)
    low, high = of.window_start(times[0], unit), -(-of.end_s // unit) * unit
    rows: dict[Subject, dict[int, list[ByStatus]]] = {}
    for workflow in active_workflows(connection, workspace_id, low):
        service = workflow.service if workflow.service is not None else SERVICE
        if service not in services:
            continue
        name = workflow.name if workflow.service is not None else semconv.run_span_name(workflow.name)
        for start, totals in read.series(connection, (workspace_id, workflow.workflow_id), low, high, unit).items():
            for operation, by_status in _operations(totals, name, kinds):
                subject = Subject(service, operation if by_operation else None)
                rows.setdefault(subject, {}).setdefault(start, []).append(by_status)
    return {
        subject: [_point(by_start, time_s, of.window_start(time_s, unit), unit) for time_s in times]
        for subject, by_start in sorted(rows.items(), key=lambda item: (item[0].service, item[0].operation or ""))
    }


def _operations(totals: WorkflowTotals, name: str, kinds: Collection[str]) -> Iterable[tuple[str, ByStatus]]:
    if "server" in kinds and totals.executions:
        yield name, totals.executions
    if "internal" in kinds:
        for step, of_step in totals.steps.items():
            yield step, of_step.by_status


def _point(by_start: Mapping[int, Sequence[ByStatus]], time_s: int, low: int, unit: int) -> Point:
    total: dict[str, Totals] = {}
    for start in range(low, time_s, unit):
        for by_status in by_start.get(start, ()):
            for status, totals in by_status.items():
                total.setdefault(status, Totals()).add(totals)
    return Point(time_s, time_s - low, total)


def at_least(unit_ns: int | None, default_s: int) -> int:
    """A length of time in whole seconds, at least one; the default for None."""
    return max(1, unit_ns // NS) if unit_ns is not None else default_s
