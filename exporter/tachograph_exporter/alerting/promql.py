"""PromQL built from the metric specs. The queries work with native and with classic histograms.

A native histogram ``x`` is one series without ``x_bucket`` and ``x_count``; a classic one has only those. Every query
therefore asks both ways, joined by ``or``; one side is always empty.
"""

from __future__ import annotations

from typing import Final

from tachograph.metrics.specs import EXECUTION_DURATION, HistogramSpec, MetricSpec

RATE: Final = "$__rate_interval"
"""Grafana's window for rates: at least four scrapes."""
RANGE: Final = "$__range"
"""The time range of the dashboard."""
BAD: Final = 'status=~"failed|timeout|lost"'
GOOD: Final = 'status="completed"'
JUDGED: Final = 'status=~"completed|failed|timeout|lost"'
"""Executions that count for or against a success rate. Cancelled executions do neither."""


def selector(*matchers: str) -> str:
    """Label matchers as a selector: ``{a="b", c="d"}``."""
    return "{" + ", ".join(matcher for matcher in matchers if matcher) + "}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def total(expression: str, by: str = "") -> str:
    """The sum by these labels (separated by commas)."""
    return f"sum{_by(by)} ({expression})"


def rate(spec: MetricSpec, where: str, window: str = RATE, by: str = "") -> str:
    """A counter's rate per second."""
    return total(f"rate({spec.name}{where}[{window}])", by)


def increase(spec: MetricSpec, where: str, window: str = RANGE, by: str = "") -> str:
    """A counter's increase over the window."""
    return total(f"increase({spec.name}{where}[{window}])", by)


def count_rate(spec: HistogramSpec, where: str, window: str = RATE, by: str = "") -> str:
    """A histogram's observations per second."""
    native = total(f"histogram_count(rate({spec.name}{where}[{window}]))", by)
    return f"({native} or {total(f'rate({spec.name}_count{where}[{window}])', by)})"


def counted(spec: HistogramSpec, where: str, window: str = RANGE, by: str = "") -> str:
    """A histogram's observations over the window."""
    native = total(f"histogram_count(increase({spec.name}{where}[{window}]))", by)
    return f"({native} or {total(f'increase({spec.name}_count{where}[{window}])', by)})"


def sum_rate(spec: HistogramSpec, where: str, window: str = RATE, by: str = "") -> str:
    """A histogram's sum of observed values, per second."""
    native = total(f"histogram_sum(rate({spec.name}{where}[{window}]))", by)
    return f"({native} or {total(f'rate({spec.name}_sum{where}[{window}])', by)})"


def quantile(q: float, spec: HistogramSpec, where: str, window: str = RATE, by: str = "", offset: str = "") -> str:
    """A quantile (0 to 1) of the observed values."""
    back = f" offset {offset}" if offset else ""
    native = f"histogram_quantile({q}, {total(f'rate({spec.name}{where}[{window}]{back})', by)})"
    labels = f"le, {by}" if by else "le"
    classic = f"histogram_quantile({q}, {total(f'rate({spec.name}_bucket{where}[{window}]{back})', labels)})"
    return f"({native} or {classic})"


def heat(spec: HistogramSpec, where: str, window: str = RATE) -> str:
    """A histogram over time, for a heatmap panel."""
    native = total(f"increase({spec.name}{where}[{window}])")
    return f"{native} or {total(f'increase({spec.name}_bucket{where}[{window}])', 'le')}"


def success_ratio(where: str, window: str, by: str = "") -> str:
    """Executions that completed, as a fraction (0 to 1) of those that completed or failed."""
    inner = where.strip("{}")
    good = counted(EXECUTION_DURATION, selector(inner, GOOD), window, by)
    judged = counted(EXECUTION_DURATION, selector(inner, JUDGED), window, by)
    # If nothing completed there is no series to divide; the ratio is then 0, not absent.
    return f"({good} or {judged} * 0) / ({judged} > 0)"
