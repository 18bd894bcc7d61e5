"""One workflow."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards import panels
from dashboards.boards.common import (
    ADDRESS,
    PAGE_URL,
    TIME_RANGE,
    TO_STEP,
    WORKFLOW,
    WORKFLOW_MATCHERS,
    WORKFLOWS,
    WORKSPACE,
    failures,
)
from dashboards.promql import (
    RANGE,
    RATE,
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
    """Build the dashboard."""
    board = panels.base(
        "tachograph-workflow",
        "Workflow",
        "One workflow: how long it takes, which step is responsible, and since when.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
    ).annotation(failures())
    runs = dashboard.DashboardLink("Runs in Tachograph").type(models.DashboardLinkType.LINK).icon("external link")
    board = board.link(runs.url(f"{PAGE_URL}/#/?workflow=${{workflow}}&{TIME_RANGE}").target_blank(True))
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
                "Longest running",
                "How long the oldest execution has been running.",
                f"time() - min({OLDEST_RUNNING.name}{WORKFLOWS})",
                "s",
                empty="none",
            ),
        ),
        (
            4,
            panels.number(
                "Last success",
                "Time since an execution last completed.",
                f"time() - max(last_over_time({LAST_SUCCESS.name}{WORKFLOWS}[5m]))",
                "s",
                ((None, "green"), (86_400, "orange"), (172_800, "red")),
                empty="never",
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
                "95th percentile",
                "Of the run time, in the selected time range.",
                quantile(0.95, EXECUTION_DURATION, WORKFLOWS, RANGE),
                "s",
                empty="–",
            ),
        ),
        (
            4,
            panels.number(
                "Retries",
                "Attempts that were retried in the selected time range.",
                increase(STEP_RETRIES, WORKFLOWS),
                "short",
                decimals=0,
            ),
        ),
    )
    layout.section("Run time")
    layout.row(
        9,
        (
            12,
            panels.heatmap_of(
                "Run time",
                "Executions by how long they took. Dots link to traces.",
                heat(EXECUTION_DURATION, WORKFLOWS),
            ),
        ),
        (
            12,
            panels.lines(
                "Outcome",
                "Executions that ended, by status.",
                [(counted(EXECUTION_DURATION, WORKFLOWS, RATE, "status"), "{{status}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
    )
    layout.section("Steps")
    layout.row(
        10,
        (
            12,
            panels.ranking(
                "Critical path by step",
                "Seconds each step spent on the critical path in the selected time range. Start with the longest.",
                f"topk(15, {increase(CRITICAL_PATH, WORKFLOWS, by='step')})",
                "{{step}}",
                "s",
                link=TO_STEP,
            ),
        ),
        (
            12,
            panels.lines(
                "Steps, 95th percentile",
                "95th percentile of the time from a step's first attempt to the end of its last.",
                [(quantile(0.95, STEP_DURATION, WORKFLOWS, by="step"), "{{step}}")],
                "s",
                exemplars=True,
                link=TO_STEP,
            ),
        ),
    )
    layout.row(
        9,
        (
            8,
            panels.lines(
                "Waiting",
                "Seconds waited per second: for dependencies, for a slot, and for backoff.",
                [(sum_rate(STEP_WAIT, WORKFLOWS, by="reason"), "{{reason}}")],
                "s",
                stacked=True,
            ),
        ),
        (
            8,
            panels.lines(
                "Waiting for a slot, by step",
                "95th percentile of the wait before an attempt.",
                [(quantile(0.95, STEP_WAIT, selector(*WORKFLOW_MATCHERS, 'reason="queue"'), by="step"), "{{step}}")],
                "s",
                link=TO_STEP,
            ),
        ),
        (
            8,
            panels.lines(
                "Retries",
                "Retries per hour, by step.",
                [(f"3600 * {rate(STEP_RETRIES, WORKFLOWS, by='step')}", "{{step}}")],
                "short",
                stacked=True,
                link=TO_STEP,
            ),
        ),
    )
    layout.row(
        8,
        (
            12,
            panels.lines(
                "Steps running",
                "Attempts running at the same time.",
                [(f"sum by (workflow) ({STEPS_RUNNING.name}{WORKFLOWS})", "{{workflow}}")],
                "short",
            ),
        ),
        (
            12,
            panels.lines(
                "Skipped steps",
                "Skipped steps, by reason.",
                [(increase(STEPS_SKIPPED, WORKFLOWS, RATE, "reason"), "{{reason}}")],
                "short",
                stacked=True,
                bars=True,
            ),
        ),
    )
    return board
