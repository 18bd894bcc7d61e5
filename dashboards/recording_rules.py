"""Recording rules that the alerts and dashboards read."""

from __future__ import annotations

from typing import Any, Final

from dashboards.promql import BAD, JUDGED, counted, increase, quantile, selector
from dashboards.thresholds import Thresholds
from tachograph.metrics.specs import (
    EXECUTION_DURATION,
    STEP_COST,
    STEP_DURATION,
    STEP_WAIT,
)

BY_WORKFLOW: Final = "workspace, workflow"
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
BURN: Final = "workflow:execution_errors:burn_rate"
ERROR_RATIO: Final = "workflow:execution_errors:ratio"
BUDGET: Final = "workflow:execution_error_budget:left_ratio"
JUDGED_COUNT: Final = "workflow:executions_judged:increase"
USUAL_P95: Final = "workflow:execution_duration_seconds:p95_7d"
STEP_P95: Final = "workflow_step:duration_seconds:p95_1h"
QUEUE_MEAN: Final = "workflow:step_queue_wait_seconds:mean_15m"
COST_HOUR: Final = "workflow:step_cost_usd:increase_1h"


def recording_rules(thresholds: Thresholds) -> list[dict[str, Any]]:
    """The recording rule groups, as Prometheus' rule files hold them."""
    ratios: list[dict[str, Any]] = []
    for window in WINDOWS:
        bad = counted(EXECUTION_DURATION, selector(BAD), window, BY_WORKFLOW)
        judged = counted(EXECUTION_DURATION, selector(JUDGED), window, BY_WORKFLOW)
        ratios += [
            {"record": JUDGED_COUNT, "labels": {"window": window}, "expr": judged},
            # Without failures there is no series to divide; the ratio is then 0, not absent.
            {"record": ERROR_RATIO, "labels": {"window": window}, "expr": f"({bad} or {judged} * 0) / ({judged} > 0)"},
        ]
    for matcher, limits in thresholds.by_matcher():
        allowed = f"{1 - limits.success_target:.6g}"
        ratios.append({"record": BURN, "expr": f"{ERROR_RATIO}{selector(matcher)} / {allowed}"})
        month = selector(matcher, 'window="30d"')
        # The burn rate over the whole 30 days is the fraction of the budget that is spent.
        ratios.append({"record": BUDGET, "expr": f"1 - sum by ({BY_WORKFLOW}) ({ERROR_RATIO}{month}) / {allowed}"})
    usual = [
        {
            "record": USUAL_P95,
            "expr": quantile(0.95, EXECUTION_DURATION, selector('status="completed"'), "7d", BY_WORKFLOW),
        },
        {"record": STEP_P95, "expr": quantile(0.95, STEP_DURATION, "", "1h", f"{BY_WORKFLOW}, step")},
        {"record": QUEUE_MEAN, "expr": _mean_wait(selector('reason="queue"'), "15m")},
        {"record": COST_HOUR, "expr": increase(STEP_COST, "", "1h", BY_WORKFLOW)},
    ]
    return [
        {"name": "tachograph-slo", "interval": "30s", "rules": ratios},
        {"name": "tachograph-usual", "interval": "60s", "rules": usual},
    ]


def _mean_wait(where: str, window: str) -> str:
    name = STEP_WAIT.name
    native = f"sum by ({BY_WORKFLOW}) (histogram_sum(rate({name}{where}[{window}])))"
    sums = f"({native} or sum by ({BY_WORKFLOW}) (rate({name}_sum{where}[{window}])))"
    count = f"sum by ({BY_WORKFLOW}) (histogram_count(rate({name}{where}[{window}])))"
    counts = f"({count} or sum by ({BY_WORKFLOW}) (rate({name}_count{where}[{window}])))"
    return f"{sums} / ({counts} > 0)"
