"""Recording rules and alerts for Prometheus, from `thresholds.toml`.

Burn rates: https://sre.google/workbook/alerting-on-slos/ (multi-window, multi-burn-rate). Only executions that
completed or failed are judged; cancelled ones count neither way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dashboards.promql import increase, selector
from dashboards.recording_rules import (
    BURN,
    BY_WORKFLOW,
    COST_HOUR,
    ERROR_RATIO,
    JUDGED_COUNT,
    QUEUE_MEAN,
    STEP_P95,
    USUAL,
    recording_rules,
)
from dashboards.thresholds import Expected, Thresholds
from tachograph.metrics.self_metrics import DROPPED, EVENTS, QUEUE_LENGTH, SERIES_LIMITED
from tachograph.metrics.specs import (
    LAST_SUCCESS,
    OLDEST_RUNNING,
    STEP_ATTEMPTS,
    STEP_RETRIES,
)
from tachograph_exporter.dashboard_files import RUNBOOKS


def _alert(name: str, expr: str, wait: str, severity: str, summary: str, description: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description, "runbook_url": f"{RUNBOOKS}/{name}.md"},
    }


def alerts(thresholds: Thresholds) -> list[dict[str, Any]]:
    """Groups of alerts."""
    found: list[dict[str, Any]] = []
    for make in (_burning, _stuck, _stale, _regressed, _retrying, _queueing, _costly):
        for matcher, expected in thresholds.each():
            found += make(matcher, expected)
    return [
        {"name": "tachograph-workflows", "interval": "30s", "rules": found},
        {"name": "tachograph-self-monitoring", "interval": "30s", "rules": _self_monitoring()},
    ]


_WHO: Final = "{{ $labels.workflow }} ({{ $labels.workspace }})"


def _burning(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    def both(short: str, long: str, factor: float) -> str:
        at = [selector(matcher, f'window="{window}"') for window in (short, long)]
        burn = [f"sum by ({BY_WORKFLOW}) ({BURN}{where})" for where in at]
        return f"({burn[0]} > {factor:g} and {burn[1]} > {factor:g} and {_failures(at[1])})"

    target = f"{100 * expected.success_target:g} %"
    return [
        _alert(
            "WorkflowErrorBudgetBurnFast",
            f"{both('5m', '1h', 14.4)} or {both('30m', '6h', 6)}",
            "2m",
            "critical",
            f"{_WHO} fails far more often than it may",
            f"Executions fail {{{{ $value | humanize }}}} times as often as the target of {target} allows; at this "
            "rate the budget of 30 days is gone within days.",
        ),
        _alert(
            "WorkflowErrorBudgetBurnSlow",
            f"{both('2h', '1d', 3)} or {both('6h', '3d', 1)}",
            "15m",
            "warning",
            f"{_WHO} fails more often than it may",
            f"Executions fail {{{{ $value | humanize }}}} times as often as the target of {target} allows.",
        ),
    ]


def _failures(where: str) -> str:
    """How many executions failed in a window: at least two, for one of two says little."""
    return f"sum by ({BY_WORKFLOW}) ({JUDGED_COUNT}{where} * {ERROR_RATIO}{where}) >= 1.9"


def _stuck(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    age = f"(time() - min by ({BY_WORKFLOW}) ({OLDEST_RUNNING.name}{selector(matcher)}))"
    usual = f"{USUAL}{selector(matcher)}"
    return [
        _alert(
            "WorkflowRunStuck",
            f"{age} > {expected.stuck_factor:g} * {usual} and {age} > {expected.stuck_seconds:g}",
            "1m",
            "warning",
            f"{_WHO}: a run takes far longer than usual",
            "The oldest running execution runs for {{ $value | humanizeDuration }}, more than "
            f"{expected.stuck_factor:g} times the usual 95th percentile.",
        )
    ]


def _stale(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    age = f"(time() - max by ({BY_WORKFLOW}) ({LAST_SUCCESS.name}{selector(matcher)}))"
    return [
        _alert(
            "WorkflowNoSuccess",
            f"{age} > {expected.stale_seconds:g}",
            "5m",
            "warning",
            f"{_WHO} has not completed for too long",
            "The last success was {{ $value | humanizeDuration }} ago.",
        )
    ]


def _regressed(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    now = f"{STEP_P95}{selector(matcher)}"
    before = f"{STEP_P95}{selector(matcher)} offset 1w"
    return [
        _alert(
            "WorkflowStepRegression",
            f"{now} > {expected.regression_factor:g} * ({before}) and {now} - ({before}) > "
            f"{expected.regression_seconds:g}",
            "15m",
            "warning",
            "{{ $labels.step }} of " + _WHO + " takes longer than a week ago",
            "The 95th percentile of the last hour is {{ $value | humanizeDuration }}, more than "
            f"{expected.regression_factor:g} times that of a week ago.",
        )
    ]


def _retrying(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    by = f"{BY_WORKFLOW}, step"
    retries = increase(STEP_RETRIES, selector(matcher), "15m", by)
    attempts = increase(STEP_ATTEMPTS, selector(matcher), "15m", by)
    return [
        _alert(
            "WorkflowRetryStorm",
            f"{retries} / {attempts} > {expected.retry_ratio:g} and {retries} >= {expected.retry_count:g}",
            "5m",
            "warning",
            "{{ $labels.step }} of " + _WHO + " is tried again and again",
            "{{ $value | humanizePercentage }} of its attempts in the last quarter of an hour were followed by "
            "another.",
        )
    ]


def _queueing(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    now = f"{QUEUE_MEAN}{selector(matcher)}"
    usual = f"avg_over_time({QUEUE_MEAN}{selector(matcher)}[1d])"
    return [
        _alert(
            "WorkflowQueueWaitGrowing",
            f"{now} > {expected.queue_factor:g} * {usual} and {now} > {expected.queue_seconds:g}",
            "10m",
            "warning",
            f"Steps of {_WHO} wait longer and longer for a slot",
            "On the average {{ $value | humanizeDuration }}, more than "
            f"{expected.queue_factor:g} times the day's mean.",
        )
    ]


def _costly(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    now = f"{COST_HOUR}{selector(matcher)}"
    usual = f"avg_over_time({COST_HOUR}{selector(matcher)}[7d])"
    return [
        _alert(
            "WorkflowCostJump",
            f"{now} > {expected.cost_factor:g} * {usual} and {now} > {expected.cost_usd:g}",
            "5m",
            "warning",
            f"{_WHO} costs far more than usual",
            f"${{{{ $value | humanize }}}} in the last hour, more than {expected.cost_factor:g} times the week's mean.",
        )
    ]


def _self_monitoring() -> list[dict[str, Any]]:
    where = "{{ $labels.instance }}"
    return [
        _alert(
            "TachographEventsLost",
            f"sum by (job, instance, listener, reason) (increase({DROPPED.name}[5m])) > 0",
            "0m",
            "critical",
            f"{where} loses events",
            "{{ $value | humanize }} events never reached the listener {{ $labels.listener }} in five minutes "
            "({{ $labels.reason }}): what it shows is not all there is.",
        ),
        _alert(
            "TachographQueueGrowing",
            f"max by (job, instance, listener) ({QUEUE_LENGTH.name}) > 50000",
            "2m",
            "warning",
            f"{where}: the listener {{{{ $labels.listener }}}} does not keep up",
            "{{ $value | humanize }} events wait for it; when the queue is full, events are lost.",
        ),
        _alert(
            "TachographSeriesLimitReached",
            f"sum by (job, instance, metric) (increase({SERIES_LIMITED.name}[15m])) > 0",
            "0m",
            "warning",
            f"{where}: {{{{ $labels.metric }}}} has more label sets than the limit",
            "New label sets are counted as `other`; something makes up names.",
        ),
        _alert(
            "TachographDown",
            'up{job="tachograph"} == 0',
            "2m",
            "critical",
            f"{where} cannot be scraped",
            "Prometheus has not reached it for two minutes: nothing is known of its workflows.",
        ),
        _alert(
            "TachographSilent",
            f'absent({EVENTS.name}{{job="tachograph"}})',
            "5m",
            "critical",
            "No Tachograph is scraped",
            "There is no series of any: the target is gone from the configuration, or has been down for long.",
        ),
    ]


Group = dict[str, Any]
FILES: Final[dict[str, Callable[[Thresholds], list[Group]]]] = {
    "recording.rules.yml": recording_rules,
    "alerts.rules.yml": alerts,
}
