"""Tachograph's own health as metrics: what it recorded, what it lost, how far behind it is.

Counted by the recorder in plain numbers and read when somebody scrapes, so a recorded event pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tachograph.instrumentation.metrics import CounterSpec, GaugeSpec, HistogramSpec, MetricSpec
from tachograph.instrumentation.recorder import Recorder
from tachograph.instrumentation.series import SeriesRegistry

EVENTS: Final = CounterSpec("tachograph_events_total", "Events recorded.", ())
DELIVERED: Final = CounterSpec("tachograph_events_delivered_total", "Events a listener has taken.", ("listener",))
DROPPED: Final = CounterSpec(
    "tachograph_events_dropped_total", "Events a listener never got, by reason.", ("listener", "reason")
)
QUEUE_LENGTH: Final = GaugeSpec("tachograph_queue_length", "Events that wait for a listener.", ("listener",))
BUILD_INFO: Final = GaugeSpec("tachograph_build_info", "Always 1; the version that runs.", ("version",))
STORE_WRITE: Final = HistogramSpec("tachograph_store_write_seconds", "Time a commit of events to the store took.", ())

SERIES_LIMITED: Final = CounterSpec(
    "tachograph_series_limited_total",
    "Look-ups of label sets beyond the limit, which were counted as `other` instead.",
    ("metric",),
)
LABEL_SETS: Final = GaugeSpec("tachograph_label_sets", "Label sets of all metrics about workflows.", ())
SCRAPE_DURATION: Final = HistogramSpec(
    "tachograph_scrape_duration_seconds", "Time a scrape took to render.", ("format",)
)
SCRAPE_SIZE: Final = GaugeSpec("tachograph_scrape_size_bytes", "Size of the last scrape.", ("format",))

HEALTH_METRICS: Final[tuple[MetricSpec, ...]] = (
    EVENTS, DELIVERED, DROPPED, QUEUE_LENGTH, STORE_WRITE, SERIES_LIMITED, LABEL_SETS, SCRAPE_DURATION, SCRAPE_SIZE,
    BUILD_INFO,
)  # fmt: skip
"""Every metric about Tachograph itself."""

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def version() -> str:
    """The installed version."""
    try:
        return metadata.version("tachograph")
    except metadata.PackageNotFoundError:
        return "unknown"


class HealthCollector(Collector):
    """A prometheus_client collector over a recorder."""

    def __init__(self, recorder: Recorder, series: SeriesRegistry) -> None:
        self._recorder = recorder
        self._series = series

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        recorder = self._recorder
        yield CounterMetricFamily(EVENTS.name, EVENTS.help, value=recorder.events)
        dropped = CounterMetricFamily(DROPPED.name, DROPPED.help, labels=DROPPED.labels)
        delivered = CounterMetricFamily(DELIVERED.name, DELIVERED.help, labels=DELIVERED.labels)
        waiting = GaugeMetricFamily(QUEUE_LENGTH.name, QUEUE_LENGTH.help, labels=QUEUE_LENGTH.labels)
        for name, lane in recorder.lanes.items():
            # A series that only appears with the first loss would hide that loss from rate().
            for reason in sorted({"queue_full", *lane.dropped}):
                dropped.add_metric((name, reason), lane.dropped[reason])
            waiting.add_metric((name,), len(lane))
            delivered.add_metric((name,), lane.delivered)
        yield delivered
        yield dropped
        yield waiting
        limited = CounterMetricFamily(SERIES_LIMITED.name, SERIES_LIMITED.help, labels=SERIES_LIMITED.labels)
        for family in self._series.families:
            if family.label_names:
                limited.add_metric((family.name,), family.limited)
        yield limited
        yield GaugeMetricFamily(LABEL_SETS.name, LABEL_SETS.help, value=self._series.label_sets)
        info = GaugeMetricFamily(BUILD_INFO.name, BUILD_INFO.help, labels=BUILD_INFO.labels)
        info.add_metric((version(),), 1)
        yield info


class OwnSeries:
    """The metrics of the service's own work: commits to the store and scrapes; registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        series = SeriesRegistry()
        self._write = series.histogram(STORE_WRITE.name, STORE_WRITE.help, buckets=_BUCKETS).labels()
        about = (SCRAPE_DURATION.name, SCRAPE_DURATION.help, SCRAPE_DURATION.labels)
        self._scrape = series.histogram(*about, buckets=_BUCKETS)
        self._size = series.gauge(SCRAPE_SIZE.name, SCRAPE_SIZE.help, SCRAPE_SIZE.labels)
        registry.register(series)

    def wrote(self, seconds: float) -> None:
        """A commit took this long."""
        self._write.observe(seconds)

    def scraped(self, form: str, seconds: float, size_bytes: int) -> None:
        """A scrape was rendered."""
        self._scrape.labels(form).observe(seconds)
        self._size.labels(form).set(size_bytes)
