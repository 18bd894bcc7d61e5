"""Recording rules that the alerts and dashboards read.

Workflows run a thousand times an hour or once a week, so two things differ from rules about requests. First, every
single execution counts: `rate` and `increase` estimate what happened at the edges of their window, and they miss what
happened while nothing was scraped. `increments` counts exactly. Second, "the last hour" of a weekly workflow is empty:
whatever describes a workflow is recorded only while there is something to describe, and `unusual` compares an hour in
which it ran with other hours in which it ran.

Long windows are sums of short recordings: nothing here reads raw series over more than a few hours, except the time of
the last success.
"""

from __future__ import annotations

from typing import Any, Final

from tachograph.metrics.specs import (
    EXECUTION_DURATION,
    LAST_FAILURE,
    LAST_SUCCESS,
    STEP_ATTEMPTS,
    STEP_COST,
    STEP_DURATION,
    STEP_RETRIES,
    STEP_WAIT,
    HistogramSpec,
    MetricSpec,
)
from tachograph_exporter.alerting.promql import (
    BAD,
    GOOD,
    JUDGED,
    count_rate,
    quantile,
    selector,
    sum_rate,
    total,
)
from tachograph_exporter.alerting.thresholds import Thresholds, WorkflowThresholds

BY_WORKFLOW: Final = "workspace, workflow"
BY_STEP: Final = f"{BY_WORKFLOW}, step"
SHORT_WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d")
"""Windows that are sums of single increments."""
LONG_WINDOWS: Final = {"3d": "1h", "30d": "1h"}
"""Windows that are sums of shorter windows."""
WINDOWS: Final = (*SHORT_WINDOWS, *LONG_WINDOWS)

ENDED: Final = "workflow:executions_ended"
ATTEMPTS: Final = "workflow_step:attempts"
RETRIES: Final = "workflow_step:retries"
COST: Final = "workflow:step_cost_usd"
JUDGED_COUNT: Final = "workflow:executions_judged:increase"
FAILED_COUNT: Final = "workflow:executions_failed:increase"
ERROR_RATIO: Final = "workflow:execution_errors:ratio"
BURN: Final = "workflow:execution_errors:burn_rate"
BUDGET_ALLOWED: Final = "workflow:execution_error_budget:allowed_failures"
BUDGET_SPENT: Final = "workflow:execution_error_budget:spent_ratio"
TARGET: Final = "workflow:execution_success_target:ratio"

DURATION_P95: Final = "workflow:execution_duration_seconds:p95_1h"
USUAL_P95: Final = "workflow:execution_duration_seconds:usual_p95"
SUCCESS_GAP: Final = "workflow:execution_success_gap_seconds:max_1h"
USUAL_GAP: Final = "workflow:execution_success_gap_seconds:max_15d"
STEP_MEAN: Final = "workflow_step:duration_seconds:mean_1h"
STEP_USUAL: Final = "workflow_step:duration_seconds:usual_mean_1h"
STEP_SLOWER: Final = "workflow_step:duration_seconds:unusual"
QUEUE_MEAN: Final = "workflow:step_queue_wait_seconds:mean_1h"
QUEUE_USUAL: Final = "workflow:step_queue_wait_seconds:usual_mean_1h"
QUEUE_LONGER: Final = "workflow:step_queue_wait_seconds:unusual"
COST_HOUR: Final = "workflow:step_cost_usd:increase_1h"
COST_USUAL: Final = "workflow:step_cost_usd:usual_1h"
COST_HIGHER: Final = "workflow:step_cost_usd:unusual"

_FRACTIONS: Final = {"5m": "4m59s", "15m": "14m59s", "30m": "29m59s", "1h": "59m59s", "2h": "1h59m59s",
                     "6h": "5h59m59s", "1d": "23h59m59s"}  # fmt: skip
"""Ranges include both ends in Prometheus 2; without this second, adjacent windows would share an increment."""


def recording_rules(thresholds: Thresholds) -> list[dict[str, Any]]:
    """The recording rule groups, as Prometheus' rule files hold them."""
    return [
        {"name": "tachograph-slo", "interval": "1m", "rules": _objectives(thresholds)},
        {"name": "tachograph-steps", "interval": "1m", "rules": _steps()},
        {"name": "tachograph-usual", "interval": "5m", "rules": _usual(thresholds)},
    ]


def sum_of(increase: str, window: str, by: str) -> str:
    """What `increments` counted in a window, summed by labels. No series where nothing happened."""
    name, brace, where = increase.partition("{")
    return total(f"sum_over_time({name}{brace}{where}[{_FRACTIONS[window]}])", by)


