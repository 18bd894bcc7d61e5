"""Metrics about Tachograph itself: what it recorded, what it dropped, and how far behind it is.

The recorder counts in plain integers that a scrape reads, so recording an event costs nothing extra.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import CounterSpec, GaugeSpec, HistogramSpec, MetricSpec
from tachograph.recording import line_buffers
from tachograph.recording.listener_queue import REASONS
from tachograph.recording.recorder import Recorder
from tachograph.version import version

EVENTS: Final = CounterSpec("tachograph_events_total", "Events recorded.", ())
DELIVERED: Final = CounterSpec("tachograph_events_delivered_total", "Events delivered to a listener.", ("listener",))
DROPPED: Final = CounterSpec(
    "tachograph_events_dropped_total", "Events that a listener did not receive, by reason.", ("listener", "reason")
)
LOG_LINES: Final = CounterSpec(
    "tachograph_log_lines_total",
    "Log records of running steps that this process kept, and that it dropped because too many came at once.",
    ("outcome",),
)
QUEUE_LENGTH: Final = GaugeSpec("tachograph_queue_length", "Events waiting for a listener.", ("listener",))
BUILD_INFO: Final = GaugeSpec("tachograph_build_info", "Always 1; the running version is a label.", ("version",))
STORE_WRITE: Final = HistogramSpec("tachograph_store_write_seconds", "Duration of a commit of events to the store.", ())

SERIES_LIMITED: Final = CounterSpec(
    "tachograph_series_limited_total",
    "Look-ups of label sets beyond the limit, counted as `other` instead.",
    ("metric",),
)
LABEL_SETS: Final = GaugeSpec("tachograph_label_sets", "Label sets of all metrics about workflows.", ())
SCRAPE_DURATION: Final = HistogramSpec("tachograph_scrape_duration_seconds", "Time to render a scrape.", ("format",))
SCRAPE_SIZE: Final = GaugeSpec("tachograph_scrape_size_bytes", "Size of the last scrape.", ("format",))

WORKFLOW_METRICS_SHOWN: Final = GaugeSpec(
    "tachograph_workflow_metrics_shown",
    "1 on the service that shows the workflow metrics of its database, 0 on the others.",
    (),
)
REFUSED: Final = CounterSpec(
    "tachograph_records_refused_total",
    "Events and traces that the store refused and set aside; see `tachograph refused`.",
    ("kind",),
)

NOTICES: Final = CounterSpec(
    "tachograph_notices_total",
    "Messages about notices, by what became of them: sent, retried, failed (given up), unknown (maybe sent).",
    ("outcome",),
)
_NOTICE_OUTCOMES: Final = ("sent", "retried", "failed", "unknown")

STREAM_CLIENTS: Final = GaugeSpec(
    "tachograph_stream_clients", "Clients connected to the event stream, by protocol.", ("kind",)
)
STREAM_MESSAGES: Final = CounterSpec("tachograph_stream_messages_total", "Messages sent to stream clients.", ())
STREAM_REFUSED: Final = CounterSpec(
    "tachograph_stream_clients_refused_total",
    "Stream clients disconnected for being too slow, or refused at the limit, by reason.",
    ("reason",),
)

OTLP_REQUESTS: Final = CounterSpec(
    "tachograph_otlp_requests_total",
    "Export requests by OTLP, by protocol, signal and outcome.",
    ("protocol", "signal", "outcome"),
)
OTLP_DROPPED: Final = CounterSpec(
    "tachograph_otlp_dropped_total",
    "Log records and points of metrics that were taken by OTLP and not kept, by reason.",
    ("signal", "reason"),
)
_OTLP_REASONS: Final = {
    "logs": ("no_trace", "limit"), "metrics": ("not_process", "no_process", "not_number", "limit")
}  # fmt: skip
_OTLP_LABELS: Final = (
    ("http", "grpc"),
    ("traces", "logs", "metrics"),
    ("stored", "refused", "busy", "unavailable", "failed"),
)

SELF_METRICS: Final[tuple[MetricSpec, ...]] = (
    EVENTS, DELIVERED, DROPPED, LOG_LINES, QUEUE_LENGTH, STORE_WRITE, SERIES_LIMITED, LABEL_SETS, SCRAPE_DURATION,
    SCRAPE_SIZE, WORKFLOW_METRICS_SHOWN, REFUSED, NOTICES, STREAM_CLIENTS, STREAM_MESSAGES, STREAM_REFUSED,
    OTLP_REQUESTS, OTLP_DROPPED, BUILD_INFO,
)  # fmt: skip
"""Every metric about Tachograph itself."""

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class SelfMetricsCollector(Collector):
    """A prometheus_client collector of a recorder's counts."""

    def __init__(self, recorder: Recorder, series: SeriesRegistry) -> None:
        self._recorder = recorder
        self._series = series

    def collect(self) -> Iterator[Metric]:
        """The recorder's metrics."""
        recorder = self._recorder
        yield CounterMetricFamily(EVENTS.name, EVENTS.help, value=recorder.events)
        dropped = CounterMetricFamily(DROPPED.name, DROPPED.help, labels=DROPPED.labels)
        delivered = CounterMetricFamily(DELIVERED.name, DELIVERED.help, labels=DELIVERED.labels)
        waiting = GaugeMetricFamily(QUEUE_LENGTH.name, QUEUE_LENGTH.help, labels=QUEUE_LENGTH.labels)
        for name, queue in recorder.queues.items():
            # Every reason is a series from the start: rate() does not see the first increase of a new one.
            for reason in sorted({*REASONS, *queue.dropped}):
                dropped.add_metric((name, reason), queue.dropped[reason])
            waiting.add_metric((name,), len(queue))
            delivered.add_metric((name,), queue.delivered)
        yield delivered
        yield dropped
        yield waiting
        lines = CounterMetricFamily(LOG_LINES.name, LOG_LINES.help, labels=LOG_LINES.labels)
        lines.add_metric(("recorded",), line_buffers.recorded)
        lines.add_metric(("dropped",), line_buffers.dropped)
        yield lines
        limited = CounterMetricFamily(SERIES_LIMITED.name, SERIES_LIMITED.help, labels=SERIES_LIMITED.labels)
        for family in self._series.families:
            if family.label_names:
                limited.add_metric((family.name,), family.limited)
        yield limited
        yield GaugeMetricFamily(LABEL_SETS.name, LABEL_SETS.help, value=self._series.label_sets)
        info = GaugeMetricFamily(BUILD_INFO.name, BUILD_INFO.help, labels=BUILD_INFO.labels)
        info.add_metric((version(),), 1)
        yield info


