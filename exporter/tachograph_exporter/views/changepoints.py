"""Change points of a series of durations: since when does something take longer or shorter?

Method: PELT (R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational
cost", Journal of the American Statistical Association 107(500), 2012) for shifts of the mean, on the logarithm of each
bucket's median duration. In logarithms "twice as long" has the same size at a millisecond and at an hour; medians keep
one outlier from looking like a change. The noise is estimated by the median absolute difference of neighbouring
buckets, which the shifts themselves hardly affect. The penalty of a change is ``3 * variance * ln(n)``. Changes smaller
than `MIN_CHANGE` are dropped.

PELT always finds the best borders, also in noise. A border is kept only with evidence: the exact test of H. B. Mann and
D. R. Whitney ("On a test of whether one of two random variables is stochastically larger than the other", Annals of
Mathematical Statistics 18(1), 1947) on the buckets before and after it. It knows nothing of the noise but its order, so
neither outliers nor two kinds of runs look like a change, and few buckets can never prove one. The longer a series, the
more places a change could be at, and the smaller the chance has to be.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

MIN_BUCKETS: Final = 8
"""A shorter series has no change points."""
MIN_SEGMENT: Final = 3
"""Minimum number of buckets between two changes."""
MIN_CHANGE: Final = 0.10
"""Minimum relative change."""
MIN_NOISE: Final = 0.02
"""Lower bound of the noise: medians from histograms are not more exact than this."""
MAX_CHANCE: Final = 2e-5
"""The probability that chance alone orders `_CHANCE_BUCKETS` buckets as they are, up to which a change is announced."""
MAX_CHANCE_OF_CLEAR: Final = 1e-3
"""The same for a change that is clear beside the noise: of at least `CLEAR_CHANGE` standard deviations."""
CLEAR_CHANGE: Final = 5.0
MAX_CHANCE_OF_OBVIOUS: Final = 1e-2
"""The same for a change of `OBVIOUS_CHANGE` standard deviations between buckets of `MANY_RUNS` runs or more: so many
runs do not all take longer by chance."""
OBVIOUS_CHANGE: Final = 10.0
MANY_RUNS: Final = 3
_CHANCE_BUCKETS: Final = 20
_MAX_EXACT_PAIRS: Final = 2_500
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


def shifts(medians: Sequence[float], counts: Sequence[int] | None = None) -> list[Shift]:
    """The shifts in a series of positive durations, in order. ``counts``: how many runs each of them is of."""
    count = len(medians)
    if count < MIN_BUCKETS:
        return []
    values = [math.log(median) for median in medians]
    differences = [abs(b - a) for a, b in itertools.pairwise(values)]
    noise = max(_MAD_TO_SIGMA * statistics.median(differences) / math.sqrt(2), MIN_NOISE)
    borders = [0, *pelt(values, _PENALTY * noise**2 * math.log(count)), count]
    # Drop borders with too small a change, the smallest first; then those that chance explains, the likeliest first.
    while len(borders) > 2:
        levels = [statistics.median(values[a:b]) for a, b in itertools.pairwise(borders)]
        sizes = [abs(after - before) for before, after in itertools.pairwise(levels)]
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        if sizes[smallest] < math.log1p(MIN_CHANGE):
            del borders[smallest + 1]
            continue
        odds = [
            _chance_beyond_limit(values[a:b], values[b:c], count, min(counts[a:c]) if counts else 1)
            for a, b, c in _triples(borders)
        ]
        likeliest = max(range(len(odds)), key=odds.__getitem__)
        if odds[likeliest] <= 1:
            break
        del borders[likeliest + 1]
    levels = [math.exp(statistics.median(values[a:b])) for a, b in itertools.pairwise(borders)]
    return [Shift(borders[i], borders[i + 1], levels[i - 1], levels[i]) for i in range(1, len(levels))]


def _triples(borders: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    return zip(borders, borders[1:], borders[2:], strict=False)


def _chance_beyond_limit(before: Sequence[float], after: Sequence[float], count: int, runs: int) -> float:
    """How many times as likely as allowed chance is as the reason of a change, in a series of ``count`` buckets of at
    least ``runs`` runs.
    """
    squares = sum((value - statistics.fmean(part)) ** 2 for part in (before, after) for value in part)
    sigma = max(math.sqrt(squares / max(1, len(before) + len(after) - 2)), MIN_NOISE)
    change = abs(statistics.median(after) - statistics.median(before))
    limit = MAX_CHANCE_OF_CLEAR if change >= CLEAR_CHANGE * sigma else MAX_CHANCE
    if runs >= MANY_RUNS and change >= OBVIOUS_CHANGE * sigma:
        limit = MAX_CHANCE_OF_OBVIOUS
    return chance(before, after) / (limit * min(1.0, _CHANCE_BUCKETS / count) ** 2)


def chance(before: Sequence[float], after: Sequence[float]) -> float:
    """The two-sided probability that chance alone orders two samples at least as clearly; ties count against it.

    Exact up to `_MAX_EXACT_PAIRS` pairs of values: the coefficients of the Gaussian binomial count the orders. Beyond,
    the normal approximation with a continuity correction, whose tail is the heavier.
    """
    small, large = sorted((len(before), len(after)))
    pairs = small * large
    ordered = sorted(before)
    not_above = sum(bisect.bisect_right(ordered, value) for value in after)
    not_below = pairs - sum(bisect.bisect_left(ordered, value) for value in after)
    exceptions = min(not_above, not_below)
    if 2 * exceptions >= pairs:
        return 1.0
    if pairs > _MAX_EXACT_PAIRS:
        z = (pairs / 2 - exceptions - 0.5) / math.sqrt(pairs * (small + large + 1) / 12)
        return math.erfc(z / math.sqrt(2))
    orders = [1] + [0] * exceptions
    for i in range(1, small + 1):
        for j in range(i, exceptions + 1):
            orders[j] += orders[j - i]
        for j in range(exceptions, large + i - 1, -1):
            orders[j] -= orders[j - large - i]
    return min(1.0, 2 * sum(orders) / math.comb(small + large, small))


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
