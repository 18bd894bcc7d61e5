"""Tachograph's own health."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import INSTANCE
from dashboards.promql import (
    RATE,
    increase,
    quantile,
    rate,
    selector,
)
from tachograph.metrics.self_metrics import (
    BUILD_INFO,
    DELIVERED,
    DROPPED,
    EVENTS,
    LABEL_SETS,
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


def self_monitoring() -> dashboard.Dashboard:
    """Build the dashboard."""
    selected = selector('instance=~"$instance"')
    board = panels.base(
        "tachograph-self-monitoring",
        "Tachograph self-monitoring",
        "Whether the data behind the other dashboards is complete.",
        INSTANCE,
    )
    layout = panels.Layout(board)
    layout.section("Losses")
    layout.row(
        4,
        (
            6,
            panels.number(
                "Events lost",
                "Events that did not reach a listener in the selected time range.",
                increase(DROPPED, selected),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            panels.number(
                "Series beyond the limit",
                "Lookups of label sets beyond the limit, counted as `other`, in the selected time range.",
                increase(SERIES_LIMITED, selected),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            panels.number(
                "Stream clients refused",
                "Clients rejected, or disconnected for being too slow, in the selected time range.",
                increase(STREAM_REFUSED, selected),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            panels.number(
                "Label sets", "Label sets of all workflow metrics.", f"sum({LABEL_SETS.name}{selected})", "short"
            ),
        ),
    )
    layout.section("Events")
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Events",
                "Events per second: recorded, and delivered to each listener.",
                [(rate(EVENTS, selected), "recorded"), (rate(DELIVERED, selected, by="listener"), "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Waiting",
                "Events queued for each listener.",
                [(f"sum by (listener) ({QUEUE_LENGTH.name}{selected})", "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Lost",
                "Events per second that did not reach a listener, by reason, records that the store set aside, and "
                "messages about notices that were not sent at once.",
                [
                    (rate(DROPPED, selected, by="listener, reason"), "{{listener}} {{reason}}"),
                    (rate(REFUSED, selected, by="kind"), "set aside: {{kind}}"),
                    (
                        rate(NOTICES, selector('instance=~"$instance"', 'outcome!="sent"'), by="outcome"),
                        "notices: {{outcome}}",
                    ),
                ],
                "short",
            ),
        ),
    )
    layout.section("Store and scrapes")
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Commits",
                "How long it takes to commit a batch of events.",
                [
                    (quantile(0.5, STORE_WRITE, selected), "median"),
                    (quantile(0.99, STORE_WRITE, selected), "99th percentile"),
                ],
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Scrape time",
                "99th percentile of the time to render a scrape.",
                [(quantile(0.99, SCRAPE_DURATION, selected, by="format"), "{{format}}")],
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Scrape size",
                "Bytes of the last scrape, by format.",
                [(f"max by (format) ({SCRAPE_SIZE.name}{selected})", "{{format}}")],
                "bytes",
            ),
        ),
    )
    layout.section("Stream and process")
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Stream clients",
                "Clients that follow live events.",
                [(f"sum by (kind) ({STREAM_CLIENTS.name}{selected})", "{{kind}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Stream messages",
                "Messages sent per second; clients refused per hour.",
                [
                    (rate(STREAM_MESSAGES, selected), "messages"),
                    (f"3600 * {rate(STREAM_REFUSED, selected, by='reason')}", "refused: {{reason}}"),
                ],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Process",
                "CPU seconds per second, and resident memory in GiB.",
                [
                    (f"sum(rate(process_cpu_seconds_total{selected}[{RATE}]))", "CPU"),
                    (f"sum(process_resident_memory_bytes{selected}) / 2^30", "memory, GiB"),
                ],
                "short",
            ),
        ),
    )
    layout.row(
        5,
        (
            8,
            panels.lines(
                "OTLP requests",
                "Requests per second, by protocol: stored, and with another outcome; log records and points not kept.",
                [
                    (
                        rate(
                            OTLP_REQUESTS, selector('instance=~"$instance"', 'outcome="stored"'), by="protocol, signal"
                        ),
                        "{{protocol}} {{signal}}",
                    ),
                    (
                        rate(
                            OTLP_REQUESTS,
                            selector('instance=~"$instance"', 'outcome!="stored"'),
                            by="protocol, outcome",
                        ),
                        "{{protocol}}: {{outcome}}",
                    ),
                    (rate(OTLP_DROPPED, selected, by="signal, reason"), "not kept: {{signal}} {{reason}}"),
                ],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Shows the workflow metrics",
                "1 for the service that shows the workflow metrics; of several services on one database, one does.",
                [(f"max by (instance) ({WORKFLOW_METRICS_SHOWN.name}{selected})", "{{instance}}")],
                "short",
            ),
        ),
        (
            8,
            panels.table(
                "Versions",
                "The version each instance runs.",
                [("running", f"count by (instance, version) ({BUILD_INFO.name}{selected})", "short")],
                "instance",
            ),
        ),
    )
    return board