class SelfMetrics:
    """The service's metrics about its commits, scrapes and streams, registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        series = SeriesRegistry()
        self._write = series.histogram(STORE_WRITE.name, STORE_WRITE.help, buckets=_BUCKETS).labels()
        self._scrape = series.histogram(
            SCRAPE_DURATION.name, SCRAPE_DURATION.help, SCRAPE_DURATION.labels, buckets=_BUCKETS
        )
        self._size = series.gauge(SCRAPE_SIZE.name, SCRAPE_SIZE.help, SCRAPE_SIZE.labels)
        self._clients = series.gauge(STREAM_CLIENTS.name, STREAM_CLIENTS.help, STREAM_CLIENTS.labels)
        self._messages = series.counter(STREAM_MESSAGES.name, STREAM_MESSAGES.help).labels()
        self._refused = series.counter(STREAM_REFUSED.name, STREAM_REFUSED.help, STREAM_REFUSED.labels)
        self._records_refused = series.counter(REFUSED.name, REFUSED.help, REFUSED.labels)
        self._otlp_requests = series.counter(OTLP_REQUESTS.name, OTLP_REQUESTS.help, OTLP_REQUESTS.labels)
        self._otlp_dropped = series.counter(OTLP_DROPPED.name, OTLP_DROPPED.help, OTLP_DROPPED.labels)
        # Every series exists from the start: rate() does not see the first increase of a new one.
        for signal, reasons in _OTLP_REASONS.items():
            for reason in reasons:
                self._otlp_dropped.labels(signal, reason)
        for labels in itertools.product(*_OTLP_LABELS):
            self._otlp_requests.labels(*labels)
        self._notices = series.counter(NOTICES.name, NOTICES.help, NOTICES.labels)
        for outcome in _NOTICE_OUTCOMES:
            self._notices.labels(outcome)
        for kind in ("event", "trace"):
            self._records_refused.labels(kind)
        for kind in ("websocket", "sse"):
            self._clients.labels(kind).set(0)
        for reason in ("too_slow", "full"):
            self._refused.labels(reason)
        registry.register(series)

    @contextlib.contextmanager
    def stream_client(self, kind: str) -> Iterator[None]:
        """Count a connected stream client for the length of the block."""
        gauge = self._clients.labels(kind)
        gauge.inc()
        try:
            yield
        finally:
            gauge.inc(-1)

    def stream_messages_sent(self, messages: int) -> None:
        """Count messages sent to stream clients."""
        self._messages.inc(messages)

    def stream_client_refused(self, reason: str) -> None:
        """Count a stream client that was disconnected or refused."""
        self._refused.labels(reason).inc()

    def record_refused(self, kind: str) -> None:
        """Count a record that the store refused."""
        self._records_refused.labels(kind).inc()

    def notice_settled(self, outcome: str) -> None:
        """Count a message about a notice."""
        self._notices.labels(outcome).inc()

    def otlp_answered(self, protocol: str, signal: str, outcome: str) -> None:
        """Count an export request that was answered."""
        self._otlp_requests.labels(protocol, signal, outcome).inc()

    def otlp_dropped(self, signal: str, reason: str, count: int) -> None:
        """Count what was taken and is not kept."""
        self._otlp_dropped.labels(signal, reason).inc(count)

    def store_committed(self, seconds: float) -> None:
        """Record the duration of a commit."""
        self._write.observe(seconds)

    def scraped(self, form: str, seconds: float, size_bytes: int) -> None:
        """Record the duration and size of a scrape."""
        self._scrape.labels(form).observe(seconds)
        self._size.labels(form).set(size_bytes)