def increments(name: str, now: str, first: str, by: str) -> list[dict[str, Any]]:
    """Rules that count exactly by how much counters rise.

    ``{name}:total`` copies the counters; ``now`` is the expression. ``{name}:increase`` is the difference to the copy
    before, by the labels ``by``, and has no sample where nothing rose. Any sum of it is therefore exact, however often
    it is evaluated. What was counted while nothing was scraped (a restart, a takeover, an outage of up to a day) is
    seen by the first evaluation after that. A new series counts from its first value, which ``first`` finds. A counter
    that has become smaller was reset and counts from 0.
    """
    copied = f"{name}:total"
    # `offset 1ms`: the copies before this evaluation's.
    before = f"(last_over_time({copied}[1d] offset 1ms) or {first} or {copied})"
    return [
        {"record": copied, "expr": now},
        {"record": f"{name}:increase", "expr": f"{total(f'({copied} - {before}) >= 0 or {copied}', by)} > 0"},
    ]


def _counter_increments(name: str, spec: MetricSpec, by: str) -> list[dict[str, Any]]:
    return increments(name, spec.name, f"min_over_time({spec.name}[2m])", by)


def _histogram_increments(name: str, spec: HistogramSpec, where: str, by: str) -> list[dict[str, Any]]:
    native, classic = f"histogram_count({spec.name}{where})", f"{spec.name}_count{where}"
    # Functions over time do not read native histograms in every version of Prometheus; a subquery of counts does.
    first = f"min_over_time({native}[2m:5s]) or min_over_time({classic}[2m])"
    return increments(name, f"{native} or {classic}", first, by)


def _objectives(thresholds: Thresholds) -> list[dict[str, Any]]:
    increase = f"{ENDED}:increase"
    rules = _histogram_increments(ENDED, EXECUTION_DURATION, selector(JUDGED), f"{BY_WORKFLOW}, status")
    for window in WINDOWS:
        if window in SHORT_WINDOWS:
            judged = sum_of(increase, window, BY_WORKFLOW)
            failed = sum_of(f"{increase}{selector(BAD)}", window, BY_WORKFLOW)
        else:
            judged, failed = (_long(name, window) for name in (JUDGED_COUNT, FAILED_COUNT))
        where = selector(f'window="{window}"')
        rules += [
            {"record": JUDGED_COUNT, "labels": {"window": window}, "expr": judged},
            # Without failures there is no series to divide; the number is then 0, not absent.
            {"record": FAILED_COUNT, "labels": {"window": window},
             "expr": f"{failed} or {total(JUDGED_COUNT + where, BY_WORKFLOW)} * 0"},
        ]  # fmt: skip
    rules.append({"record": ERROR_RATIO, "expr": f"{FAILED_COUNT} / {JUDGED_COUNT}"})
    for matcher, limits in thresholds.by_matcher():
        allowed = f"{1 - limits.success_target:.6g}"
        rules.append({"record": BURN, "expr": f"{ERROR_RATIO}{selector(matcher)} / {allowed}"})
        month = selector(matcher, 'window="30d"')
        rules += [
            {"record": TARGET, "expr": f"{total(JUDGED_COUNT + month, BY_WORKFLOW)} * 0 + {limits.success_target:.6g}"},
            {"record": BUDGET_ALLOWED, "expr": f"{total(JUDGED_COUNT + month, BY_WORKFLOW)} * {allowed}"},
            # Where less than one failure is allowed, a fraction of that says nothing: there is no series.
            {"record": BUDGET_SPENT, "expr": f"{total(FAILED_COUNT + month, BY_WORKFLOW)} / "
                                             f"({BUDGET_ALLOWED}{selector(matcher)} >= 1)"},
        ]  # fmt: skip
    return rules


def _long(name: str, window: str) -> str:
    """A long window as the sum of shorter ones that follow each other. Its end is up to one of them ago.

    Until the first of them is over, the day stands for it.
    """
    part = LONG_WINDOWS[window]
    parts = name + selector(f'window="{part}"')
    day = name + selector('window="1d"')
    return f"{total(f'sum_over_time({parts}[{window}:{part}])', BY_WORKFLOW)} or {total(day, BY_WORKFLOW)}"


def _steps() -> list[dict[str, Any]]:
    return [
        *_counter_increments(ATTEMPTS, STEP_ATTEMPTS, BY_STEP),
        *_counter_increments(RETRIES, STEP_RETRIES, BY_STEP),
        *_counter_increments(COST, STEP_COST, BY_WORKFLOW),
    ]


