"""Service level objectives and error budgets."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import (
    MATCHERS,
    ROW_TO_WORKFLOW,
    TO_WORKFLOW,
    WORKFLOWS,
    WORKSPACE,
    budget_ranking,
)
from dashboards.layout import Layout, Span, base
from dashboards.panels import Column
from tachograph_exporter.alerting.promql import selector
from tachograph_exporter.alerting.recording_rules import (
    BUDGET_ALLOWED,
    BUDGET_SPENT,
    BURN,
    BY_WORKFLOW,
    ERROR_RATIO,
    FAILED_COUNT,
    JUDGED_COUNT,
    TARGET,
    WINDOWS,
)

SELECTED = selector(*MATCHERS)


def _by_workflow(series: str) -> str:
    """A column of a table; names of metrics would be columns, too."""
    return f"max by ({BY_WORKFLOW}) ({series})"


def slo() -> dashboard.Dashboard:
    """Build the dashboard. It reads the recording rules."""
    board = base(
        "tachograph-slo",
        "SLO",
        "How fast each workflow spends its error budget. Needs the recording rules.",
        WORKSPACE,
        WORKFLOWS,
    )
    layout = Layout(board)
    layout.section(Span.MONTH)
    month = selector(*MATCHERS, 'window="30d"')
    layout.row(
        10,
        (10, budget_ranking(*MATCHERS)),
        (
            14,
            panels.table(
                "Runs and failures",
                "What the budgets are made of. Spent: how many times the allowed failures; from ×1 on, the budget is "
                "overspent. Where less than one failure is allowed, there are too few runs for a budget.",
                [
                    Column("Spent", _by_workflow(f"{BUDGET_SPENT}{SELECTED}"), "prefix:×", empty="too few runs"),
                    Column("Failed", _by_workflow(f"{FAILED_COUNT}{month}")),
                    Column("Allowed to fail", _by_workflow(f"{BUDGET_ALLOWED}{SELECTED}")),
                    Column("Runs", _by_workflow(f"{JUDGED_COUNT}{month}")),
                    Column("Target", _by_workflow(f"{TARGET}{SELECTED}"), "percentunit"),
                ],
                order=[("Spent", True), ("Failed", True)],
                first=("workflow",),
                link=ROW_TO_WORKFLOW,
            ),
        ),
    )
    layout.section(Span.MONTH_OVER_TIME)
    layout.row(
        8,
        (
            24,
            panels.lines(
                "Error budget left",
                "Fraction of the failures allowed in 30 days that was left at each moment; 0 where it was overspent.",
                [(f"clamp_min(1 - {BUDGET_SPENT}{SELECTED}, 0)", "{{workflow}}")],
                "percentunit",
                high=1,
                thresholds=((None, "red"), (0.001, "orange"), (0.25, "green")),
                is_low_worst=True,
                link=TO_WORKFLOW,
            ).mappings(panels.texts_of({"0": ("overspent", "red")})),
        ),
    )
    layout.section(Span.BURN, "Burn rate (1 spends the budget in exactly 30 days)")
    for short, long, factor, severity in (
        ("5m", "1h", 14.4, "a page"),
        ("30m", "6h", 6, "a page"),
        ("6h", "3d", 1, "a ticket"),
    ):
        in_windows = selector(*MATCHERS, f'window=~"{short}|{long}"')
        layout.row(
            8,
            (
                24,
                panels.lines(
                    f"{short} and {long}",
                    f"Both windows above {factor:g}, with enough runs: {severity}.",
                    [(f"{BURN}{in_windows}", "{{workflow}} {{window}}")],
                    "prefix:×",
                    thresholds=((None, "green"), (factor, "red")),
                    link=TO_WORKFLOW,
                ),
            ),
        )
    layout.row(
        8,
        (
            24,
            panels.lines(
                "1 day and 3 days: fraction that failed",
                "Runs that failed, as a fraction of those that completed or failed; with the least that is allowed.",
                [
                    (ERROR_RATIO + selector(*MATCHERS, 'window=~"1d|3d"'), "{{workflow}} {{window}}"),
                    (f"1 - max({TARGET}{SELECTED})", "allowed"),
                ],
                "percentunit",
                limit="allowed",
                link=TO_WORKFLOW,
            ),
        ),
    )
    if not {"5m", "30m", "1h", "6h", "1d", "3d"} <= set(WINDOWS):
        raise ValueError("the recording rules lack a window of this dashboard")
    return board
