"""Objectives and error budgets."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels
from dashboards.boards.common import WORKFLOW, WORKSPACE
from dashboards.panels import OURS
from dashboards.promql import (
    selector,
)
from dashboards.recording_rules import BUDGET, BURN, ERROR_RATIO, WINDOWS


def slo() -> dashboard.Dashboard:
    """Burn rates and budgets, from the recording rules."""
    board = panels.base(
        "tachograph-slo",
        "SLO",
        "How fast each workflow spends what it may fail; needs the recording rules.",
        WORKSPACE,
        WORKFLOW,
    )
    at = panels.Layout(board)
    at.section("Budget")
    at.row(
        8,
        (
            12,
            panels.ranking(
                "Budget left in 30 days",
                "Of what the target allows to fail: 1 is all, below 0 is overspent.",
                f"{BUDGET}{OURS}",
                "{{workflow}}",
                "percentunit",
                steps=((None, "red"), (0, "orange"), (0.25, "green")),
            ),
        ),
        (
            12,
            panels.lines(
                "Budget left in 30 days",
                "How it went.",
                [(f"{BUDGET}{OURS}", "{{workflow}}")],
                "percentunit",
                low=None,
                steps=((None, "red"), (0, "orange"), (0.25, "green")),
            ),
        ),
    )
    at.section("Burn rate: 1 spends exactly the budget in 30 days; an alert of each kind looks at two windows")
    for short, long, factor, what in (
        ("5m", "1h", 14.4, "a page"),
        ("30m", "6h", 6, "a page"),
        ("6h", "3d", 1, "a ticket"),
    ):
        at.row(
            8,
            (
                24,
                panels.lines(
                    f"{short} and {long}",
                    f"Both above {factor:g} is {what}.",
                    [
                        (
                            f"{BURN}{selector(OURS.strip('{}'), f'window=~{chr(34)}{short}|{long}{chr(34)}')}",
                            "{{workflow}} {{window}}",
                        )
                    ],
                    "short",
                    steps=((None, "green"), (factor, "red")),
                ),
            ),
        )
    at.section("Failing executions")
    at.row(
        8,
        (
            24,
            panels.lines(
                "Part that fails", "By window.", [(f"{ERROR_RATIO}{OURS}", "{{workflow}} {{window}}")], "percentunit"
            ),
        ),
    )
    if not {"5m", "30m", "1h", "6h", "3d"} <= set(WINDOWS):
        raise ValueError("a window is not recorded")
    return board