def _usual(thresholds: Thresholds) -> list[dict[str, Any]]:
    completed = selector(GOOD)
    rules = [
        # The comparison leaves out hours in which nothing ended: their quantile is NaN.
        {"record": DURATION_P95,
         "expr": f"{quantile(0.95, EXECUTION_DURATION, completed, '1h', BY_WORKFLOW)} >= 0"},
        # A fortnight and a day hold two runs of a weekly workflow; a tenth of the hours may have been out of the
        # ordinary.
        {"record": USUAL_P95, "expr": f"quantile_over_time(0.9, {DURATION_P95}[15d:1h])"},
        {"record": SUCCESS_GAP, "expr": f"({last_success('5m')} - {last_success('6h', offset='1h')}) > 0"},
        {"record": USUAL_GAP, "expr": f"max_over_time({SUCCESS_GAP}[15d:1h])"},
        {"record": STEP_MEAN, "expr": _mean(STEP_DURATION, completed, "1h", BY_STEP)},
        {"record": QUEUE_MEAN, "expr": _mean(STEP_WAIT, selector('reason="queue"'), "1h", BY_WORKFLOW)},
        {"record": COST_HOUR, "expr": sum_of(f"{COST}:increase", "1h", BY_WORKFLOW)},
    ]  # fmt: skip
    rules += [
        {"record": STEP_USUAL, "expr": _usually(STEP_MEAN)},
        {"record": QUEUE_USUAL, "expr": _usually(QUEUE_MEAN)},
        {"record": COST_USUAL, "expr": _usually(COST_HOUR)},
    ]
    for matcher, limits in thresholds.by_matcher():
        rules += _unusual(selector(matcher), limits)
    return rules


def last_success(within: str, matcher: str = "", offset: str = "") -> str:
    """When an execution last completed, as last scraped within this time. Bridges restarts and takeovers."""
    return _last(LAST_SUCCESS, within, matcher, offset)


def last_failure(within: str, matcher: str = "") -> str:
    """When an execution last failed, timed out or was lost, as `last_success` says when one completed."""
    return _last(LAST_FAILURE, within, matcher)


def _last(spec: MetricSpec, within: str, matcher: str, offset: str = "") -> str:
    back = f" offset {offset}" if offset else ""
    return f"max by ({BY_WORKFLOW}) (last_over_time({spec.name}{selector(matcher)}[{within}]{back}))"


def _mean(spec: HistogramSpec, where: str, window: str, by: str) -> str:
    """The mean of what was observed; no series where nothing was."""
    return f"{sum_rate(spec, where, window, by)} / ({count_rate(spec, where, window, by)} > 0)"


def _usually(hourly: str) -> str:
    """What an hour of a workflow is like, from a series of hours that has no samples where there is nothing to tell."""
    # The fortnight up to yesterday, without the hours in which the workflow did not run.
    usual = f"quantile_over_time(0.5, {hourly}[14d:1h] offset 1d)"
    # Some hours of the week are busier than others.
    last_week = f"max_over_time({hourly}[3h] offset 166h30m)"
    yesterday = f"max_over_time({hourly}[3h] offset 22h30m)"
    same_hour = f"({last_week} or {yesterday})"
    # The first hours that a workflow is known say little.
    known = f"last_over_time({hourly}[14d:1h] offset 27h)"
    return f"(({usual} > {same_hour}) or {same_hour} or {usual}) and {known}"


def _unusual(where: str, limits: WorkflowThresholds) -> list[dict[str, Any]]:
    """Rules that copy an hour's value if it is unusual, and say 0 if it is not; no sample where nothing is known."""
    slower = (f"({STEP_MEAN}{where} > bool {limits.regression_factor:g} * {STEP_USUAL}) * "
              f"({STEP_MEAN}{where} - {STEP_USUAL} > bool {limits.regression_seconds:g})")  # fmt: skip
    longer = (f"({QUEUE_MEAN}{where} > bool {limits.queue_factor:g} * {QUEUE_USUAL}) * "
              f"({QUEUE_MEAN}{where} > bool {limits.queue_seconds:g})")  # fmt: skip
    higher = (f"({COST_HOUR}{where} > bool {limits.cost_factor:g} * {COST_USUAL}) * "
              f"({COST_HOUR}{where} > bool {limits.cost_usd:g})")  # fmt: skip
    return [
        {"record": STEP_SLOWER, "expr": f"{STEP_MEAN}{where} * {slower}"},
        {"record": QUEUE_LONGER, "expr": f"{QUEUE_MEAN}{where} * {longer}"},
        {"record": COST_HIGHER, "expr": f"{COST_HOUR}{where} * {higher}"},
    ]
