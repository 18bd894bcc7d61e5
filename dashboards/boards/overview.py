"""All workflows at a glance."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import (
    ADDRESS,
    TARGET,
    TO_PAGE,
    TO_WORKFLOW,
    WORKFLOW,
    WORKFLOW_MATCHERS,
    WORKFLOWS,
    WORKSPACE,
    failures,
    percentiles,
)
from dashboards.promql import (
    BAD,
    RANGE,
    RATE,
    counted,
    heat,
    increase,
    quantile,
    rate,
    selector,
    success_ratio,
)
from tachograph.metrics.specs import (
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    EXECUTIONS_STARTED,
    OLDEST_RUNNING,
    STEP_COST,
)


def overview() -> dashboard.Dashboard:
    """Build the dashboard."""
    board = panels.base(
        "tachograph-overview",
        "Workflows overview",
        "Which workflows run, fail, are slow or expensive.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
        TARGET,
    ).annotation(failures())
    layout = panels.Layout(board)
    layout.section("Now")
    layout.row(
        4,
        (
            4,
            panels.number("Running", "Executions running now.", f"sum({EXECUTIONS_RUNNING.name}{WORKFLOWS})", "short"),
        ),
        (
            4,
            panels.number(
                "Oldest running",
                "How long the oldest execution has been running.",
                f"time() - min({OLDEST_RUNNING.name}{WORKFLOWS})",
                "s",
                ((None, "green"), (3600, "orange"), (86_400, "red")),
                empty="none",
            ),
        ),
        (
            4,
            panels.number(
                "Failed",
                "Executions that failed, timed out or were lost in the selected time range.",
                counted(EXECUTION_DURATION, selector(*WORKFLOW_MATCHERS, BAD)) + " or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            4,
            panels.number(
                "Success rate",
                "Completed executions as a fraction of those that completed or failed, in the selected time range.",
                success_ratio(WORKFLOWS, RANGE),
                "percentunit",
                panels.GOOD_WHEN_HIGH,
                decimals=2,
                empty="–",
            ),
        ),
        (
            4,
            panels.number(
                "Executions",
                "Executions started in the selected time range.",
                increase(EXECUTIONS_STARTED, WORKFLOWS),
                "short",
                decimals=0,
            ),
        ),
        (
            4,
            panels.number(
                "Cost",
                "Cost reported by steps in the selected time range.",
                increase(STEP_COST, WORKFLOWS) + " or vector(0)",
                "currencyUSD",
                decimals=2,
            ),
        ),
    )
    layout.section("Trends")
    layout.row(
        8,
        (
            12,
            panels.lines(
                "Executions by outcome",
                "Executions that ended, by status.",
                [(counted(EXECUTION_DURATION, WORKFLOWS, RATE, "status"), "{{status}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            panels.lines(
                "Success rate",
                "By workflow, over a sliding hour.",
                [(success_ratio(WORKFLOWS, "1h", "workflow"), "{{workflow}}")],
                "percentunit",
                thresholds=panels.GOOD_WHEN_HIGH,
                link=TO_WORKFLOW,
                high=1,
            ),
        ),
    )
    layout.row(
        8,
        (
            12,
            panels.lines(
                "Run time",
                "Median, 95th and 99th percentile of the executions that ended. Dots link to traces.",
                percentiles(EXECUTION_DURATION, WORKFLOWS),
                "s",
                exemplars=True,
            ),
        ),
        (
            12,
            panels.heatmap_of(
                "Run time distribution",
                "Executions by how long they took. Dots link to traces.",
                heat(EXECUTION_DURATION, WORKFLOWS),
            ),
        ),
    )
    layout.section("Where to look first")
    layout.row(
        9,
        (
            8,
            panels.ranking(
                "Slowest workflows",
                "95th percentile of the run time in the selected time range.",
                f"topk(10, {quantile(0.95, EXECUTION_DURATION, WORKFLOWS, RANGE, 'workflow')})",
                "{{workflow}}",
                "s",
                link=TO_WORKFLOW,
            ),
        ),
        (
            8,
            panels.ranking(
                "Least reliable workflows",
                "Fraction of executions that failed in the selected time range.",
                f"topk(10, 1 - ({success_ratio(WORKFLOWS, RANGE, 'workflow')}))",
                "{{workflow}}",
                "percentunit",
                link=TO_WORKFLOW,
                thresholds=((None, "green"), (0.01, "orange"), (0.05, "red")),
            ),
        ),
        (
            8,
            panels.ranking(
                "Longest running",
                "How long the oldest running execution of each workflow has been running.",
                f"topk(10, time() - min by (workflow) ({OLDEST_RUNNING.name}{WORKFLOWS}))",
                "{{workflow}}",
                "s",
                link=TO_PAGE,
            ),
        ),
    )
    layout.section("Error budget and cost")
    layout.row(
        8,
        (
            12,
            panels.budget_lines(
                "Error budget left",
                "Fraction of the allowed failures that is left, in the selected time range.",
                f"1 - (1 - ({success_ratio(WORKFLOWS, RANGE, 'workflow')})) / (1 - $target)",
                TO_WORKFLOW,
            ),
        ),
        (
            12,
            panels.lines(
                "Cost",
                "US dollars per hour, by workflow.",
                [(f"3600 * {rate(STEP_COST, WORKFLOWS, by='workflow')}", "{{workflow}}")],
                "currencyUSD",
                stacked=True,
                link=TO_WORKFLOW,
            ),
        ),
    )
    return board
