"""Tachograph's own health."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import ADDRESS, INSTANCE, PAGE_URL
from dashboards.layout import Layout, Span, base
from dashboards.panels import PER_HOUR, PER_SECOND, Column, Link
from tachograph.metrics.self_metrics import (
    BUILD_INFO,
    DELIVERED,
    DROPPED,
    EVENTS,
    LABEL_SETS,
    LOG_LINES,
    NOTICES,
    OTLP_DROPPED,
    OTLP_REQUESTS,
    QUEUE_LENGTH,
    REFUSED,
    SCRAPE_DURATION,
    SCRAPE_SIZE,
    SERIES_LIMITED,
    STORE_WRITE,
    STREAM_CLIENTS,
    STREAM_MESSAGES,
    STREAM_REFUSED,
    WORKFLOW_METRICS_SHOWN,
)
from tachograph_exporter.alerting.alerts import RUNBOOKS
from tachograph_exporter.alerting.promql import (
    RATE,
    increase,
    quantile,
    rate,
    selector,
)

SELECTED = selector('instance=~"$instance"')
NOT_SENT = selector('instance=~"$instance"', 'outcome!="sent"')
DOCS = RUNBOOKS.removesuffix("/runbooks")


def self_monitoring() -> dashboard.Dashboard:
    """Build the dashboard."""
    board = base(
        "tachograph-self-monitoring",
        "Tachograph self-monitoring",
        "Whether the data behind the other dashboards is complete.",
        INSTANCE,
        ADDRESS,
    )
    layout = Layout(board)
    layout.section(Span.RANGE, "Losses")
    _losses(layout)
    layout.section(Span.NOW)
    _now(layout)
    layout.section(Span.OVER_TIME)
    _events(layout)
    _store(layout)
    _streams(layout)
    return board


def _runbook(alert: str) -> Link:
    return f"What to do ({alert})", f"{RUNBOOKS}/{alert}.md"


def _losses(layout: Layout) -> None:
    layout.row(
        4,
        (
            8,
            panels.number(
                "Events lost",
                "Events that did not reach a listener.",
                increase(DROPPED, SELECTED),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
                link=_runbook("TachographEventsLost"),
            ),
        ),
        (
            8,
            panels.number(
                "Series beyond the limit",
                "Lookups of label sets beyond the limit, counted as `other`.",
                increase(SERIES_LIMITED, SELECTED),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
                link=_runbook("TachographSeriesLimitReached"),
            ),
        ),
        (
            8,
            panels.number(
                "Stream clients refused",
                "Clients rejected, or disconnected for being too slow.",
                increase(STREAM_REFUSED, SELECTED),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
                link=("Streams", f"{DOCS}/streams.md"),
            ),
        ),
    )


def _now(layout: Layout) -> None:
    layout.row(
        5,
        (
            8,
            panels.number(
                "Label sets",
                "Label sets of all workflow metrics.",
                f"sum({LABEL_SETS.name}{SELECTED})",
                "short",
                link=("Metrics of the service", f"{PAGE_URL}/metrics"),
            ),
        ),
        (
            16,
            panels.table(
                "Instances",
                "The version each instance runs, and whether it shows the workflow metrics: of several services on one "
                "database, one does.",
                [
                    Column(
                        "Workflow metrics",
                        f"max by (instance) ({WORKFLOW_METRICS_SHOWN.name}{SELECTED})",
                        texts={"1": ("shown here", "green"), "0": ("by another one", "text")},
                    ),
                    Column("Processes", f"count by (instance, version) ({BUILD_INFO.name}{SELECTED})"),
                ],
                order=[("Workflow metrics", True), ("instance", False)],
                first=("instance", "version"),
            ),
        ),
    )


def _events(layout: Layout) -> None:
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Events",
                "Events per second: recorded, and delivered to each listener.",
                [(rate(EVENTS, SELECTED), "recorded"), (rate(DELIVERED, SELECTED, by="listener"), "{{listener}}")],
                PER_SECOND,
            ),
        ),
        (
            8,
            panels.lines(
                "Waiting",
                "Events queued for each listener.",
                [(f"sum by (listener) ({QUEUE_LENGTH.name}{SELECTED})", "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Lost",
                "Events per hour that did not reach a listener, by reason, records that the store set aside, and "
                "messages about notices that were not sent at once.",
                [
                    (f"3600 * {rate(DROPPED, SELECTED, by='listener, reason')}", "{{listener}} {{reason}}"),
                    (f"3600 * {rate(REFUSED, SELECTED, by='kind')}", "set aside: {{kind}}"),
                    (f"3600 * {rate(NOTICES, NOT_SENT, by='outcome')}", "notices: {{outcome}}"),
                ],
                PER_HOUR,
            ),
        ),
    )


def _store(layout: Layout) -> None:
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Commits",
                "How long it takes to commit a batch of events.",
                [
                    (quantile(0.5, STORE_WRITE, SELECTED), "median"),
                    (quantile(0.99, STORE_WRITE, SELECTED), "99th percentile"),
                ],
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Scrape time",
                "99th percentile of the time to render a scrape.",
                [(quantile(0.99, SCRAPE_DURATION, SELECTED, by="format"), "{{format}}")],
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Scrape size",
                "Bytes of the last scrape, by format.",
                [(f"max by (format) ({SCRAPE_SIZE.name}{SELECTED})", "{{format}}")],
                "bytes",
            ),
        ),
    )


def _streams(layout: Layout) -> None:
    stored = selector('instance=~"$instance"', 'outcome="stored"')
    refused = selector('instance=~"$instance"', 'outcome!="stored"')
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Stream clients",
                "Clients that follow live events.",
                [(f"sum by (kind) ({STREAM_CLIENTS.name}{SELECTED})", "{{kind}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Stream messages",
                "Messages sent per second.",
                [(rate(STREAM_MESSAGES, SELECTED), "messages")],
                PER_SECOND,
            ),
        ),
        (
            8,
            panels.lines(
                "Clients refused",
                "Clients rejected or disconnected per hour, by reason.",
                [(f"3600 * {rate(STREAM_REFUSED, SELECTED, by='reason')}", "{{reason}}")],
                PER_HOUR,
            ),
        ),
    )
    layout.row(
        8,
        (
            6,
            panels.lines(
                "OTLP requests",
                "Requests per hour, by protocol: stored, and with another outcome; what was not kept; lines of steps.",
                [
                    (f"3600 * {rate(OTLP_REQUESTS, stored, by='protocol, signal')}", "{{protocol}} {{signal}}"),
                    (f"3600 * {rate(OTLP_REQUESTS, refused, by='protocol, outcome')}", "{{protocol}}: {{outcome}}"),
                    (f"3600 * {rate(OTLP_DROPPED, SELECTED, by='signal, reason')}", "not kept: {{signal}} {{reason}}"),
                    (f"3600 * {rate(LOG_LINES, SELECTED, by='outcome')}", "lines of steps here: {{outcome}}"),
                ],
                PER_HOUR,
            ),
        ),
        (
            6,
            panels.lines(
                "CPU",
                "CPU seconds per second.",
                [(f"sum by (instance) (rate(process_cpu_seconds_total{SELECTED}[{RATE}]))", "{{instance}}")],
                "percentunit",
            ),
        ),
        (
            6,
            panels.lines(
                "Memory",
                "Resident memory.",
                [(f"sum by (instance) (process_resident_memory_bytes{SELECTED})", "{{instance}}")],
                "bytes",
            ),
        ),
        (
            6,
            panels.lines(
                "Shows the workflow metrics",
                "1 for the service that shows the workflow metrics.",
                [(f"max by (instance) ({WORKFLOW_METRICS_SHOWN.name}{SELECTED})", "{{instance}}")],
                "short",
            ),
        ),
    )
