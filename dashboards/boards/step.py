"""One step of a workflow."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import (
    ADDRESS,
    STEP,
    STEP_MATCHERS,
    STEPS,
    WORKFLOW,
    WORKFLOWS,
    WORKSPACE,
    percentiles,
)
from dashboards.promql import (
    RANGE,
    RATE,
    count_rate,
    counted,
    heat,
    increase,
    quantile,
    rate,
    selector,
    sum_rate,
)
from tachograph.metrics.specs import (
    CRITICAL_PATH,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_TOKENS,
    STEP_WAIT,
)


def step() -> dashboard.Dashboard:
    """Build the dashboard."""
    board = panels.base(
        "tachograph-step",
        "Step",
        "One step: how long it takes, how it ends, what it waits for, and what it costs.",
        WORKSPACE,
        WORKFLOW,
        STEP,
        ADDRESS,
    )
    layout = panels.Layout(board)
    share = f"{increase(CRITICAL_PATH, STEPS)} / {increase(CRITICAL_PATH, WORKFLOWS)}"
    failed = increase(STEP_ATTEMPTS, selector(*STEP_MATCHERS, 'outcome=~"failed|timeout|lost"'))
    layout.section("At a glance")
    layout.row(
        4,
        (
            6,
            panels.number(
                "Runs",
                "How often the step ran in the selected time range.",
                counted(STEP_DURATION, STEPS),
                "short",
                decimals=0,
            ),
        ),
        (
            6,
            panels.number(
                "95th percentile",
                "Of the time from the first attempt to the end of the last, in the selected time range.",
                quantile(0.95, STEP_DURATION, STEPS, RANGE),
                "s",
                empty="–",
            ),
        ),
        (
            6,
            panels.number(
                "Failed attempts",
                "Failed attempts as a fraction of all attempts, in the selected time range.",
                f"({failed} or vector(0)) / {increase(STEP_ATTEMPTS, STEPS)}",
                "percentunit",
                ((None, "green"), (0.01, "orange"), (0.1, "red")),
                decimals=1,
                empty="–",
            ),
        ),
        (
            6,
            panels.number(
                "Share of the critical path",
                "The step's fraction of its workflow's critical path, in the selected time range.",
                share,
                "percentunit",
                decimals=1,
                empty="–",
            ),
        ),
    )
    layout.section("Duration")
    layout.row(
        9,
        (
            12,
            panels.heatmap_of(
                "Duration",
                "Runs of the step by how long they took. Dots link to traces.",
                heat(STEP_DURATION, STEPS),
            ),
        ),
        (
            12,
            panels.lines(
                "Duration",
                "Median, 95th and 99th percentile. Dots link to traces.",
                percentiles(STEP_DURATION, STEPS),
                "s",
                exemplars=True,
            ),
        ),
    )
    layout.section("Outcomes and waiting")
    layout.row(
        9,
        (
            12,
            panels.lines(
                "Attempts by outcome",
                "Attempts that ended, by outcome.",
                [(increase(STEP_ATTEMPTS, STEPS, RATE, "outcome"), "{{outcome}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            panels.lines(
                "Waiting and running",
                "Seconds per second spent running, and waiting by reason.",
                [
                    (sum_rate(STEP_DURATION, STEPS), "run"),
                    (sum_rate(STEP_WAIT, STEPS, by="reason"), "{{reason}}"),
                ],
                "s",
                stacked=True,
            ),
        ),
    )
    layout.section("Cost and measurements")
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Cost",
                "US dollars per hour, by model.",
                [(f"3600 * {rate(STEP_COST, STEPS, by='model')}", "{{model}}")],
                "currencyUSD",
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Tokens",
                "Tokens per second, by model and type.",
                [(rate(STEP_TOKENS, STEPS, by="model, type"), "{{model}} {{type}}")],
                "short",
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Measured",
                "Mean of each measurement that the step reported under a declared name.",
                [
                    (
                        f"{sum_rate(STEP_MEASURE, STEPS, by='measure, unit')} / "
                        f"{count_rate(STEP_MEASURE, STEPS, by='measure, unit')}",
                        "{{measure}} {{unit}}",
                    )
                ],
                "short",
            ),
        ),
    )
    return board
