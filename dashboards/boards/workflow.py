"""One workflow."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards import panels
from dashboards.boards.common import ADDRESS, FROM, TO_STEP, WORKFLOW, WORKSPACE, failures
from dashboards.panels import OURS, PAGE
from dashboards.promql import (
    RANGE,
    counted,
    heat,
    increase,
    quantile,
    rate,
    selector,
    success_ratio,
    sum_rate,
)
from tachograph.metrics.specs import (
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    LAST_SUCCESS,
    OLDEST_RUNNING,
    STEP_DURATION,
    STEP_RETRIES,
    STEP_WAIT,
    STEPS_RUNNING,
    STEPS_SKIPPED,
)


def workflow() -> dashboard.Dashboard:
    """One workflow."""
    board = panels.base(
        "tachograph-workflow",
        "Workflow",
        "One workflow: how long, which step, since when.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
    ).annotation(failures())
    on_page = dashboard.DashboardLink("Runs on the page").type(models.DashboardLinkType.LINK).icon("external link")
    board = board.link(on_page.url(f"{PAGE}/#/?workflow=${{workflow}}&{FROM}").target_blank(True))
    at = panels.Layout(board)
    at.section("Now")
    at.row(
        4,
        (4, panels.number("Running", "Executions that run now.", f"sum({EXECUTIONS_RUNNING.name}{OURS})", "short")),
        (
            4,
            panels.number(
                "Longest running",
                "Since when the oldest of them runs.",
                f"time() - min({OLDEST_RUNNING.name}{OURS})",
                "s",
                empty="none",
            ),
        ),
        (
            4,
            panels.number(
                "Last success",
                "How long ago an execution last completed.",
                f"time() - max({LAST_SUCCESS.name}{OURS})",
                "s",
                ((None, "green"), (86_400, "orange"), (172_800, "red")),
                empty="never",
            ),
        ),
        (
            4,
            panels.number(
                "Success rate",
                "In the time shown.",
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
                "95th percentile",
                "Of the run time, in the time shown.",
                quantile(0.95, EXECUTION_DURATION, OURS, RANGE),
                "s",
                empty="–",
            ),
        ),
        (
            4,
            panels.number(
                "Retries",
                "Attempts that were followed by another, in the time shown.",
                increase(STEP_RETRIES, OURS),
                "short",
                decimals=0,
            ),
        ),
    )
    at.section("How long")
    at.row(
        9,
        (
            12,
            panels.heatmap_of(
                "Run time", "How many executions took how long. Dots are traces.", heat(EXECUTION_DURATION, OURS)
            ),
        ),
        (
            12,
            panels.lines(
                "Outcome",
                "How many ended, and how.",
                [(counted(EXECUTION_DURATION, OURS, "$__interval", "status"), "{{status}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
    )
    at.section("Which step")
    at.row(
        10,
        (
            12,
            panels.ranking(
                "Critical path by step",
                "Seconds that each step was what everything else waited for, in the time "
                "shown: what to speed up first.",
                f"topk(15, {increase(CRITICAL_PATH, OURS, by='step')})",
                "{{step}}",
                "s",
                link=TO_STEP,
            ),
        ),
        (
            12,
            panels.lines(
                "Steps, 95th percentile",
                "Of the time from a step's first attempt to the end of its last.",
                [(quantile(0.95, STEP_DURATION, OURS, by="step"), "{{step}}")],
                "s",
                exemplars=True,
                link=TO_STEP,
            ),
        ),
    )
    at.row(
        9,
        (
            8,
            panels.lines(
                "Waiting",
                "Seconds waited a second: for other steps, for a slot, for backoff to pass.",
                [(sum_rate(STEP_WAIT, OURS, by="reason"), "{{reason}}")],
                "s",
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Waiting for a slot, by step",
                "The 95th percentile before an attempt.",
                [(quantile(0.95, STEP_WAIT, selector(OURS.strip("{}"), 'reason="queue"'), by="step"), "{{step}}")],
                "s",
                link=TO_STEP,
            ),
        ),
        (
            8,
            panels.lines(
                "Retries",
                "An hour, by step.",
                [(f"3600 * {rate(STEP_RETRIES, OURS, by='step')}", "{{step}}")],
                "short",
                stacked=True,
                link=TO_STEP,
            ),
        ),
    )
    at.row(
        8,
        (
            12,
            panels.lines(
                "Steps running",
                "Attempts that run at the same time.",
                [(f"sum by (workflow) ({STEPS_RUNNING.name}{OURS})", "{{workflow}}")],
                "short",
            ),
        ),
        (
            12,
            panels.lines(
                "Skipped steps",
                "How many, and why.",
                [(f"sum by (reason) (increase({STEPS_SKIPPED.name}{OURS}[$__interval]))", "{{reason}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
    )
    return board
