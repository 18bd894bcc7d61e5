"""One step of a workflow."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import ADDRESS, STEPS, WORKFLOW, WORKSPACE, percentiles
from dashboards.panels import OURS, STEP
from dashboards.promql import (
    RANGE,
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
    """One step."""
    board = panels.base(
        "tachograph-step",
        "Step",
        "One step: how long it takes, how it ends, what it waits for and costs.",
        WORKSPACE,
        WORKFLOW,
        STEPS,
        ADDRESS,
    )
    at = panels.Layout(board)
    share = f"{increase(CRITICAL_PATH, STEP)} / {increase(CRITICAL_PATH, OURS)}"
    failed = increase(STEP_ATTEMPTS, selector(STEP.strip("{}"), 'outcome=~"failed|timeout|lost"'))
    at.section("At a glance")
    at.row(
        4,
        (
            6,
            panels.number(
                "Runs", "Times it ran, in the time shown.", counted(STEP_DURATION, STEP), "short", decimals=0
            ),
        ),
        (
            6,
            panels.number(
                "95th percentile",
                "From its first attempt to the end of its last, in the time shown.",
                quantile(0.95, STEP_DURATION, STEP, RANGE),
                "s",
                empty="–",
            ),
        ),
        (
            6,
            panels.number(
                "Failed attempts",
                "Of all attempts, in the time shown.",
                f"({failed} or vector(0)) / {increase(STEP_ATTEMPTS, STEP)}",
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
                "Of its workflow's, in the time shown.",
                share,
                "percentunit",
                decimals=1,
                empty="–",
            ),
        ),
    )
    at.section("How long")
    at.row(
        9,
        (
            12,
            panels.heatmap_of(
                "Duration", "How many runs of the step took how long. Dots are traces.", heat(STEP_DURATION, STEP)
            ),
        ),
        (
            12,
            panels.lines(
                "Duration",
                "Median, 95th and 99th percentile. Dots are traces.",
                percentiles(STEP_DURATION, STEP),
                "s",
                exemplars=True,
            ),
        ),
    )
    at.section("How it ends, what it waits for")
    at.row(
        9,
        (
            12,
            panels.lines(
                "Attempts by outcome",
                "How many attempts ended, and how.",
                [(f"sum by (outcome) (increase({STEP_ATTEMPTS.name}{STEP}[$__interval]))", "{{outcome}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            panels.lines(
                "Wait against work",
                "Seconds a second: running, and waiting by reason.",
                [(sum_rate(STEP_DURATION, STEP), "run"), (sum_rate(STEP_WAIT, STEP, by="reason"), "{{reason}}")],
                "s",
                stacked=True,
            ),
        ),
    )
    at.section("What it costs and measures")
    at.row(
        8,
        (
            8,
            panels.lines(
                "Cost",
                "US dollars an hour, by model.",
                [(f"3600 * {rate(STEP_COST, STEP, by='model')}", "{{model}}")],
                "currencyUSD",
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Tokens",
                "A second, by model and type.",
                [(rate(STEP_TOKENS, STEP, by="model, type"), "{{model}} {{type}}")],
                "short",
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Measured",
                "Mean of what the step reported under declared names.",
                [
                    (
                        f"{sum_rate(STEP_MEASURE, STEP, by='measure, unit')} / "
                        f"{count_rate(STEP_MEASURE, STEP, by='measure, unit')}",
                        "{{measure}} {{unit}}",
                    )
                ],
                "short",
            ),
        ),
    )
    return board
