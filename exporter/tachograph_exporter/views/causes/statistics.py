"""How likely chance alone is as the reason of a difference between two groups."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tachograph_exporter.views.changepoints import chance

MIN_NOISE: Final = 0.02
"""Lower bound of the noise of durations, relative: shorter differences are those of clocks and schedulers."""
_MAD_TO_SIGMA: Final = 1.4826
_MIN_NORMAL: Final = 8


def fisher(a: int, b: int, c: int, d: int) -> float:
    """The probability that chance alone puts at least ``a`` of those with a value into the first group.

    The table is ``a`` with the value and ``b`` without it in the first group, ``c`` and ``d`` in the second. The exact
    one-sided test of R. A. Fisher ("On the interpretation of χ² from contingency tables, and the calculation of P",
    Journal of the Royal Statistical Society 85(1), 1922): the upper tail of the hypergeometric distribution.
    """
    first, having, total = a + b, a + c, a + b + c + d
    whole = _log_choose(total, first)
    tail = [
        math.exp(_log_choose(having, i) + _log_choose(total - having, first - i) - whole)
        for i in range(a, min(first, having) + 1)
    ]
    return min(1.0, math.fsum(tail))


def _log_choose(n: int, k: int) -> float:
    if k < 0 or k > n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def rank_sum(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided probability that chance alone orders two samples at least as clearly.

    The test of Mann and Whitney: exact (see `changepoints.chance`) if one of the samples has less than `_MIN_NORMAL`
    values, else by the normal approximation with the corrections for ties and continuity.
    """
    m, n = len(first), len(second)
    if not m or not n:
        return 1.0
    if min(m, n) < _MIN_NORMAL:
        return chance(first, second)
    total = m + n
    tied = sum(count**3 - count for count in Counter((*first, *second)).values())
    variance = m * n / 12 * (total + 1 - tied / (total * (total - 1)))
    distance = abs(superiority(first, second) - 0.5) * m * n - 0.5
    return math.erfc(distance / math.sqrt(2 * variance)) if variance > 0 and distance > 0 else 1.0


def superiority(first: Sequence[float], second: Sequence[float]) -> float:
    """The probability that a value of the first sample is larger than one of the second; ties count a half.

    K. O. McGraw and S. P. Wong, "A common language effect size statistic", Psychological Bulletin 111(2), 1992.
    """
    if not first or not second:
        return 0.5
    ordered = sorted(second)
    total = sum(bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value) for value in first)
    return total / (2 * len(first) * len(second))


def adjusted(chances: Sequence[float]) -> list[float]:
    """The false discovery rate at which each of several results would be announced, in their order.

    Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", Journal of the Royal Statistical Society B
    57(1), 1995. If nothing differs, the probability to announce anything is at most the same.
    """
    count = len(chances)
    rates, lowest = [1.0] * count, 1.0
    for rank, index in zip(
        range(count, 0, -1), sorted(range(count), key=chances.__getitem__, reverse=True), strict=True
    ):
        lowest = min(lowest, chances[index] * count / rank)
        rates[index] = lowest
    return rates


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation of two sequences of one length, from -1 to 1; 0 if one of them is constant."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    covariance = math.fsum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in a) * math.fsum((y - mean) ** 2 for y in b))
    return covariance / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value) + 1) / 2 for value in values]


def median(values: Sequence[float]) -> float:
    """The median; of an even number of values the mean of the two in the middle. Of none: 0."""
    if not values:
        return 0.0
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def noise(values: Sequence[float]) -> float:
    """The relative noise of positive values: the median absolute deviation of their logarithms, as a deviation.

    Outliers hardly affect it: P. J. Rousseeuw and C. Croux, "Alternatives to the median absolute deviation", Journal of
    the American Statistical Association 88(424), 1993.
    """
    logs = [math.log(value) for value in values if value > 0]
    centre = median(logs)
    return max(_MAD_TO_SIGMA * median([abs(value - centre) for value in logs]), MIN_NOISE)
