"""Change points of a series of durations: since when does something take longer or shorter?

Method: PELT (R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational
cost", Journal of the American Statistical Association 107(500), 2012) for shifts of the mean, on the logarithm of each
bucket's median duration. In logarithms "twice as long" has the same size at a millisecond and at an hour; medians keep
one outlier from looking like a change. The noise is estimated by the median absolute difference of neighbouring
buckets, which the shifts themselves hardly affect. The penalty of a change is ``3 * variance * ln(n)``. Changes smaller
than `MIN_CHANGE` are dropped.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

MIN_BUCKETS: Final = 8
"""A shorter series has no change points."""
MIN_SEGMENT: Final = 3
"""Minimum number of buckets between two changes."""
MIN_CHANGE: Final = 0.10
"""Minimum relative change."""
MIN_NOISE: Final = 0.02
"""Lower bound of the noise: medians from histograms are not more exact than this."""
_PENALTY: Final = 3.0
_MAD_TO_SIGMA: Final = 1.4826


class Shift(NamedTuple):
    """A shift of the median from ``before`` to ``after`` that lasts from index ``start`` to ``end`` (exclusive)."""

    start: int
    end: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """``after`` divided by ``before``."""
        return self.after / self.before


def shifts(medians: Sequence[float]) -> list[Shift]:
    """The shifts in a series of positive durations, in order."""
    count = len(medians)
    if count < MIN_BUCKETS:
        return []
    values = [math.log(median) for median in medians]
    differences = [abs(b - a) for a, b in itertools.pairwise(values)]
    noise = max(_MAD_TO_SIGMA * statistics.median(differences) / math.sqrt(2), MIN_NOISE)
    borders = [0, *pelt(values, _PENALTY * noise**2 * math.log(count)), count]
    # Drop borders with too small a change, the smallest first.
    while len(borders) > 2:
        levels = [statistics.median(values[a:b]) for a, b in itertools.pairwise(borders)]
        sizes = [abs(after - before) for before, after in itertools.pairwise(levels)]
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        if sizes[smallest] >= math.log1p(MIN_CHANGE):
            break
        del borders[smallest + 1]
    levels = [math.exp(statistics.median(values[a:b])) for a, b in itertools.pairwise(borders)]
    return [Shift(borders[i], borders[i + 1], levels[i - 1], levels[i]) for i in range(1, len(levels))]


def pelt(values: Sequence[float], penalty: float) -> list[int]:
    """Indexes where the mean shifts: they minimise the squared deviations plus ``penalty`` per shift."""
    count = len(values)
    sums, squares = [0.0], [0.0]
    for value in values:
        sums.append(sums[-1] + value)
        squares.append(squares[-1] + value * value)

    def cost(start: int, end: int) -> float:
        total = sums[end] - sums[start]
        return squares[end] - squares[start] - total * total / (end - start)

    best = [-penalty, *[math.inf] * count]
    previous = [0] * (count + 1)
    candidates = [0]
    last_use: dict[int, int] = {}
    for end in range(MIN_SEGMENT, count + 1):
        costs = [(best[start] + cost(start, end), start) for start in candidates if end - start >= MIN_SEGMENT]
        if costs:
            value, previous[end] = min(costs)
            best[end] = value + penalty
            # PELT's pruning: a candidate beaten by more than the penalty cannot be optimal once another segment of
            # minimum length fits behind this end.
            for candidate_cost, start in costs:
                if candidate_cost > best[end]:
                    last_use.setdefault(start, end + MIN_SEGMENT)
            candidates = [start for start in candidates if last_use.get(start, count) >= end + 1]
        candidates.append(end - MIN_SEGMENT + 1)
    borders, at = [], count
    while previous[at] > 0:
        at = previous[at]
        borders.append(at)
    return borders[::-1]
