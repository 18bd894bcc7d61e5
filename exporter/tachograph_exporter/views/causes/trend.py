"""Runs that take longer and longer: a line through a sample of runs that fits better than a sudden change.

The line is that of H. Theil and P. K. Sen ("Estimates of the regression coefficient based on Kendall's tau", Journal
of the American Statistical Association 63(324), 1968) through the logarithms of durations: the median slope of all
pairs of runs, which a third of outliers hardly affects. In logarithms "1 % a day" is a straight line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph_exporter.store.samples import SampledRun
from tachograph_exporter.views.causes.case import MIN_SHARE, MIN_SLOW, Case
from tachograph_exporter.views.causes.claims import LIKELY, claim, length, trends_url
from tachograph_exporter.views.causes.course import MAX_RUNS, seconds_of
from tachograph_exporter.views.causes.statistics import median, noise, rank_correlation
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.why import Claim

MIN_RUNS: Final = 30
MIN_DAYS: Final = 5.0
"""Days that the runs have to span: what grows for an afternoon is no trend."""
MAX_CHANCE: Final = 1e-6
"""The probability of such a rank correlation with time by chance, up to which there is a trend."""
_PARTS: Final = 4
_EARLY: Final = 0.25
_OUTLIER: Final = 4.0
_DAY_S: Final = 86_400.0


class Trend(NamedTuple):
    """A line: seconds at the first and at the last run, ``days`` apart, and what a day adds, as a share."""

    first: float
    last: float
    days: float

    @property
    def per_day(self) -> float:
        """The growth of a day, relative."""
        return math.expm1(math.log(self.last / self.first) / self.days)


def trend_of(starts: Sequence[float], seconds: Sequence[float]) -> Trend | None:
    """The trend of durations; None if there is none, or if they rather changed at once. ``starts`` are unix seconds, in
    order. O(n²).
    """
    count = len(starts)
    days = (starts[-1] - starts[0]) / _DAY_S if count else 0.0
    if count < MIN_RUNS or days < MIN_DAYS:
        return None
    correlation = rank_correlation(starts, seconds)
    if correlation <= 0 or math.erfc(correlation * math.sqrt((count - 1) / 2)) > MAX_CHANCE:
        return None
    xs, ys = [(start - starts[0]) / _DAY_S for start in starts], [math.log(value) for value in seconds]
    slope = median(
        [(ys[j] - ys[i]) / (xs[j] - xs[i]) for i in range(count) for j in range(i + 1, count) if xs[j] > xs[i]]
    )
    if slope * days < math.log(MIN_SLOW):
        return None
    level = median([y - slope * x for x, y in zip(xs, ys, strict=True)])
    spread = noise([math.exp(y - level - slope * x) for x, y in zip(xs, ys, strict=True)])
    # Outliers are no evidence for either.
    of_line = [min(abs(y - level - slope * x), _OUTLIER * spread) ** 2 for x, y in zip(xs, ys, strict=True)]
    if math.fsum(of_line) >= _of_a_change(ys, _OUTLIER * spread) + spread**2 * math.log(count):
        return None
    parts = [median(ys[i * count // _PARTS : (i + 1) * count // _PARTS]) for i in range(_PARTS)]
    if any(after <= before for before, after in itertools.pairwise(parts)):
        return None
    return Trend(math.exp(level), math.exp(level + slope * days), days)


def _of_a_change(ys: Sequence[float], most: float) -> float:
    """The squared deviations from two levels, before and after the run from which on they are least."""
    step = max(1, len(ys) // 50)
    least = math.inf
    for place in range(step, len(ys) - step, step):
        levels = median(ys[:place]), median(ys[place:])
        least = min(least, math.fsum(min(abs(y - levels[i >= place]), most) ** 2 for i, y in enumerate(ys)))
    return least


def _runs_of(sample: Sequence[SampledRun], step_id: str | None) -> list[SampledRun]:
    runs = [run for run in sample if run.status == COMPLETED and (seconds_of(run, step_id) or 0) > 0]
    return runs[-MAX_RUNS:]


def _trend(runs: Sequence[SampledRun], step_id: str | None) -> Trend | None:
    return trend_of([run.started_ns / NS for run in runs], [seconds_of(run, step_id) or 0.0 for run in runs])


def early_runs(sample: Sequence[SampledRun], execution_id: str) -> frozenset[str]:
    """The ids of the first runs of a trend, if a run is slow beside those, as the trend has it."""
    runs = _runs_of(sample, None)
    run = next((run for run in runs if run.execution_id == execution_id), None)
    trend = _trend(runs, None) if run is not None else None
    if run is None or trend is None or not _explains(trend, seconds_of(run, None) or 0.0, run is runs[-1]):
        return frozenset()
    return frozenset(each.execution_id for each in runs[: int(len(runs) * _EARLY)])


def _explains(trend: Trend, seconds: float, is_last: bool) -> bool:
    """Whether a run is slow beside the first ones, and the trend is at least half of the reason.

    A run in the middle of a trend is explained only by what came before it; the last one by all of it.
    """
    return (
        is_last
        and seconds >= MIN_SLOW * trend.first
        and math.log(trend.last / trend.first) >= MIN_SHARE * math.log(seconds / trend.first)
    )


def of_case(case: Case) -> Iterator[Claim]:
    """That the step to look at, or the run, takes longer and longer, if that made it slow."""
    step, mine = case.focus, case.sampled
    for step_id in (step.step_id if step is not None else None, None):
        # Later runs are no reason of this one.
        runs = [run for run in _runs_of(case.sample, step_id) if run.started_ns <= mine.started_ns]
        seconds = seconds_of(mine, step_id)
        trend = _trend(runs, step_id) if seconds else None
        if trend is None or not seconds or not _explains(trend, seconds, True):
            continue
        name = step.name if step is not None and step_id is not None else case.run.execution.workflow
        who = f"step “{name}” takes" if step_id is not None else "runs take"
        yield claim(
            "trend",
            name,
            f"Likely: {who} longer and longer, by {100 * trend.per_day:.2g} % a day: {length(trend.first)} "
            f"{trend.days:.0f} days ago, {length(trend.last)} now.",
            LIKELY,
            trends_url(case.workflow_id, name if step_id is not None else None),
            days=trend.days,
            first_seconds=trend.first,
            last_seconds=trend.last,
            growth_per_day=trend.per_day,
            runs=len(runs),
        )
        return
