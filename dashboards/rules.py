"""Recording rules and alerts for Prometheus, from `thresholds.toml`.

Burn rates: https://sre.google/workbook/alerting-on-slos/ (multi-window, multi-burn-rate). Only executions that
completed or failed are judged; cancelled ones count neither way.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from dashboards.queries import BAD, JUDGED, counted, increase, quantile, selector
from tachograph.exporter.boards import RUNBOOKS
from tachograph.instrumentation.health import DROPPED, EVENTS, QUEUE_LENGTH, SERIES_LIMITED
from tachograph.instrumentation.metrics import (
    EXECUTION_DURATION,
    LAST_SUCCESS,
    OLDEST_RUNNING,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_DURATION,
    STEP_RETRIES,
    STEP_WAIT,
)

HERE: Final = Path(__file__).parent
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
ERROR_RATIO: Final = "workflow:execution_errors:ratio"
BURN: Final = "workflow:execution_errors:burn_rate"
BUDGET: Final = "workflow:execution_error_budget:left_ratio"
JUDGED_COUNT: Final = "workflow:executions_judged:increase"
USUAL: Final = "workflow:execution_duration_seconds:p95_7d"
STEP_P95: Final = "workflow_step:duration_seconds:p95_1h"
QUEUE_MEAN: Final = "workflow:step_queue_wait_seconds:mean_15m"
COST_HOUR: Final = "workflow:step_cost_usd:increase_1h"
_OF: Final = "workspace, workflow"


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is expected of a workflow; see `thresholds.toml`."""

    success_target: float
    stuck_factor: float
    stuck_seconds: float
    stale_seconds: float
    regression_factor: float
    regression_seconds: float
    retry_ratio: float
    retry_count: float
    queue_factor: float
    queue_seconds: float
    cost_factor: float
    cost_usd: float


class Thresholds(msgspec.Struct, frozen=True):
    """What is expected of all workflows, and of some in particular."""

    default: Expected
    workflows: Mapping[str, Expected] = {}

    def each(self) -> Iterator[tuple[str, Expected]]:
        """A matcher on the label ``workflow`` for each set of expectations; together they match every workflow once."""
        if self.workflows:
            yield f'workflow!~"{"|".join(map(_escaped, sorted(self.workflows)))}"', self.default
            for name, expected in sorted(self.workflows.items()):
                yield f'workflow="{name}"', expected
        else:
            yield "", self.default


def _escaped(name: str) -> str:
    return "".join("\\\\" + c if c in r".*+?()[]{}|^$\\" else c for c in name)


def read_thresholds(path: Path = HERE / "thresholds.toml") -> Thresholds:
    """The file's expectations. Raises `msgspec.ValidationError` for unknown names and wrong values."""
    document = tomllib.loads(path.read_text())
    default = document["default"]
    workflows = {name: {**default, **own} for name, own in document.get("workflow", {}).items()}
    return msgspec.convert({"default": default, "workflows": workflows}, Thresholds)


def recording_rules(thresholds: Thresholds) -> list[dict[str, Any]]:
    """Groups of recording rules."""
    ratios: list[dict[str, Any]] = []
    for window in WINDOWS:
        bad = counted(EXECUTION_DURATION, selector(BAD), window, _OF)
        judged = counted(EXECUTION_DURATION, selector(JUDGED), window, _OF)
        ratios += [
            {"record": JUDGED_COUNT, "labels": {"window": window}, "expr": judged},
            # Where nothing failed there is no series of failures: that is 0, and not nothing.
            {"record": ERROR_RATIO, "labels": {"window": window}, "expr": f"({bad} or {judged} * 0) / ({judged} > 0)"},
        ]
    for matcher, expected in thresholds.each():
        allowed = f"{1 - expected.success_target:.6g}"
        ratios.append({"record": BURN, "expr": f"{ERROR_RATIO}{selector(matcher)} / {allowed}"})
        month = selector(matcher, 'window="30d"')
        # The burn rate of the whole 30 days is the part of the budget that is spent.
        ratios.append({"record": BUDGET, "expr": f"1 - sum by ({_OF}) ({ERROR_RATIO}{month}) / {allowed}"})
    queue = selector('reason="queue"')
    usual = [
        {"record": USUAL, "expr": quantile(0.95, EXECUTION_DURATION, selector('status="completed"'), "7d", _OF)},
        {"record": STEP_P95, "expr": quantile(0.95, STEP_DURATION, "", "1h", f"{_OF}, step")},
        {"record": QUEUE_MEAN, "expr": _mean(queue, "15m")},
        {"record": COST_HOUR, "expr": increase(STEP_COST, "", "1h", _OF)},
    ]
    return [
        {"name": "tachograph-slo", "interval": "30s", "rules": ratios},
        {"name": "tachograph-usual", "interval": "60s", "rules": usual},
    ]


def _mean(where: str, window: str) -> str:
    name = STEP_WAIT.name
    native = f"sum by ({_OF}) (histogram_sum(rate({name}{where}[{window}])))"
    sums = f"({native} or sum by ({_OF}) (rate({name}_sum{where}[{window}])))"
    count = f"sum by ({_OF}) (histogram_count(rate({name}{where}[{window}])))"
    counts = f"({count} or sum by ({_OF}) (rate({name}_count{where}[{window}])))"
    return f"{sums} / ({counts} > 0)"


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
        {"name": "tachograph-itself", "interval": "30s", "rules": _itself()},
    ]


_WHO: Final = "{{ $labels.workflow }} ({{ $labels.workspace }})"


def _burning(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    def both(short: str, long: str, factor: float) -> str:
        at = [selector(matcher, f'window="{window}"') for window in (short, long)]
        burn = [f"sum by ({_OF}) ({BURN}{where})" for where in at]
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
    return f"sum by ({_OF}) ({JUDGED_COUNT}{where} * {ERROR_RATIO}{where}) >= 1.9"


def _stuck(matcher: str, expected: Expected) -> list[dict[str, Any]]:
    age = f"(time() - min by ({_OF}) ({OLDEST_RUNNING.name}{selector(matcher)}))"
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
    age = f"(time() - max by ({_OF}) ({LAST_SUCCESS.name}{selector(matcher)}))"
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
    by = f"{_OF}, step"
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


def _itself() -> list[dict[str, Any]]:
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
