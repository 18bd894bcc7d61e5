"""Alerts for Prometheus, with the limits of `thresholds.toml`.

Burn rates: https://sre.google/workbook/alerting-on-slos/ (multi-window, multi-burn-rate). Only executions that
completed or failed count; cancelled executions do not count either way.
"""

from __future__ import annotations

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
    USUAL_P95,
)
from dashboards.thresholds import Thresholds, WorkflowThresholds
from tachograph.metrics.self_metrics import DROPPED, EVENTS, QUEUE_LENGTH, SERIES_LIMITED
from tachograph.metrics.specs import (
    LAST_SUCCESS,
    OLDEST_RUNNING,
    STEP_ATTEMPTS,
    STEP_RETRIES,
)
from tachograph_exporter.dashboard_files import RUNBOOKS


def _alert(name: str, expr: str, pending_for: str, severity: str, summary: str, description: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": pending_for,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description, "runbook_url": f"{RUNBOOKS}/{name}.md"},
    }


def alerts(thresholds: Thresholds) -> list[dict[str, Any]]:
    """The alert groups, as Prometheus' rule files hold them."""
    rules: list[dict[str, Any]] = []
    for build in (_error_budget, _stuck, _stale, _regression, _retries, _queue_wait, _cost):
        for matcher, limits in thresholds.by_matcher():
            rules += build(matcher, limits)
    return [
        {"name": "tachograph-workflows", "interval": "30s", "rules": rules},
        {"name": "tachograph-self-monitoring", "interval": "30s", "rules": _self_monitoring()},
    ]


_WORKFLOW: Final = "{{ $labels.workflow }} ({{ $labels.workspace }})"


