"""All workflows at a glance."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import ADDRESS, TARGET, TO_PAGE, TO_WORKFLOW, WORKFLOW, WORKSPACE, failures, percentiles
from dashboards.panels import OURS
from dashboards.promql import (
    BAD,
    RANGE,
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
    """All workflows."""
    board = panels.base(
        "tachograph-overview",
        "Workflows overview",
        "What runs, what failed, what takes long, what it costs.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
        TARGET,
    ).annotation(failures())
    at = panels.Layout(board)
    at.section("Now")
    at.row(
        4,
        (4, panels.number("Running", "Executions that run now.", f"sum({EXECUTIONS_RUNNING.name}{OURS})", "short")),
        (
            4,
            panels.number(
                "Oldest running",
                "Since when the oldest of them runs.",
                f"time() - min({OLDEST_RUNNING.name}{OURS})",
                "s",
                ((None, "green"), (3600, "orange"), (86_400, "red")),
                empty="none",
            ),
        ),
        (
            4,
            panels.number(
                "Failed",
                "Executions that failed, timed out or were lost, in the time shown.",
                counted(EXECUTION_DURATION, selector(OURS.strip("{}"), BAD)) + " or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
            ),
        ),
        (
            4,
            panels.number(
                "Success rate",
                "Completed, of those that completed or failed, in the time shown.",
                success_ratio(OURS, RANGE),
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
                "Executions that started, in the time shown.",
                increase(EXECUTIONS_STARTED, OURS),
                "short",
                decimals=0,
            ),
        ),
        (
            4,
            panels.number(
                "Cost",
                "What steps reported as spent, in the time shown.",
                increase(STEP_COST, OURS) + " or vector(0)",
                "currencyUSD",
                decimals=2,
            ),
        ),
    )
    at.section("How it goes")
    at.row(
        8,
        (
            12,
            panels.lines(
                "Executions by outcome",
                "How many ended, and how.",
                [(counted(EXECUTION_DURATION, OURS, "$__interval", "status"), "{{status}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            panels.lines(
                "Success rate",
                "By workflow, over the last hour at each moment.",
                [(success_ratio(OURS, "1h", "workflow"), "{{workflow}}")],
                "percentunit",
                steps=panels.GOOD_WHEN_HIGH,
                link=TO_WORKFLOW,
                high=1,
            ),
        ),
    )
    at.row(
        8,
        (
            12,
            panels.lines(
                "Run time",
                "Median, 95th and 99th percentile of all executions that ended. Dots are traces.",
                percentiles(EXECUTION_DURATION, OURS),
                "s",
                exemplars=True,
            ),
        ),
        (
            12,
            panels.heatmap_of(
                "Run time, all of it", "How many executions took how long.", heat(EXECUTION_DURATION, OURS)
            ),
        ),
    )
    at.section("Where to look first")
    at.row(
        9,
        (
            8,
            panels.ranking(
                "Slowest workflows",
                "95th percentile of the run time, in the time shown.",
                f"topk(10, {quantile(0.95, EXECUTION_DURATION, OURS, RANGE, 'workflow')})",
                "{{workflow}}",
                "s",
                link=TO_WORKFLOW,
            ),
        ),
        (
            8,
            panels.ranking(
                "Least reliable workflows",
                "Part of the executions that failed, in the time shown.",
                f"topk(10, 1 - ({success_ratio(OURS, RANGE, 'workflow')}))",
                "{{workflow}}",
                "percentunit",
                link=TO_WORKFLOW,
                steps=((None, "green"), (0.01, "orange"), (0.05, "red")),
            ),
        ),
        (
            8,
            panels.ranking(
                "Running for the longest",
                "Since when the oldest running execution of each workflow runs.",
                f"topk(10, time() - min by (workflow) ({OLDEST_RUNNING.name}{OURS}))",
                "{{workflow}}",
                "s",
                link=TO_PAGE,
            ),
        ),
    )
    at.section("Budget and cost")
    at.row(
        8,
        (
            12,
            panels.lines(
                "Error budget left",
                "Of what the target allows to fail in the time shown: 1 is all, below 0 is overspent.",
                [(f"1 - (1 - ({success_ratio(OURS, RANGE, 'workflow')})) / (1 - $target)", "{{workflow}}")],
                "percentunit",
                low=None,
                steps=((None, "red"), (0, "orange"), (0.25, "green")),
                link=TO_WORKFLOW,
            ),
        ),
        (
            12,
            panels.lines(
                "Cost",
                "US dollars an hour, by workflow.",
                [(f"3600 * {rate(STEP_COST, OURS, by='workflow')}", "{{workflow}}")],
                "currencyUSD",
                stacked=True,
                link=TO_WORKFLOW,
            ),
        ),
    )
    return board
