"""The workflow metrics of a service: what the database keeps, whoever recorded it.

Of all services on a database one shows them, the one that holds the lease; so what Prometheus adds up over services is
right. A scrape shows what was committed before it began.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.metrics.children import Child, CounterChild, GaugeChild, HistogramChild
from tachograph.metrics.self_metrics import WORKFLOW_METRICS_SHOWN
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import EXECUTIONS_RUNNING, OLDEST_RUNNING, STEPS_RUNNING
from tachograph.quiet_log import QuietLog
from tachograph_exporter.metrics.births import Births
from tachograph_exporter.metrics.shown_series import SeriesKey, ShownMetrics, ShownSeries, ShownValue, child_of
from tachograph_exporter.store import lease
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.store.lease import BEAT_SECONDS, Lease
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.running import Running, running
from tachograph_exporter.store.series import rows
from tachograph_exporter.store.series.values import LATEST, STARTED, Delta, Series, StepSeries
from tachograph_exporter.store.state import scrapers_of, set_scrapers

quiet = QuietLog(logging.getLogger(__name__))

LEASE: Final = "workflow_metrics"
REFRESH_SECONDS: Final = 1.0
"""How long a scrape waits for the database; after that it shows what it last knew."""
BLIND_SECONDS: Final = 30.0
"""Not read for so long, they are not shown."""
ABSORB_SECONDS: Final = 30.0
ABSORB_DELTAS: Final = 200
"""Deltas are absorbed when there are so many, or after so long."""


class _Read(NamedTuple):
    """What a refresh read. ``base``: all rows, if all had to be read."""

    news: rows.News
    base: dict[Key, dict[str, StepSeries]] | None
    running: dict[Key, Running]
    names: dict[Key, tuple[str, str]] | None


class WorkflowMetrics(Collector):
    """Shows the series of the database. A prometheus_client collector.

    Args:
        database: where the series are.
        series: holds the metrics, and limits the number of label sets.
        measures: names of step measures that are metrics.
    """

    def __init__(self, database: Database, series: SeriesRegistry, measures: Iterable[str] = ()) -> None:
        self._database = database
        self._series = series
        self.shown = ShownSeries(series, measures)
        self.births: Births[SeriesKey] = Births()
        self._lease = Lease(LEASE)
        # Until then (monotonic) nobody else can have taken the lease without our knowing.
        self._ours_until = 0.0
        # What is shown has been read since the lease was taken.
        self._is_current = False
        self._lock = threading.Lock()
        # Held while what is shown changes.
        self._changing = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="tachograph-series")
        self._pending: Future[None] | None = None
        self._last = self._epoch = -1
        self._by_workflow: dict[Key, dict[str, StepSeries]] = {}
        self._names: dict[Key, tuple[str, str]] = {}
        self._unabsorbed = 0
        self._absorbed_at = self._contact = time.monotonic()
        self._remembered: dict[str, float] = {}
        self._gauges: dict[Key, tuple[str, str]] = {}
        self._running: dict[Key, Running] = {}

    @property
    def is_leader(self) -> bool:
        """Whether this service holds the lease, and nobody else can have taken it since."""
        return self._lease.is_held and lease.clock() < self._ours_until

    @property
    def are_shown(self) -> bool:
        """Whether this service shows the workflow metrics now.

        Not while another one may show them: values that differ between two of one name are counter resets.
        """
        return self.is_leader and self._is_current and time.monotonic() - self._contact < BLIND_SECONDS

    def collect(self) -> Iterator[Metric]:
        """The families, if this service shows them, and whether it does."""
        shown = self.are_shown
        if shown:
            yield from self._series.collect()
        yield GaugeMetricFamily(WORKFLOW_METRICS_SHOWN.name, WORKFLOW_METRICS_SHOWN.help, value=int(shown))

    def describe(self) -> list[Metric]:
        """No names: they come and go with the lease."""
        return []

    # The lease

    async def start(self) -> None:
        """Take the lease if nobody holds it, and read the series."""
        await self._beat()

    async def run(self) -> None:
        """Renew the lease, or wait for it, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await self._beat()

    async def _beat(self) -> None:
        was_held, began = self._lease.is_held, lease.clock()
        try:
            if not was_held:
                self._remembered = await self._database.read(scrapers_of, Lane.VITAL)
            is_held = await self._database.write(self._lease.renew, Lane.VITAL)
            if not is_held:
                self._is_current = False
                return
            self._ours_until = max(self._ours_until, began + lease.SILENCE_SECONDS)
            if not was_held:
                # They scraped the service that showed the series before.
                self.births.expect(self._remembered)
            if not was_held or self._is_due():
                await asyncio.wrap_future(self._refreshing())
                if self._is_due():
                    await asyncio.wrap_future(self._worker.submit(self._absorb, ()))
            await self._remember_scrapers()
        except Exception as error:
            quiet.warning("lease", "the lease of the workflow metrics cannot be renewed, trying again: %s", error)

    async def _remember_scrapers(self) -> None:
        """Store who scrapes, so that they see new series as zero after a restart and a takeover, too."""
        scrapers = self.births.scrapers()
        is_same = scrapers.keys() == self._remembered.keys() and all(
            interval / 2 <= self._remembered[name] <= 2 * interval for name, interval in scrapers.items()
        )
        if not is_same:
            await self._database.write(lambda connection: set_scrapers(connection, scrapers), Lane.VITAL)
            self._remembered = scrapers

    def _is_due(self) -> bool:
        """Whether deltas should be absorbed; not in a scrape, because it may take a while."""
        is_late = self._unabsorbed > 0 and time.monotonic() - self._absorbed_at > ABSORB_SECONDS
        return is_late or self._unabsorbed > ABSORB_DELTAS

    async def close(self) -> None:
        """Give the lease up, so that another service shows the metrics at once."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._database.write(self._lease.release, Lane.VITAL), REFRESH_SECONDS)
        self._worker.shutdown(wait=False, cancel_futures=True)

    # A scrape

    def refresh(self, wait_seconds: float = REFRESH_SECONDS) -> bool:
        """Read what has been committed; blocks, but no longer than that. Call it before rendering.

        Returns whether that was done in time.
        """
        try:
            self._refreshing().result(wait_seconds)
        except Exception:  # Logged where it failed.
            return False
        return True

    def shown_of(self, key: Key) -> ShownMetrics:
        """What is shown of a workflow, without series that share a child with others."""
        with self._changing:
            return self._shown_of(key)

    def remembered(self, key: Key) -> tuple[ShownMetrics, dict[str, StepSeries], Running]:
        """What is shown of a workflow, beside the series and the runs that were last read."""
        with self._changing:
            return self._shown_of(key), self._by_workflow.get(key, {}), self._running.get(key, _NOTHING)

    def _shown_of(self, key: Key) -> ShownMetrics:
        series: dict[tuple[str, str], ShownValue] = {}
        for series_key in [series_key for series_key in self.shown if series_key.workflow == key]:
            if not self.shown.is_shared(series_key) and not self.shown.is_back(series_key):
                child = self.shown.child(series_key)
                if isinstance(child, HistogramChild):
                    with child.lock:
                        series[series_key.step, series_key.code] = ShownValue(sum(child.counts), child.total)
                elif isinstance(child, CounterChild | GaugeChild):
                    series[series_key.step, series_key.code] = ShownValue(None, child.value)
        gauges: dict[str, float | None] = {}
        if (name := self._gauges.get(key)) is not None:
            for spec in _RUNNING:
                gauge = self.shown.families[spec.name].find(*name)
                if isinstance(gauge, GaugeChild):
                    gauges[spec.name] = gauge.value
                elif spec is OLDEST_RUNNING and EXECUTIONS_RUNNING.name in gauges:
                    gauges[spec.name] = None
        return ShownMetrics(series, gauges)

    def _refreshing(self) -> Future[None]:
        """The refresh that begins next."""
        with self._lock:
            pending = self._pending
            # One that runs already may have read before the last commit.
            if pending is None or pending.done() or pending.running():
                pending = self._pending = self._worker.submit(self._refresh)
            return pending

    def _refresh(self) -> None:
        began = lease.clock()
        try:
            read = self._database.look(self._read)
            self._contact = time.monotonic()
            if read is None:
                self._is_current = False
                return
            with self._changing:
                self._take(read)
            self._ours_until = max(self._ours_until, began + lease.LOOK_SECONDS)
            self._is_current = True
            if born := self.births.born():
                self._absorb(born)
        except Exception as error:
            quiet.warning(type(error), "the workflow metrics cannot be read, showing the last ones: %s", error)
            raise

    def _read(self, connection: Connection) -> _Read | None:
        if not self._lease.look(connection):
            return None
        news = rows.news(connection, self._last)
        base: dict[Key, dict[str, StepSeries]] | None = None
        if news.epoch != self._epoch or news.absorbed > self._last:
            base = defaultdict(dict)
            for key, step, series in rows.stored_series(connection):
                base[key][step] = series
            news = rows.news(connection, news.absorbed)
        runs = running(connection)
        known = {key for _, key, _ in news.deltas} | runs.keys() | (base.keys() if base is not None else set())
        is_known = base is None and known <= self._names.keys() and not any(map(_is_announcement, news.deltas))
        return _Read(news, base, runs, None if is_known else rows.names(connection))

    def _take(self, read: _Read) -> None:
        changed: dict[SeriesKey, None] = {}
        if read.names is not None:
            renamed = {key for key, name in read.names.items() if self._names.get(key, name) != name}
            self._names = read.names
            if renamed:
                changed = dict.fromkeys(key for key in self.shown if key.workflow in renamed)
                self.shown.remove(list(changed))
        if read.base is not None:
            self._by_workflow = dict(read.base)
            self._epoch, self._unabsorbed = read.news.epoch, 0
            self.births.clear()
            changed |= dict.fromkeys(
                SeriesKey(key, step, code)
                for key, by_step in read.base.items()
                for step, step_series in by_step.items()
                for code in step_series.by_code
            )
        self._last = max(self._last, read.news.absorbed) if read.base is None else read.news.absorbed
        for number, key, delta in read.news.deltas:
            by_step = self._by_workflow.setdefault(key, {})
            changed |= dict.fromkeys(SeriesKey(key, step, code) for step, code in rows.add_delta(by_step, delta))
            self._last = number
            self._unabsorbed += 1
        if read.base is not None:
            kept = {key for key in changed if key.workflow in self._names}
            # Those of a workflow that was deleted and is back begin again.
            self.shown.remove([k for k in self.shown if k not in kept or self.shown.is_older(k, self._series_of(k))])
        # Oldest first, so that the same ones have room after every restart.
        for series_key in sorted(changed, key=lambda key: (self._series_of(key).created, key)):
            self._show(series_key)
        self._show_running(read.running)

    def _series_of(self, key: SeriesKey) -> Series:
        return self._by_workflow[key.workflow][key.step].by_code[key.code]

    def _show(self, key: SeriesKey) -> None:
        name = self._names.get(key.workflow)
        if name is None:
            return  # Deleted.
        series = self._series_of(key)
        self.shown.show(key, series, name)
        is_new = not series.born or self.shown.is_back(key)
        if is_new and key.code not in LATEST and self.shown.child(key) is not None:
            self.births.add(key)

    def _show_running(self, runs: dict[Key, Running]) -> None:
        families = self.shown.families
        self._running = runs
        self._gauges = {key: name for key in self._by_workflow if (name := self._names.get(key)) is not None}
        # By child, because those beyond the limit on label sets share one.
        values: dict[str, dict[Child, float]] = {spec.name: {} for spec in _RUNNING}
        executions, steps, oldest = (values[spec.name] for spec in _RUNNING)
        for key, name in self._gauges.items():
            run = runs.get(key, _NOTHING)
            child = child_of(families[EXECUTIONS_RUNNING.name], name)
            executions[child] = executions.get(child, 0) + run.executions
            child = child_of(families[STEPS_RUNNING.name], name)
            steps[child] = steps.get(child, 0) + run.steps
            if run.executions:
                child = child_of(families[OLDEST_RUNNING.name], name)
                oldest[child] = min(oldest.get(child, math.inf), run.oldest_ns / NS)
            self.shown.show_started(SeriesKey(key, "", STARTED), run.executions + run.unsettled)
        for metric, by_child in values.items():
            for child in families[metric].children():
                if (value := by_child.get(child)) is not None:
                    _set(child, value)
                else:
                    families[metric].remove(*child.labels)

    def _absorb(self, born: Collection[SeriesKey]) -> None:
        births: dict[Key, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for key in born:
            births[key.workflow][key.step].append(key.code)
        # Committed before it is shown: after a restart, what has been shown is known.
        self._database.run(lambda connection: rows.absorb(connection, self._last, births))
        self._unabsorbed, self._absorbed_at = 0, time.monotonic()
        with self._changing:
            for key in born:
                series = self._by_workflow.get(key.workflow, {}).get(key.step, StepSeries()).by_code.get(key.code)
                if series is not None:
                    series.born = True
                    self.shown.seen(key)
                    self._show(key)
                self.births.forget(key)
            self._show_running(self._running)


_NOTHING: Final = Running(0, 0, 0)
_RUNNING: Final = (EXECUTIONS_RUNNING, STEPS_RUNNING, OLDEST_RUNNING)


def _is_announcement(entry: tuple[int, Key, Delta]) -> bool:
    """Whether a delta only says that a workflow exists, perhaps under a new name."""
    return all(amount is None for amounts in entry[2].steps.values() for amount in amounts.values())


def _set(child: object, value: float) -> None:
    if isinstance(child, GaugeChild) and child.value != value:
        child.set(value)
