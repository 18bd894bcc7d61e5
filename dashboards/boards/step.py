"""One step of a workflow."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import (
    ADDRESS,
    FAILED_STATUSES,
    OF_STEP,
    OF_WORKFLOW,
    STEP,
    WORKFLOW,
    WORKSPACE,
    percentiles,
    runs,
)
from dashboards.layout import Layout, Span, base
from dashboards.panels import PER_HOUR, USD_PER_HOUR
from tachograph.metrics.specs import (
    CRITICAL_PATH,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_CPU,
    STEP_DURATION,
    STEP_MEASURE,
    STEP_MEMORY,
    STEP_TOKENS,
    STEP_WAIT,
)
from tachograph_exporter.alerting.promql import (
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

SELECTED = selector(*OF_STEP)


def step() -> dashboard.Dashboard:
    """Build the dashboard."""
    board = base(
        "tachograph-step",
        "Step",
        "One step: how long it takes, how it ends, what it waits for, and what it costs.",
        WORKSPACE,
        WORKFLOW,
        STEP,
        ADDRESS,
    )
    layout = Layout(board)
    layout.section(Span.RANGE)
    _range(layout)
    layout.section(Span.OVER_TIME)
    _over_time(layout)
    return board


def _range(layout: Layout) -> None:
    share = f"{increase(CRITICAL_PATH, SELECTED)} / {increase(CRITICAL_PATH, selector(*OF_WORKFLOW))}"
    failed = increase(STEP_ATTEMPTS, selector(*OF_STEP, 'outcome=~"failed|timeout|lost"'))
    layout.row(
        4,
        (
            6,
            panels.number(
                "Failed attempts",
                "Failed attempts as a fraction of all attempts.",
                f"({failed} or vector(0)) / {increase(STEP_ATTEMPTS, SELECTED)}",
                "percentunit",
                ((None, "green"), (0.01, "orange"), (0.1, "red")),
                decimals=1,
                empty="–",
                link=runs(FAILED_STATUSES, of_workflow=True),
            ),
        ),
        (
            6,
            panels.number(
                "95th percentile",
                "Of the time from the first attempt to the end of the last.",
                quantile(0.95, STEP_DURATION, SELECTED, RANGE),
                "s",
                empty="–",
                link=runs(of_workflow=True),
            ),
        ),
        (
            6,
            panels.number(
                "Share of the critical path",
                "The step's fraction of its workflow's critical path.",
                share,
                "percentunit",
                decimals=1,
                empty="–",
                link=("This workflow", "/d/tachograph-workflow?${workflow:queryparam}&${__url_time_range}"),
            ),
        ),
        (
            6,
            panels.number(
                "Times it ran",
                "How often the step ran.",
                counted(STEP_DURATION, SELECTED),
                "short",
                decimals=0,
                link=runs(of_workflow=True),
            ),
        ),
    )


def _over_time(layout: Layout) -> None:
    layout.row(
        9,
        (
            12,
            panels.heatmap_of(
                "Duration by run",
                "Runs of the step by how long they took. Dots link to traces.",
                heat(STEP_DURATION, SELECTED),
            ),
        ),
        (
            12,
            panels.lines(
                "Duration",
                "Median, 95th and 99th percentile. Dots link to traces.",
                percentiles(STEP_DURATION, SELECTED),
                "s",
                exemplars=True,
            ),
        ),
    )
    layout.row(
        9,
        (
            12,
            panels.lines(
                "Attempts by outcome",
                "Attempts that ended, per hour.",
                [(increase(STEP_ATTEMPTS, SELECTED, "1h", "outcome"), "{{outcome}}")],
                PER_HOUR,
                stacked=True,
                bars=True,
            ),
        ),
        (
            12,
            panels.lines(
                "Waiting and running",
                "Time per hour spent running, and waiting by reason.",
                [
                    (f"3600 * {sum_rate(STEP_DURATION, SELECTED)}", "run"),
                    (f"3600 * {sum_rate(STEP_WAIT, SELECTED, by='reason')}", "{{reason}}"),
                ],
                "s",
                stacked=True,
            ),
        ),
    )
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Processor time",
                "Median, 95th and 99th percentile of an attempt's processor time.",
                percentiles(STEP_CPU, SELECTED),
                "s",
            ),
        ),
        (
            8,
            panels.lines(
                "Busy",
                "Processor time per second of running: at 1 it works all the time, near 0 it waits.",
                [(f"{sum_rate(STEP_CPU, SELECTED)} / {sum_rate(STEP_DURATION, SELECTED)}", "processors")],
                "short",
            ),
        ),
        (
            8,
            panels.lines(
                "Peak memory",
                "Median, 95th and 99th percentile of the largest resident set of an attempt.",
                percentiles(STEP_MEMORY, SELECTED),
                "bytes",
            ),
        ),
    )
    layout.row(
        8,
        (
            8,
            panels.lines(
                "Cost",
                "US dollars per hour, by model.",
                [(f"3600 * {rate(STEP_COST, SELECTED, by='model')}", "{{model}}")],
                USD_PER_HOUR,
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Tokens",
                "Tokens per hour, by model and type.",
                [(f"3600 * {rate(STEP_TOKENS, SELECTED, by='model, type')}", "{{model}} {{type}}")],
                PER_HOUR,
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
                        f"{sum_rate(STEP_MEASURE, SELECTED, by='measure, unit')} / "
                        f"{count_rate(STEP_MEASURE, SELECTED, by='measure, unit')}",
                        "{{measure}} {{unit}}",
                    )
                ],
                "short",
            ),
        ),
    )
