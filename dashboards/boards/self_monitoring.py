"""Tachograph itself."""

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
    QUEUE_LENGTH,
    SCRAPE_DURATION,
    SCRAPE_SIZE,
    SERIES_LIMITED,
    STORE_WRITE,
    STREAM_CLIENTS,
    STREAM_LOST,
    STREAM_MESSAGES,
)


def self_monitoring() -> dashboard.Dashboard:
    """Tachograph's own health."""
    here = selector('instance=~"$instance"')
    board = panels.base(
        "tachograph-itself", "Tachograph itself", "Is what the other dashboards show all there is?", INSTANCE
    )
    at = panels.Layout(board)
    at.section("Is anything lost?")
    at.row(
        4,
        (
            6,
            panels.number(
                "Events lost",
                "That a listener never got, in the time shown.",
                increase(DROPPED, here),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            panels.number(
                "Series beyond the limit",
                "Look-ups of label sets counted as `other` instead, in the time shown.",
                increase(SERIES_LIMITED, here),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            6,
            panels.number(
                "Stream clients refused",
                "Let go for being too slow, or not let in, in the time shown.",
                increase(STREAM_LOST, here),
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (6, panels.number("Label sets", "Of all metrics about workflows.", f"sum({LABEL_SETS.name}{here})", "short")),
    )
    at.section("Events")
    at.row(
        8,
        (
            8,
            panels.lines(
                "Events",
                "Recorded a second, and taken by each listener.",
                [(rate(EVENTS, here), "recorded"), (rate(DELIVERED, here, by="listener"), "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Waiting",
                "Events that wait for a listener.",
                [(f"sum by (listener) ({QUEUE_LENGTH.name}{here})", "{{listener}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Lost",
                "Events a listener never got, by reason.",
                [(rate(DROPPED, here, by="listener, reason"), "{{listener}} {{reason}}")],
                "short",
            ),
        ),
    )
    at.section("Store and scrapes")
    at.row(
        8,
        (
            8,
            panels.lines(
                "Commits",
                "How long a commit of events takes.",
                [(quantile(0.5, STORE_WRITE, here), "median"), (quantile(0.99, STORE_WRITE, here), "99th percentile")],
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Scrape time",
                "How long a scrape takes to render.",
                [(quantile(0.99, SCRAPE_DURATION, here, by="format"), "{{format}}")],
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Scrape size",
                "Bytes of the last scrape.",
                [(f"max by (format) ({SCRAPE_SIZE.name}{here})", "{{format}}")],
                "bytes",
            ),
        ),
    )
    at.section("Stream and process")
    at.row(
        8,
        (
            8,
            panels.lines(
                "Stream clients",
                "Who follows live events.",
                [(f"sum by (kind) ({STREAM_CLIENTS.name}{here})", "{{kind}}")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Stream messages",
                "Put to clients, a second; clients refused an hour.",
                [
                    (rate(STREAM_MESSAGES, here), "messages"),
                    (f"3600 * {rate(STREAM_LOST, here, by='reason')}", "refused: {{reason}}"),
                ],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Process",
                "Processor seconds a second, and how much is resident, in GiB.",
                [
                    (f"sum(rate(process_cpu_seconds_total{here}[{RATE}]))", "processor"),
                    (f"sum(process_resident_memory_bytes{here}) / 2^30", "memory, GiB"),
                ],
                "short",
            ),
        ),
    )
    at.row(
        5,
        (
            24,
            panels.table(
                "Versions",
                "What runs where.",
                [("running", f"count by (instance, version) ({BUILD_INFO.name}{here})", "short")],
                "instance",
            ),
        ),
    )
    return board
