"""Change points: since when does something take longer (or shorter) than it used to?

Method: PELT (R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational
cost", Journal of the American Statistical Association 107(500), 2012) for shifts of the mean, on the logarithm of each
bucket's median duration. Logarithms make "twice as long" the same size at a millisecond and at an hour; medians keep
one stray run from being a change. The noise is estimated from the differences of neighbouring buckets by their median
absolute deviation, so that the shifts looked for do not count as noise; the penalty of one more change is
``3 * variance * ln(n)``. Of what PELT finds, only changes of at least `LEAST_CHANGE` are told.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

MIN_BUCKETS: Final = 8
"""With fewer buckets than this nothing is said."""
MIN_SEGMENT: Final = 3
MIN_CHANGE: Final = 0.10
"""A change smaller than this part is not told."""
MIN_NOISE: Final = 0.02
"""Medians come from histograms and are never more exact than this, however still a series is."""
_PENALTY: Final = 3.0
_MAD_TO_SIGMA: Final = 1.4826


class Shift(NamedTuple):
    """From ``start`` (an index) up to ``end``, values are around ``after``; before, around ``before``."""

    start: int
    end: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before


def shifts(medians: Sequence[float]) -> list[Shift]:
    """The changes in a series of durations (more than 0), in order."""
    count = len(medians)
    if count < MIN_BUCKETS:
        return []
    values = [math.log(median) for median in medians]
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    noise = max(_MAD_TO_SIGMA * statistics.median(steps) / math.sqrt(2), MIN_NOISE)
    borders = [0, *pelt(values, _PENALTY * noise**2 * math.log(count)), count]
    # Borders that change too little go, the smallest first.
    while len(borders) > 2:
        levels = [statistics.median(values[a:b]) for a, b in itertools.pairwise(borders)]
        sizes = [abs(after - before) for before, after in itertools.pairwise(levels)]
        least = min(range(len(sizes)), key=sizes.__getitem__)
        if sizes[least] >= math.log1p(MIN_CHANGE):
            break
        del borders[least + 1]
    levels = [math.exp(statistics.median(values[a:b])) for a, b in itertools.pairwise(borders)]
    return [Shift(borders[i], borders[i + 1], levels[i - 1], levels[i]) for i in range(1, len(levels))]


def pelt(values: Sequence[float], penalty: float) -> list[int]:
    """Where the mean shifts: the indexes that minimise squared deviations plus ``penalty`` for each shift."""
    count = len(values)
    sums, squares = [0.0], [0.0]
    for value in values:
        sums.append(sums[-1] + value)
        squares.append(squares[-1] + value * value)

    def cost(start: int, end: int) -> float:
        total = sums[end] - sums[start]
        return squares[end] - squares[start] - total * total / (end - start)

    best = [-penalty, *[math.inf] * count]
    last = [0] * (count + 1)
    candidates = [0]
    lasts: dict[int, int] = {}
    for end in range(MIN_SEGMENT, count + 1):
        costs = [(best[start] + cost(start, end), start) for start in candidates if end - start >= MIN_SEGMENT]
        if costs:
            value, last[end] = min(costs)
            best[end] = value + penalty
            # Who is beaten now by more than a penalty never wins again, from where a segment may begin here and end.
            for found, start in costs:
                if found > best[end]:
                    lasts.setdefault(start, end + MIN_SEGMENT)
            candidates = [start for start in candidates if lasts.get(start, count) >= end + 1]
        candidates.append(end - MIN_SEGMENT + 1)
    borders, at = [], count
    while last[at] > 0:
        at = last[at]
        borders.append(at)
    return borders[::-1]
