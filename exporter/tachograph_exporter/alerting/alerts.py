"""Alerts for Prometheus, with the limits of `thresholds.toml`.

Burn rates: https://sre.google/workbook/alerting-on-slos/ (multi-window, multi-burn-rate). Only executions that
completed or failed count; cancelled executions do not count either way.
"""

from __future__ import annotations

from typing import Any, Final

from tachograph.metrics.self_metrics import (
    DROPPED,
    EVENTS,
    NOTICES,
    QUEUE_LENGTH,
    REFUSED,
    SERIES_LIMITED,
    WORKFLOW_METRICS_SHOWN,
)
from tachograph.metrics.specs import (
    EXPECTED_START,
    FLAPPING,
    LATE,
    OLDEST_RUNNING,
    OVERDUE,
    QUEUE_OLDEST,
    STEP_OVERDUE,
    GaugeSpec,
)
from tachograph_exporter.alerting.promql import selector, total
from tachograph_exporter.alerting.recording_rules import (
    ATTEMPTS,
    BURN,
    BY_STEP,
    BY_WORKFLOW,
    COST_HIGHER,
    FAILED_COUNT,
    JUDGED_COUNT,
    QUEUE_LONGER,
    RETRIES,
    STEP_SLOWER,
    USUAL_GAP,
    USUAL_P95,
    last_failure,
    last_success,
    sum_of,
)
from tachograph_exporter.alerting.thresholds import Thresholds, WorkflowThresholds

QUEUE_OLDEST_SECONDS: Final = 900
"""How long a message may wait in the queue of an engine."""
RUNBOOKS: Final = "https://github.com/tachograph/tachograph/blob/main/docs/runbooks"
"""Base URL of the runbooks that the generated rules link to."""


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
    for build in (
        _error_budget,
        _last_run_failed,
        _flapping,
        _stuck,
        _stale,
        _regression,
        _retries,
        _queue_wait,
        _cost,
    ):
        for matcher, limits in thresholds.by_matcher():
            rules += build(matcher, limits)
    rules += _expected() + _queues()
    return [
        {"name": "tachograph-workflows", "interval": "30s", "rules": rules},
        {"name": "tachograph-self-monitoring", "interval": "30s", "rules": _self_monitoring()},
    ]


_WORKFLOW: Final = "{{ $labels.workflow }} ({{ $labels.workspace }})"