def _error_budget(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    def burning(short: str, long: str, factor: float) -> str:
        windows = [selector(matcher, f'window="{window}"') for window in (short, long)]
        burn = [f"sum by ({BY_WORKFLOW}) ({BURN}{where})" for where in windows]
        return f"({burn[0]} > {factor:g} and {burn[1]} > {factor:g} and {_failures(windows[1])})"

    target = f"{100 * limits.success_target:g} %"
    return [
        _alert(
            "WorkflowErrorBudgetBurnFast",
            f"{burning('5m', '1h', 14.4)} or {burning('30m', '6h', 6)}",
            "2m",
            "critical",
            f"{_WORKFLOW} is failing far more often than its target allows",
            f"Executions fail {{{{ $value | humanize }}}} times as often as the target of {target} allows. At this "
            "rate the 30-day error budget is gone within days.",
        ),
        _alert(
            "WorkflowErrorBudgetBurnSlow",
            f"{burning('2h', '1d', 3)} or {burning('6h', '3d', 1)}",
            "15m",
            "warning",
            f"{_WORKFLOW} is failing more often than its target allows",
            f"Executions fail {{{{ $value | humanize }}}} times as often as the target of {target} allows.",
        ),
    ]


def _failures(where: str) -> str:
    """Executions that failed in a window: at least two, because a single failure proves little."""
    return f"sum by ({BY_WORKFLOW}) ({JUDGED_COUNT}{where} * {ERROR_RATIO}{where}) >= 1.9"


def _stuck(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    age = f"(time() - min by ({BY_WORKFLOW}) ({OLDEST_RUNNING.name}{selector(matcher)}))"
    usual = f"{USUAL_P95}{selector(matcher)}"
    return [
        _alert(
            "WorkflowRunStuck",
            f"{age} > {limits.stuck_factor:g} * {usual} and {age} > {limits.stuck_seconds:g}",
            "1m",
            "warning",
            f"{_WORKFLOW}: a run is taking far longer than usual",
            "The oldest running execution has been running for {{ $value | humanizeDuration }}, more than "
            f"{limits.stuck_factor:g} times the usual 95th percentile.",
        )
    ]


def _stale(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    age = f"(time() - max by ({BY_WORKFLOW}) ({LAST_SUCCESS.name}{selector(matcher)}))"
    return [
        _alert(
            "WorkflowNoSuccess",
            f"{age} > {limits.stale_seconds:g}",
            "5m",
            "warning",
            f"{_WORKFLOW} has not succeeded for too long",
            "The last success was {{ $value | humanizeDuration }} ago.",
        )
    ]


def _regression(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    now = f"{STEP_P95}{selector(matcher)}"
    before = f"{STEP_P95}{selector(matcher)} offset 1w"
    return [
        _alert(
            "WorkflowStepRegression",
            f"{now} > {limits.regression_factor:g} * ({before}) and {now} - ({before}) > {limits.regression_seconds:g}",
            "15m",
            "warning",
            "{{ $labels.step }} of " + _WORKFLOW + " is slower than a week ago",
            "The 95th percentile of the last hour is {{ $value | humanizeDuration }}, more than "
            f"{limits.regression_factor:g} times the value of a week ago.",
        )
    ]


def _retries(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    by = f"{BY_WORKFLOW}, step"
    retries = increase(STEP_RETRIES, selector(matcher), "15m", by)
    attempts = increase(STEP_ATTEMPTS, selector(matcher), "15m", by)
    return [
        _alert(
            "WorkflowRetryStorm",
            f"{retries} / {attempts} > {limits.retry_ratio:g} and {retries} >= {limits.retry_count:g}",
            "5m",
            "warning",
            "{{ $labels.step }} of " + _WORKFLOW + " keeps retrying",
            "{{ $value | humanizePercentage }} of its attempts in the last 15 minutes were retried.",
        )
    ]


def _queue_wait(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    now = f"{QUEUE_MEAN}{selector(matcher)}"
    usual = f"avg_over_time({QUEUE_MEAN}{selector(matcher)}[1d])"
    return [
        _alert(
            "WorkflowQueueWaitGrowing",
            f"{now} > {limits.queue_factor:g} * {usual} and {now} > {limits.queue_seconds:g}",
            "10m",
            "warning",
            f"{_WORKFLOW}: steps wait ever longer for a slot",
            "{{ $value | humanizeDuration }} on average, more than "
            f"{limits.queue_factor:g} times the mean of the last 24 hours.",
        )
    ]


def _cost(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    now = f"{COST_HOUR}{selector(matcher)}"
    usual = f"avg_over_time({COST_HOUR}{selector(matcher)}[7d])"
    return [
        _alert(
            "WorkflowCostJump",
            f"{now} > {limits.cost_factor:g} * {usual} and {now} > {limits.cost_usd:g}",
            "5m",
            "warning",
            f"{_WORKFLOW} costs far more than usual",
            f"${{{{ $value | humanize }}}} in the last hour, more than {limits.cost_factor:g} times the "
            "hourly mean of the last 7 days.",
        )
    ]


def _self_monitoring() -> list[dict[str, Any]]:
    instance = "{{ $labels.instance }}"
    return [
        _alert(
            "TachographEventsLost",
            f"sum by (job, instance, listener, reason) (increase({DROPPED.name}[5m])) > 0",
            "0m",
            "critical",
            f"{instance} is losing events",
            "{{ $value | humanize }} events did not reach the listener {{ $labels.listener }} in the last 5 minutes "
            "({{ $labels.reason }}). What it shows is incomplete.",
        ),
        _alert(
            "TachographQueueGrowing",
            f"max by (job, instance, listener) ({QUEUE_LENGTH.name}) > 50000",
            "2m",
            "warning",
            f"{instance}: the listener {{{{ $labels.listener }}}} cannot keep up",
            "{{ $value | humanize }} events are queued for it. Once the queue is full, events are lost.",
        ),
        _alert(
            "TachographSeriesLimitReached",
            f"sum by (job, instance, metric) (increase({SERIES_LIMITED.name}[15m])) > 0",
            "0m",
            "warning",
            f"{instance}: {{{{ $labels.metric }}}} has reached its series limit",
            "New label sets are counted as `other`. Something generates unbounded label values.",
        ),
        _alert(
            "TachographDown",
            'up{job="tachograph"} == 0',
            "2m",
            "critical",
            f"{instance} cannot be scraped",
            "Prometheus has not reached it for two minutes. The state of its workflows is unknown.",
        ),
        _alert(
            "TachographSilent",
            f'absent({EVENTS.name}{{job="tachograph"}})',
            "5m",
            "critical",
            "No Tachograph is being scraped",
            "Prometheus has no series of any instance: the target is missing from its configuration or has been "
            "down for long.",
        ),
    ]
