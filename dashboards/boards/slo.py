"""Service level objectives and error budgets."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import WORKFLOW, WORKFLOW_MATCHERS, WORKFLOWS, WORKSPACE
from dashboards.promql import selector
from dashboards.recording_rules import (
    BUDGET,
    BUDGET_ALLOWED,
    BURN,
    ERROR_RATIO,
    FAILED_COUNT,
    JUDGED_COUNT,
    WINDOWS,
)


def slo() -> dashboard.Dashboard:
    """Build the dashboard. It reads the recording rules."""
    board = panels.base(
        "tachograph-slo",
        "SLO",
        "How fast each workflow spends its error budget. Needs the recording rules.",
        WORKSPACE,
        WORKFLOW,
    )
    layout = panels.Layout(board)
    layout.section("Error budget of 30 days, as of the last full hour")
    layout.row(
        8,
        (
            12,
            panels.budget_ranking(
                "Budget left",
                "Fraction of the 30-day error budget that is left. Below 0 it is overspent.",
                f"{BUDGET}{WORKFLOWS}",
            ),
        ),
        (
            12,
            panels.budget_lines(
                "Budget left over time",
                "Fraction of the 30-day error budget that was left at each moment.",
                f"{BUDGET}{WORKFLOWS}",
            ),
        ),
    )
    month = selector(*WORKFLOW_MATCHERS, 'window="30d"')
    layout.row(
        8,
        (
            24,
            panels.table(
                "Executions and failures",
                "What the budget is made of. With few executions, less than one failure is allowed, and one spends the "
                "budget many times over.",
                [
                    ("Executions", f"sum by (workflow) ({JUDGED_COUNT}{month})", "short"),
                    ("Failed", f"sum by (workflow) ({FAILED_COUNT}{month})", "short"),
                    ("Allowed to fail", f"sum by (workflow) ({BUDGET_ALLOWED}{WORKFLOWS})", "short"),
                    ("Budget spent", f"max by (workflow) (1 - {BUDGET}{WORKFLOWS})", "percentunit"),
                ],
                "workflow",
            ),
        ),
    )
    layout.section("Burn rate (1 spends the budget in exactly 30 days; each alert reads two windows)")
    for short, long, factor, severity in (
        ("5m", "1h", 14.4, "a page"),
        ("30m", "6h", 6, "a page"),
        ("6h", "3d", 1, "a ticket"),
    ):
        in_windows = selector(*WORKFLOW_MATCHERS, f'window=~"{short}|{long}"')
        layout.row(
            8,
            (
                24,
                panels.lines(
                    f"{short} and {long}",
                    f"Both windows above {factor:g}: {severity}.",
                    [(f"{BURN}{in_windows}", "{{workflow}} {{window}}")],
                    "short",
                    thresholds=((None, "green"), (factor, "red")),
                ),
            ),
        )
    layout.section("Failing executions")
    layout.row(
        8,
        (
            24,
            panels.lines(
                "Error ratio",
                "Fraction of executions that failed, by window.",
                [(f"{ERROR_RATIO}{WORKFLOWS}", "{{workflow}} {{window}}")],
                "percentunit",
            ),
        ),
    )
    if not {"5m", "30m", "1h", "6h", "3d"} <= set(WINDOWS):
        raise ValueError("the recording rules lack a window of this dashboard")
    return board
