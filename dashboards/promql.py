"""PromQL from the metrics in the code. Works where native histograms are scraped, and where classic ones are.

With native histograms a family ``x`` is one series and ``x_bucket``, ``x_count`` are not there; with classic ones it is
the other way round. So every question is asked both ways, joined by ``or``: one of the two is always empty.
"""

from __future__ import annotations

from typing import Final

from tachograph.metrics.specs import EXECUTION_DURATION, HistogramSpec, MetricSpec

RATE: Final = "$__rate_interval"
"""Grafana's window for rates: at least four scrapes."""
RANGE: Final = "$__range"
"""The time that is looked at."""
BAD: Final = 'status=~"failed|timeout|lost"'
GOOD: Final = 'status="completed"'
JUDGED: Final = 'status=~"completed|failed|timeout|lost"'
"""Executions that count for or against a success rate; a cancelled one does neither."""


def selector(*matchers: str) -> str:
    """``{a="b", c="d"}``."""
    return "{" + ", ".join(matcher for matcher in matchers if matcher) + "}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def total(expression: str, by: str = "") -> str:
    """The sum by labels (with commas between)."""
    return f"sum{_by(by)} ({expression})"


def rate(spec: MetricSpec, where: str, window: str = RATE, by: str = "") -> str:
    """A counter's rate a second."""
    return total(f"rate({spec.name}{where}[{window}])", by)


def increase(spec: MetricSpec, where: str, window: str = RANGE, by: str = "") -> str:
    """How much a counter grew."""
    return total(f"increase({spec.name}{where}[{window}])", by)


def count_rate(spec: HistogramSpec, where: str, window: str = RATE, by: str = "") -> str:
    """Observations a second."""
    native = total(f"histogram_count(rate({spec.name}{where}[{window}]))", by)
    return f"({native} or {total(f'rate({spec.name}_count{where}[{window}])', by)})"


def counted(spec: HistogramSpec, where: str, window: str = RANGE, by: str = "") -> str:
    """How many observations there were."""
    native = total(f"histogram_count(increase({spec.name}{where}[{window}]))", by)
    return f"({native} or {total(f'increase({spec.name}_count{where}[{window}])', by)})"


def sum_rate(spec: HistogramSpec, where: str, window: str = RATE, by: str = "") -> str:
    """The sum of what was observed, a second."""
    native = total(f"histogram_sum(rate({spec.name}{where}[{window}]))", by)
    return f"({native} or {total(f'rate({spec.name}_sum{where}[{window}])', by)})"


def quantile(q: float, spec: HistogramSpec, where: str, window: str = RATE, by: str = "", offset: str = "") -> str:
    """A quantile of what was observed."""
    back = f" offset {offset}" if offset else ""
    native = f"histogram_quantile({q}, {total(f'rate({spec.name}{where}[{window}]{back})', by)})"
    labels = f"le, {by}" if by else "le"
    classic = f"histogram_quantile({q}, {total(f'rate({spec.name}_bucket{where}[{window}]{back})', labels)})"
    return f"({native} or {classic})"


def heat(spec: HistogramSpec, where: str, window: str = RATE) -> str:
    """A histogram over time, for a heatmap."""
    native = total(f"increase({spec.name}{where}[{window}])")
    return f"{native} or {total(f'increase({spec.name}_bucket{where}[{window}])', 'le')}"


def success_ratio(where: str, window: str, by: str = "") -> str:
    """The part of executions that completed, of those that completed or failed (0 to 1)."""
    inner = where.strip("{}")
    good = counted(EXECUTION_DURATION, selector(inner, GOOD), window, by)
    judged = counted(EXECUTION_DURATION, selector(inner, JUDGED), window, by)
    # Where nothing completed there is no series to divide: that is 0, and not nothing.
    return f"({good} or {judged} * 0) / ({judged} > 0)"
