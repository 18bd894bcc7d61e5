"""All workflows at a glance."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import (
    ADDRESS,
    FAILED_STATUSES,
    MATCHERS,
    RESULTS,
    ROW_TO_WORKFLOW,
    TO_PAGE,
    TO_WORKFLOW,
    WORKFLOWS,
    WORKSPACE,
    budget_ranking,
    ended,
    failures,
    firing_alerts,
    last_end,
    last_result,
    percentiles,
    runs,
    success_rate,
)
from dashboards.layout import Layout, Span, base
from dashboards.panels import PER_HOUR, USD_PER_HOUR, Column
from tachograph.metrics.specs import (
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    EXECUTIONS_STARTED,
    EXPECTED_START,
    LATE,
    OLDEST_RUNNING,
    OVERDUE,
    QUEUE_LENGTH,
    QUEUE_OLDEST,
    STEP_COST,
    STEP_OVERDUE,
    MetricSpec,
)
from tachograph_exporter.alerting.promql import (
    BAD,
    RANGE,
    counted,
    heat,
    increase,
    quantile,
    rate,
    selector,
)
from tachograph_exporter.alerting.recording_rules import BY_WORKFLOW, ERROR_RATIO, TARGET, last_success

SELECTED = selector(*MATCHERS)


def overview() -> dashboard.Dashboard:
    """Build the dashboard."""
    board = base(
        "tachograph-overview",
        "Workflows overview",
        "What failed and still fails, what alerts, and which workflows are slow, unreliable or expensive.",
        WORKSPACE,
        WORKFLOWS,
        ADDRESS,
    ).annotation(failures(*MATCHERS))
    layout = Layout(board)
    layout.section(Span.NOW)
    _now(layout)
    layout.section(Span.RANGE)
    _range(layout)
    layout.section(Span.MONTH, "Error budgets")
    layout.row(8, (24, budget_ranking(*MATCHERS)))
    layout.section(Span.DAY)
    _day(layout)
    layout.section(Span.OVER_TIME)
    _over_time(layout)
    return board


def _is_one(spec: MetricSpec) -> str:
    return f"max by ({BY_WORKFLOW}) ({spec.name}{SELECTED}) == 1"


def _now(layout: Layout) -> None:
    layout.row(
        9,
        (12, firing_alerts(*MATCHERS)),
        (
            12,
            panels.table(
                "Last result by workflow",
                "How the last run of each workflow ended; those that failed first, then the newest. Due in: until the "
                "next start of those with a schedule; below 0, it has not started.",
                [
                    Column("Last result", last_result(*MATCHERS), texts=RESULTS),
                    Column("Ended ago", f"time() - {last_end(*MATCHERS)}", "s"),
                    Column("Last success", f"time() - {last_success('5m', ', '.join(MATCHERS))}", "s", empty="never"),
                    Column("Due in", f"max by ({BY_WORKFLOW}) ({EXPECTED_START.name}{SELECTED}) - time()", "s"),
                ],
                order=[("Last result", True), ("Ended ago", False)],
                first=("workflow",),
                link=ROW_TO_WORKFLOW,
            ),
        ),
    )
    layout.row(
        4,
        (
            6,
            panels.number(
                "Last run failed",
                "Workflows whose last run failed.",
                f"count({last_result(*MATCHERS)} == 1) or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                link=runs(FAILED_STATUSES),
            ),
        ),
        (
            6,
            panels.number(
                "Late or overdue",
                "Workflows that have not started when they were due, or run past their deadline; or a step of them "
                "runs for too long.",
                f"count({_is_one(LATE)} or {_is_one(OVERDUE)} or {_is_one(STEP_OVERDUE)}) or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                link=runs("running", now=True),
            ),
        ),
        (
            6,
            panels.number(
                "Running",
                "Runs in progress.",
                f"sum({EXECUTIONS_RUNNING.name}{SELECTED})",
                "short",
                link=runs("running", now=True),
            ),
        ),
        (
            6,
            panels.number(
                "Longest running",
                "How long the oldest run in progress has been running.",
                f"time() - min({OLDEST_RUNNING.name}{SELECTED})",
                "s",
                ((None, "green"), (3600, "orange"), (86_400, "red")),
                empty="none",
                link=runs("running", now=True),
            ),
        ),
    )


def _range(layout: Layout) -> None:
    layout.row(
        4,
        (
            6,
            panels.number(
                "Failed",
                "Runs that failed, timed out or were lost.",
                f"{ended(*MATCHERS, BAD)} or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
                link=runs(FAILED_STATUSES),
            ),
        ),
        (
            6,
            panels.number(
                "Success rate",
                "Completed runs as a fraction of those that completed or failed.",
                success_rate(*MATCHERS),
                "percentunit",
                panels.GOOD_WHEN_HIGH,
                decimals=2,
                empty="–",
                link=runs(FAILED_STATUSES),
            ),
        ),
        (
            6,
            panels.number(
                "Runs",
                "Runs that started.",
                increase(EXECUTIONS_STARTED, SELECTED),
                "short",
                decimals=0,
                link=runs(),
            ),
        ),
        (
            6,
            panels.number(
                "Cost",
                "Cost reported by steps.",
                f"{increase(STEP_COST, SELECTED)} or vector(0)",
                "currencyUSD",
                decimals=2,
                link=runs(),
            ),
        ),
    )
    layout.row(
        9,
        (
            12,
            panels.ranking(
                "Least reliable workflows",
                "Fraction of runs that failed.",
                [(panels.worst(f"1 - {success_rate(*MATCHERS, by='workflow')}"), "{{workflow}}")],
                "percentunit",
                link=TO_WORKFLOW,
                thresholds=((None, "green"), (0.01, "orange"), (0.05, "red")),
                high=1,
            ),
        ),
        (
            12,
            panels.ranking(
                "Slowest workflows",
                "95th percentile of the run time.",
                [(panels.worst(quantile(0.95, EXECUTION_DURATION, SELECTED, RANGE, "workflow")), "{{workflow}}")],
                "s",
                link=TO_WORKFLOW,
            ),
        ),
    )


def _day(layout: Layout) -> None:
    day = selector(*MATCHERS, 'window="1d"')
    layout.row(
        8,
        (
            24,
            panels.lines(
                "Success rate",
                "By workflow, with the lowest of their targets.",
                [
                    (f"1 - max by (workflow) ({ERROR_RATIO}{day})", "{{workflow}}"),
                    (f"min({TARGET}{SELECTED})", "target"),
                ],
                "percentunit",
                limit="target",
                link=TO_WORKFLOW,
                high=1,
                is_low_worst=True,
            ),
        ),
    )


def _over_time(layout: Layout) -> None:
    layout.row(
        8,
        (
            12,
            panels.lines(
                "Runs by outcome",
                "Runs that ended, per hour.",
                [(counted(EXECUTION_DURATION, SELECTED, "1h", "status"), "{{status}}")],
                PER_HOUR,
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            panels.lines(
                "Cost",
                "US dollars per hour, by workflow.",
                [(f"3600 * {rate(STEP_COST, SELECTED, by='workflow')}", "{{workflow}}")],
                USD_PER_HOUR,
                stacked=True,
                link=TO_WORKFLOW,
            ),
        ),
    )
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Run time",
                "Median, 95th and 99th percentile of the runs that ended. Dots link to traces.",
                percentiles(EXECUTION_DURATION, SELECTED),
                "s",
                exemplars=True,
            ),
        ),
        (
            8,
            panels.heatmap_of(
                "Run time distribution",
                "Runs by how long they took. Dots link to traces.",
                heat(EXECUTION_DURATION, SELECTED),
            ),
        ),
        (
            8,
            panels.lines(
                "Longest running",
                "How long the oldest run in progress had been running, by workflow.",
                [(f"time() - min by (workflow) ({OLDEST_RUNNING.name}{SELECTED})", "{{workflow}}")],
                "s",
                link=TO_PAGE,
            ),
        ),
    )
    layout.row(
        8,
        (
            12,
            panels.lines(
                "Messages waiting",
                "Messages in the queues of engines that nobody has taken (tachograph serve --queue).",
                [(f"max by (engine, queue) ({QUEUE_LENGTH.name})", "{{queue}} ({{engine}})")],
                "short",
            ),
        ),
        (
            12,
            panels.lines(
                "Oldest message",
                "How long the oldest message of a queue has waited, where its broker says that.",
                [(f"time() - min by (engine, queue) ({QUEUE_OLDEST.name})", "{{queue}} ({{engine}})")],
                "s",
            ),
        ),
    )