def _error_budget(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    def burning(short: str, long: str, factor: float) -> str:
        burn = [total(BURN + _window(matcher, window), BY_WORKFLOW) for window in (short, long)]
        # Of few runs, one failure exceeds any rate: `WorkflowLastRunFailed` is about those.
        failed, judged = (total(name + _window(matcher, long), BY_WORKFLOW) for name in (FAILED_COUNT, JUDGED_COUNT))
        enough = f"{failed} >= 2 and {judged} >= {limits.burn_runs:g}"
        return f"({burn[0]} > {factor:g} and {burn[1]} > {factor:g} and {enough})"

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


_RETIRED_SECONDS: Final = 30 * 86_400
"""A workflow without a schedule that has not run for so long since it failed is no longer used."""


def _lately_shown(spec: GaugeSpec) -> str:
    """What the service that evaluates expectations last said. Bridges restarts and takeovers."""
    return f"max by ({BY_WORKFLOW}) (last_over_time({spec.name}[5m]))"


def _unless(spec: GaugeSpec, comparison: str = "") -> str:
    """Leaves out workflows of which the service shows this."""
    return f"unless on ({BY_WORKFLOW}) {_lately_shown(spec)}{comparison}"


def _window(matcher: str, window: str) -> str:
    return selector(matcher, f'window="{window}"')


def _last_run_failed(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    failure, success = last_failure("5m", matcher), last_success("5m", matcher)
    # From gauges, so that no failure is missed: it counts for as long as nothing has succeeded after it.
    ago = f"time() - ({failure} > {success} or {failure} unless {success})"
    is_used = f"{ago} < {_RETIRED_SECONDS} or {ago} and on ({BY_WORKFLOW}) {_lately_shown(EXPECTED_START)}"
    return [
        _alert(
            "WorkflowLastRunFailed",
            f"({is_used}) {_unless(FLAPPING, ' == 1')}",
            f"{limits.last_failed_seconds:g}s",
            "warning",
            f"The last run of {_WORKFLOW} failed",
            "It failed {{ $value | humanizeDuration }} ago, and no run has succeeded since. The alert ends with the "
            "next success.",
        )
    ]


def _flapping(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    return [
        _alert(
            "WorkflowFlapping",
            f"max by ({BY_WORKFLOW}) ({FLAPPING.name}{selector(matcher)}) == 1",
            f"{limits.last_failed_seconds:g}s",
            "warning",
            f"{_WORKFLOW} fails and succeeds by turns",
            "It failed again soon after it had recovered from a failure. The alert ends when it has succeeded three "
            "times in a row.",
        )
    ]


def _expected() -> list[dict[str, Any]]:
    """What the service found, with the schedules, graces and deadlines that it knows."""
    due, late, overdue = (f"max by ({BY_WORKFLOW}) ({spec.name})" for spec in (EXPECTED_START, LATE, OVERDUE))
    return [
        _alert(
            "WorkflowLate",
            f"time() - {due} and {late} == 1",
            "1m",
            "warning",
            f"{_WORKFLOW} has not started",
            "It was due {{ $value | humanizeDuration }} ago. The alert ends when it starts.",
        ),
        _alert(
            "WorkflowOverdue",
            f"{overdue} == 1",
            "1m",
            "warning",
            f"{_WORKFLOW} runs past its deadline",
            "A run is taking longer than it may. The alert ends when it does.",
        ),
        _alert(
            "WorkflowStepOverdue",
            f"max by ({BY_STEP}) ({STEP_OVERDUE.name}) == 1",
            "1m",
            "warning",
            "{{ $labels.step }} of " + _WORKFLOW + " runs for too long",
            "The step is running past its deadline or, if it has none, for far longer than usual. The alert ends when "
            "it ends.",
        ),
    ]


def _stuck(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    # The minute bridges a takeover by another service. The alert waits for longer than that, so it does not fire
    # about a run that has just ended.
    oldest = f"min by ({BY_WORKFLOW}) (last_over_time({OLDEST_RUNNING.name}{selector(matcher)}[1m]))"
    usual = f"last_over_time({USUAL_P95}{selector(matcher)}[15m])"
    known = f"clamp_min({limits.stuck_factor:g} * {usual}, {limits.stuck_seconds:g})"
    limit = f"({known} or {oldest} * 0 + {limits.stuck_unknown_seconds:g})"
    return [
        _alert(
            "WorkflowRunStuck",
            # A deadline says what is too long, whatever is usual.
            f"(time() - {oldest}) > {limit} {_unless(OVERDUE)}",
            "2m",
            "warning",
            f"{_WORKFLOW}: a run is taking far longer than usual",
            "The oldest running execution has been running for {{ $value | humanizeDuration }}, more than "
            f"{limits.stuck_factor:g} times the usual 95th percentile.",
        )
    ]


def _stale(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    now = last_success("5m", matcher)
    exceptions = ""
    if limits.stale_seconds:
        limit = f"{limits.stale_seconds:g}"
    else:
        # A schedule says when it should run, and `WorkflowLate` when it has not.
        exceptions = f" {_unless(EXPECTED_START)}"
        usual = f"last_over_time({USUAL_GAP}{selector(matcher)}[15m])"
        learnt = f"clamp_min({limits.stale_factor:g} * {usual}, {limits.stale_min_seconds:g})"
        # A week shows every rhythm up to once a week.
        a_week_old = last_success("1h", matcher, offset="1w")
        limit = f"(({learnt} and {a_week_old}) or {now} * 0 + {limits.stale_unknown_seconds:g})"
    return [
        _alert(
            "WorkflowNoSuccess",
            f"(time() - {now}) > {limit}{exceptions}",
            "5m",
            "warning",
            f"{_WORKFLOW} has not succeeded for too long",
            "The last success was {{ $value | humanizeDuration }} ago.",
        )
    ]


def _lately(series: str, matcher: str) -> str:
    """What `unusual` said when the workflow last ran, for up to a day: that of a nightly run is still seen by day."""
    return f"last_over_time({series}{selector(matcher)}[1d]) > 0"


def _regression(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    return [
        _alert(
            "WorkflowStepRegression",
            _lately(STEP_SLOWER, matcher),
            "15m",
            "warning",
            "{{ $labels.step }} of " + _WORKFLOW + " is slower than usual",
            "In the last hour it ran, it took {{ $value | humanizeDuration }} on average, more than "
            f"{limits.regression_factor:g} times what it usually takes.",
        )
    ]


def _retries(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    def storm(window: str) -> str:
        retries, attempts = (sum_of(f"{name}:increase{selector(matcher)}", window, BY_STEP)
                             for name in (RETRIES, ATTEMPTS))  # fmt: skip
        return f"({retries} / {attempts} > {limits.retry_ratio:g} and {retries} >= {limits.retry_count:g})"

    return [
        _alert(
            "WorkflowRetryStorm",
            f"{storm('15m')} or {storm('1d')}",
            "5m",
            "warning",
            "{{ $labels.step }} of " + _WORKFLOW + " keeps retrying",
            "{{ $value | humanizePercentage }} of its attempts were retried, in the last 15 minutes or the last day.",
        )
    ]


def _queue_wait(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    return [
        _alert(
            "WorkflowQueueWaitGrowing",
            _lately(QUEUE_LONGER, matcher),
            "10m",
            "warning",
            f"{_WORKFLOW}: steps wait longer than usual for a slot",
            "{{ $value | humanizeDuration }} on average when it last ran, more than "
            f"{limits.queue_factor:g} times the usual wait.",
        )
    ]


def _cost(matcher: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    return [
        _alert(
            "WorkflowCostJump",
            _lately(COST_HIGHER, matcher),
            "5m",
            "warning",
            f"{_WORKFLOW} costs far more than usual",
            f"${{{{ $value | humanize }}}} in the last hour it ran, more than {limits.cost_factor:g} times what "
            "such an hour usually costs.",
        )
    ]


def _queues() -> list[dict[str, Any]]:
    return [
        _alert(
            "WorkflowQueueOldestMessage",
            f"time() - min by (engine, broker, queue) ({QUEUE_OLDEST.name}) > {QUEUE_OLDEST_SECONDS}",
            "2m",
            "warning",
            "{{ $labels.queue }} ({{ $labels.engine }}): nobody takes the messages",
            "The oldest message has waited for {{ $value | humanizeDuration }}.",
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
            "TachographRecordsRefused",
            f"sum by (job, instance, kind) (increase({REFUSED.name}[15m])) > 0",
            "0m",
            "warning",
            f"{instance} set records aside",
            "The store refused {{ $value | humanize }} records ({{ $labels.kind }}) in the last 15 minutes. Their "
            "neighbours are stored; `tachograph refused list` shows them with the reason.",
        ),
        _alert(
            "TachographNoticesNotSent",
            f'sum by (job, instance, outcome) (increase({NOTICES.name}{{outcome=~"failed|unknown"}}[15m])) > 0',
            "0m",
            "warning",
            f"{instance} could not tell somebody",
            "{{ $value | humanize }} messages about notices were given up, or may not have arrived, in the last "
            "15 minutes ({{ $labels.outcome }}). `tachograph notices list` shows which, and why.",
        ),
        _alert(
            "TachographWorkflowMetricsMissing",
            f"max by (job) ({WORKFLOW_METRICS_SHOWN.name}) == 0",
            "2m",
            "critical",
            "No Tachograph shows the workflow metrics",
            "Services are up, but none of them has shown the metrics of its database for two minutes. The alerts about "
            "workflows are silent meanwhile.",
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
