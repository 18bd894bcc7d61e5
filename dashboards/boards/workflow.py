"""One workflow."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from dashboards import panels
from dashboards.boards.common import (
    ADDRESS,
    FAILED_STATUSES,
    OF_WORKFLOW,
    RESULTS,
    TO_FAILURE,
    TO_STEP,
    WORKFLOW,
    WORKSPACE,
    ended,
    failures,
    firing_alerts,
    last_result,
    runs,
    success_rate,
)
from dashboards.layout import Layout, Span, base
from dashboards.panels import PER_HOUR
from tachograph.metrics.specs import (
    CRITICAL_PATH,
    EXECUTION_DURATION,
    EXECUTIONS_RUNNING,
    FAILURE_GROUP_FAILURES,
    OLDEST_RUNNING,
    STEP_DURATION,
    STEP_OVERDUE,
    STEP_RETRIES,
    STEP_WAIT,
    STEPS_RUNNING,
    STEPS_SKIPPED,
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
    sum_rate,
)
from tachograph_exporter.alerting.recording_rules import last_success

SELECTED = selector(*OF_WORKFLOW)


def workflow() -> dashboard.Dashboard:
    """Build the dashboard."""
    board = base(
        "tachograph-workflow",
        "Workflow",
        "One workflow: how its last run ended, how long it takes, which step is responsible, and since when.",
        WORKSPACE,
        WORKFLOW,
        ADDRESS,
    ).annotation(failures(*OF_WORKFLOW))
    title, url = runs(of_workflow=True)
    link = dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).icon("external link")
    board = board.link(link.url(url).target_blank(True))
    layout = Layout(board)
    layout.section(Span.NOW)
    _now(layout)
    layout.section(Span.RANGE)
    _range(layout)
    layout.section(Span.OVER_TIME)
    _over_time(layout)
    return board


def _now(layout: Layout) -> None:
    layout.row(
        5,
        (8, firing_alerts(*OF_WORKFLOW, hidden=("workspace", "workflow"))),
        (
            3,
            panels.number(
                "Last result",
                "How the last run ended.",
                f"max({last_result(*OF_WORKFLOW)})",
                "short",
                texts=RESULTS,
                empty="–",
                link=runs(of_workflow=True),
            ),
        ),
        (
            3,
            panels.number(
                "Last success",
                "Time since a run last completed.",
                f"time() - max({last_success('5m', ', '.join(OF_WORKFLOW))})",
                "s",
                empty="never",
                link=runs("completed", now=True, of_workflow=True),
            ),
        ),
        (
            3,
            panels.number(
                "Running",
                "Runs in progress.",
                f"sum({EXECUTIONS_RUNNING.name}{SELECTED})",
                "short",
                link=runs("running", now=True, of_workflow=True),
            ),
        ),
        (
            3,
            panels.number(
                "Longest running",
                "How long the oldest run in progress has been running.",
                f"time() - min({OLDEST_RUNNING.name}{SELECTED})",
                "s",
                empty="none",
                link=runs("running", now=True, of_workflow=True),
            ),
        ),
        (
            4,
            panels.number(
                "Steps overdue",
                "Steps that run past their deadline or, where there is none, for far longer than usual.",
                f"count(max by (step) ({STEP_OVERDUE.name}{SELECTED}) == 1) or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                link=runs("running", now=True, of_workflow=True),
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
                f"{ended(*OF_WORKFLOW, BAD)} or vector(0)",
                "short",
                panels.GOOD_WHEN_ZERO,
                decimals=0,
                link=runs(FAILED_STATUSES, of_workflow=True),
            ),
        ),
        (
            6,
            panels.number(
                "Success rate",
                "Completed runs as a fraction of those that completed or failed.",
                success_rate(*OF_WORKFLOW),
                "percentunit",
                panels.GOOD_WHEN_HIGH,
                decimals=2,
                empty="–",
                link=runs(FAILED_STATUSES, of_workflow=True),
            ),
        ),
        (
            6,
            panels.number(
                "95th percentile",
                "Of the run time.",
                quantile(0.95, EXECUTION_DURATION, SELECTED, RANGE),
                "s",
                empty="–",
                link=runs(of_workflow=True),
            ),
        ),
        (
            6,
            panels.number(
                "Retries",
                "Attempts that were retried.",
                increase(STEP_RETRIES, SELECTED),
                "short",
                decimals=0,
                link=runs(of_workflow=True),
            ),
        ),
    )
    layout.row(
        10,
        (
            12,
            panels.ranking(
                "Critical path by step",
                "Seconds each step spent on the critical path. Start with the longest.",
                [(panels.worst(increase(CRITICAL_PATH, SELECTED, by="step"), 15), "{{step}}")],
                "s",
                link=TO_STEP,
            ),
        ),
        (
            12,
            panels.ranking(
                "Slowest steps",
                "95th percentile of the time from a step's first attempt to the end of its last.",
                [(panels.worst(quantile(0.95, STEP_DURATION, SELECTED, RANGE, "step"), 15), "{{step}}")],
                "s",
                link=TO_STEP,
            ),
        ),
    )
    layout.row(
        7,
        (
            24,
            panels.ranking(
                "Failures by cause",
                "Failures in the time range, by the id of their cause. A click shows what it is.",
                [(panels.worst(increase(FAILURE_GROUP_FAILURES, SELECTED, by="group"), 10), "{{group}}")],
                "short",
                link=TO_FAILURE,
            ),
        ),
    )


def _over_time(layout: Layout) -> None:
    layout.row(
        9,
        (
            12,
            panels.heatmap_of(
                "Run time",
                "Runs by how long they took. Dots link to traces.",
                heat(EXECUTION_DURATION, SELECTED),
            ),
        ),
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
    )
    layout.row(
        9,
        (
            12,
            panels.lines(
                "Steps, 95th percentile",
                "95th percentile of the time from a step's first attempt to the end of its last.",
                [(quantile(0.95, STEP_DURATION, SELECTED, by="step"), "{{step}}")],
                "s",
                exemplars=True,
                link=TO_STEP,
            ),
        ),
        (
            12,
            panels.lines(
                "Waiting",
                "Time waited per hour: for dependencies, for a slot, for backoff, and for a scheduled time.",
                [(f"3600 * {sum_rate(STEP_WAIT, SELECTED, by='reason')}", "{{reason}}")],
                "s",
                stacked=True,
            ),
        ),
    )
    layout.row(
        8,
        (
            6,
            panels.lines(
                "Waiting for a slot",
                "95th percentile of the wait before an attempt, by step.",
                [(quantile(0.95, STEP_WAIT, selector(*OF_WORKFLOW, 'reason="queue"'), by="step"), "{{step}}")],
                "s",
                link=TO_STEP,
            ),
        ),
        (
            6,
            panels.lines(
                "Retries",
                "Retries per hour, by step.",
                [(f"3600 * {rate(STEP_RETRIES, SELECTED, by='step')}", "{{step}}")],
                PER_HOUR,
                stacked=True,
                link=TO_STEP,
            ),
        ),
        (
            6,
            panels.lines(
                "Skipped steps",
                "Skipped steps per hour, by reason.",
                [(increase(STEPS_SKIPPED, SELECTED, "1h", "reason"), "{{reason}}")],
                PER_HOUR,
                stacked=True,
                bars=True,
            ),
        ),
        (
            6,
            panels.lines(
                "Steps running",
                "Attempts running at the same time.",
                [(f"sum by (workflow) ({STEPS_RUNNING.name}{SELECTED})", "{{workflow}}")],
                "short",
                link=runs("running", now=True, of_workflow=True),
            ),
        ),
    )
