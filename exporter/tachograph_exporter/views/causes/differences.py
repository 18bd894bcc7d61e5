"""What sets some runs apart from others: which of their values split slow from usual ones, or failed from good ones.

Every value that the run in question has is one hypothesis. Texts and booleans are tested with Fisher's exact test on
the other runs: the run that chose the hypothesis is no evidence for it. Numbers are tested with Mann and Whitney's test
and, where durations are compared, with Spearman's rank correlation of value and duration; the better of the two counts
twice its chance. The bound on false discoveries is Benjamini and Hochberg's, at `MAX_FALSE`: if nothing differs,
nothing is said in 99 of 100 cases. The groups are chosen by durations or outcomes alone, never by the values, so the
bound holds for them. Two values that only together make a run odd are found among the clearest (see `pairs`); their
bound is Bonferroni's over all pairs that there are.

A difference is no proof of a cause: the runs were not assigned their values by lot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tachograph_exporter.views.causes import pairs
from tachograph_exporter.views.causes.features import ATTRIBUTE, INPUT, OUTPUT, PAIR, Feature, Place, Value
from tachograph_exporter.views.causes.statistics import (
    adjusted,
    fisher,
    median,
    rank_correlation,
    rank_sum,
    superiority,
)

MAX_FALSE: Final = 0.01
"""The false discovery rate."""
MIN_USUAL: Final = 5
"""Usual runs without which nothing is compared."""
MIN_CORRELATED: Final = 20
"""Runs from which values and durations are correlated: with fewer, the normal approximation has a wrong tail."""
MIN_EXPLAINED: Final = 0.5
"""The share of its additional time that a number has to explain where durations are correlated with it."""
MIN_EFFECT: Final = 0.5
"""How well a value has to split the groups, from 0 to 1, to be named as a likely cause."""
MIN_SHARE: Final = 0.2
"""How well at least a value has to split the groups that is named because few runs with it are usual."""
MIN_RISK: Final = 0.7
"""By how much the share of odd runs has to be larger with such a value than without it."""
MAX_KINDS: Final = 12
"""Different integers, up to which each may be a kind rather than an amount."""
MAX_DIFFERENCES: Final = 20
MAX_KEYS: Final = 300
MAX_VALUES: Final = 10
"""Bounds of the values that are tested where no single run says which."""
_MUCH: Final = 0.1
"""How much larger the effect of one value has to be than that of a pair, not to be only a part of it."""
_MIN_BESIDES: Final = 3
"""Odd runs without the clear values that another value has to tell apart."""
_EARLY: Final = 0.1
"""The share of odd runs before which they had not begun: one of them may be there by chance."""
_MAY_BE_KINDS: Final = frozenset({INPUT, ATTRIBUTE, OUTPUT})
_MAX_FOLLOWING: Final = 0.95
"""The rank correlation with time from which a number only follows the time."""


class Difference(NamedTuple):
    """One value that splits the groups.

    Of texts and booleans, ``odd_with`` of ``with_count`` runs that have the value are odd (slow, or failed), and
    ``odd_without`` of ``without_count`` of the others. Of numbers, ``odd_median`` and ``usual_median`` are set instead.

    ``effect`` is 0 if the value tells nothing, and 1 if it tells the groups apart without exception: Youden's J, or
    twice the distance of `superiority` from a half. ``rate``: the false discovery rate at which it is announced.
    ``lately``: of ``with_count``, the runs since odd ones began. ``parts``: of a pair, its two values; ``is_part``: a
    pair that is announced says more. ``besides``: the effect among the runs without the values that are clear by
    themselves: of two causes of as many runs each, neither tells all of the odd runs apart. ``risk``: of one of several
    causes, the share of odd runs with it minus that without it, among the runs without the clearer ones.
    """

    key: str
    value: Value
    place: Place
    effect: float
    rate: float
    odd_with: int = 0
    with_count: int = 0
    odd_without: int = 0
    without_count: int = 0
    odd_median: float | None = None
    usual_median: float | None = None
    lately: int = 0
    parts: tuple[Feature, ...] = ()
    is_part: bool = False
    besides: float = 0.0
    risk: float = 0.0

    @property
    def is_outcome(self) -> bool:
        """Whether the value came to be while the run ran, and so may be an effect as well as a cause."""
        return self.place.order >= OUTPUT.order

    @property
    def is_strong(self) -> bool:
        """Whether it splits the groups well enough to be named as a likely cause.

        A text or a boolean that most runs have without being odd is none, however unlikely chance is; what it did
        before there were odd runs does not count: a good host may turn bad.
        """
        if self.is_part or (self.odd_median is None and 2 * self.odd_with < self.lately):
            return False
        return max(self.effect, self.besides) >= MIN_EFFECT or self.risk >= MIN_RISK


class Described(NamedTuple):
    """A run as it is compared: when it started (unix ns), whether it is odd (slow, or failed), and its values.

    ``seconds`` is what it took, where durations are compared. ``is_target``: it is the run in question.
    """

    started_ns: int
    is_odd: bool
    features: Mapping[str, Feature]
    seconds: float | None = None
    is_target: bool = False


class Result(NamedTuple):
    """The differences, the clearest first, and how many values were tested."""

    differences: list[Difference]
    tested: int


def differences(target: Mapping[str, Feature], runs: Sequence[Described]) -> Result:
    """Which values of a run split the odd runs from the usual ones.

    ``runs`` include the run itself, without those of its features that were made relative to it: of these it is no
    evidence. O(values * runs * log(runs)).
    """
    odd = [run for run in runs if run.is_odd]
    usual = [run for run in runs if not run.is_odd]
    if not odd or len(usual) < MIN_USUAL:
        return Result([], 0)
    tests = []
    for key, feature in target.items():
        if isinstance(feature.value, float):
            tested = _numeric(feature, feature.value, odd, usual)
            if (as_kind := _kind(feature, odd, usual)) is not None:
                tests.append(as_kind)
        else:
            tested = _categorical(feature, key, odd, usual)
        if tested is not None:
            tests.append(tested)
    result = _announced(tests, _pairs(list(target.values()), odd, usual))
    return Result(_sorted(_risks(_besides(result.differences, odd, usual), odd, usual)), result.tested)


def differences_of_set(runs: Sequence[Described]) -> Result:
    """Which values split the odd runs from the others, whichever they are.

    Of each text the `MAX_VALUES` most frequent values are hypotheses, chosen without looking at which runs are odd.
    """
    odd = [run for run in runs if run.is_odd]
    usual = [run for run in runs if not run.is_odd]
    if not odd or len(usual) < MIN_USUAL:
        return Result([], 0)
    kinds: dict[str, Counter[Value]] = {}
    features: dict[tuple[str, Value], Feature] = {}
    for run in runs:
        for key, feature in run.features.items():
            kinds.setdefault(key, Counter())[feature.value] += 1
            features.setdefault((key, feature.value), feature)
    tests = []
    single: list[Feature] = []
    for key, values in list(kinds.items())[:MAX_KEYS]:
        frequent = [(key, value) for value, count in values.most_common(MAX_VALUES) if count > 1]
        single += [features[name] for name in frequent]
        numbers = [value for value in values if isinstance(value, float)]
        if numbers:
            # The number in the middle of the odd runs stands for them.
            among_odd = [value for _, value, _ in _numbers(odd, key)]
            middle = min(numbers, key=lambda number: abs(number - median(among_odd))) if among_odd else numbers[0]
            tested = _numeric(features[key, middle], middle, odd, usual)
            tests += [tested] if tested is not None else []
            tests += [test for name in frequent if (test := _kind(features[name], odd, usual)) is not None]
        else:
            tests += [test for name in frequent if (test := _categorical(features[name], key, odd, usual)) is not None]
    return _announced(tests, _pairs(single, odd, usual))


def _pairs(features: Sequence[Feature], odd: Sequence[Described], usual: Sequence[Described]) -> list[Difference]:
    others = [run.features for run in odd if not run.is_target]
    return [
        Difference(
            f"{pair.first.key} & {pair.second.key}",
            f"{pair.first.value} & {pair.second.value}",
            PAIR,
            effect=pair.odd_with / len(others) - pair.usual_with / len(usual),
            rate=pair.rate,
            odd_with=pair.odd_with,
            with_count=pair.odd_with + pair.usual_with,
            odd_without=len(others) - pair.odd_with,
            without_count=len(others) - pair.odd_with + len(usual) - pair.usual_with,
            lately=pair.odd_with + pair.usual_with,
            parts=(pair.first, pair.second),
        )
        for pair in pairs.pairs(features, others, [run.features for run in usual])
        if pair.rate <= MAX_FALSE
    ]


def _announced(tests: Sequence[tuple[Difference, float]], paired: Sequence[Difference]) -> Result:
    rates = adjusted([chance for _, chance in tests])
    announced = [
        difference._replace(rate=rate)
        for (difference, _), rate in zip(tests, rates, strict=True)
        if rate <= MAX_FALSE and difference.effect > 0
    ]
    together = {part.key: pair for pair in paired if pair.is_strong for part in pair.parts}
    if "host" in together:
        together.setdefault("process", together["host"])  # It is on that host.
    announced = _said_once(announced)
    announced = [
        each._replace(is_part=each.key in together and each.effect < together[each.key].effect + _MUCH)
        for each in announced
    ]
    return Result(_sorted([*announced, *paired])[:MAX_DIFFERENCES], len(tests))


def _said_once(announced: Sequence[Difference]) -> list[Difference]:
    """Without the weaker of two differences of a number: as an amount, and as a kind."""
    amounts = {each.key: each.effect for each in announced if each.odd_median is not None}
    kinds = {each.key: each.effect for each in announced if each.odd_median is None and each.key in amounts}
    return [
        each
        for each in announced
        if each.key not in kinds or (each.odd_median is None) == (kinds[each.key] > amounts[each.key])
    ]


def _sorted(announced: Sequence[Difference]) -> list[Difference]:
    return sorted(announced, key=lambda d: (not d.is_strong, -round(d.effect, 1), d.place.order, d.rate, d.key))


def _besides(announced: Sequence[Difference], odd: Sequence[Described], usual: Sequence[Described]) -> list[Difference]:
    """The differences with their effect among the runs without those values that are clear by themselves."""
    clear = [each for each in announced if each.is_strong and each.odd_median is None and not each.parts]
    if not clear:
        return list(announced)

    others = [run for run in odd if not run.is_target and not any(_has(run, each) for each in clear)]
    rest = [run for run in usual if not any(_has(run, each) for each in clear)]
    if len(others) < _MIN_BESIDES or len(rest) < MIN_USUAL:
        return list(announced)
    return [
        each
        if each.is_strong or each.odd_median is not None or each.parts
        else each._replace(
            besides=sum(_has(run, each) for run in others) / len(others)
            - sum(_has(run, each) for run in rest) / len(rest)
        )
        for each in announced
    ]


def _has(run: Described, difference: Difference) -> bool:
    feature = run.features.get(difference.key)
    return feature is not None and feature.value == difference.value


def _risks(announced: Sequence[Difference], odd: Sequence[Described], usual: Sequence[Described]) -> list[Difference]:
    """The differences with the risk of those that few usual runs have, though other odd runs have it not either."""
    texts = sorted((each for each in announced if each.odd_median is None and not each.parts), key=lambda d: -d.effect)
    clear = [each for each in texts if each.is_strong]
    others = [run for run in odd if not run.is_target and not any(_has(run, each) for each in clear)]
    rest = [run for run in usual if not any(_has(run, each) for each in clear)]
    risks: dict[tuple[str, Value], float] = {}
    for each in texts:
        if each.is_strong or each.effect < MIN_SHARE:
            continue
        a, c = sum(_has(run, each) for run in others), sum(_has(run, each) for run in rest)
        without = len(others) + len(rest) - a - c
        if a < _MIN_BESIDES or not without:
            continue
        risk = a / (a + c) - (len(others) - a) / without
        if risk >= MIN_RISK:
            risks[each.key, each.value] = risk
            # What only some of these runs have is a part of it.
            others = [run for run in others if not _has(run, each)]
            rest = [run for run in rest if not _has(run, each)]
    return [each._replace(risk=risks.get((each.key, each.value), 0.0)) for each in announced]


def _categorical(
    feature: Feature, key: str, odd: Sequence[Described], usual: Sequence[Described]
) -> tuple[Difference, float] | None:
    def has(run: Described) -> bool:
        other = run.features.get(key)
        return other is not None and other.value == feature.value

    others = [run for run in odd if not run.is_target]
    a, c = sum(map(has, others)), sum(map(has, usual))
    b, d = len(others) - a, len(usual) - c
    if not a or not b + d:
        return None  # No other odd run has it, or all have it: nothing is to be tested.
    starts = sorted(run.started_ns for run in others)
    since = starts[int(len(starts) * _EARLY)]
    difference = Difference(
        key,
        feature.value,
        feature.place,
        lately=a + sum(run.started_ns >= since and has(run) for run in usual),
        effect=a / len(others) - c / len(usual),
        rate=1.0,
        odd_with=a,
        with_count=a + c,
        odd_without=b,
        without_count=b + d,
    )
    return difference, fisher(a, b, c, d)


def _kind(feature: Feature, odd: Sequence[Described], usual: Sequence[Described]) -> tuple[Difference, float] | None:
    """A number as `_categorical` tests it, if it is one of few integers, and none at the end of their range."""
    if not isinstance(feature.value, float) or feature.place not in _MAY_BE_KINDS or not feature.value.is_integer():
        return None
    values = {number for _, number, _ in _numbers([*odd, *usual], feature.key)}
    if not 2 < len(values) <= MAX_KINDS or feature.value in (min(values), max(values)):
        return None
    return _categorical(feature, feature.key, odd, usual)


def _numeric(
    feature: Feature, value: float, odd: Sequence[Described], usual: Sequence[Described]
) -> tuple[Difference, float] | None:
    key = feature.key
    among_odd, among_usual = _numbers(odd, key), _numbers(usual, key)
    together = [*among_odd, *among_usual]
    values = [number for _, number, _ in together]
    if not among_odd or len(among_usual) < MIN_USUAL or min(values) == max(values):
        return None
    times = [float(started) for started, _, _ in together]
    if abs(rank_correlation(times, values)) >= _MAX_FOLLOWING and len(set(values)) > len(values) // 2:
        return None
    first, second = [value for _, value, _ in among_odd], [value for _, value, _ in among_usual]
    above = superiority(first, second)
    usually = median(second)
    # The run itself has to be on the side to which the odd ones differ.
    side = (value > usually) - (value < usually)
    return (
        Difference(
            key,
            feature.value,
            feature.place,
            effect=(2 * above - 1) * side,
            rate=1.0,
            odd_median=median(first),
            usual_median=usually,
        ),
        min(1.0, 2 * min(rank_sum(first, second), _chance_of_correlation(feature, odd, usual))),
    )


def _chance_of_correlation(feature: Feature, odd: Sequence[Described], usual: Sequence[Described]) -> float:
    """The two-sided probability that values and durations are correlated by chance as clearly as they are.

    Under independence Spearman's coefficient has the variance 1/(n - 1); its distribution is near the normal one.
    1 unless the run's value explains what it took: usual durations follow many values a little.
    """
    target = next((run for run in odd if run.is_target), None)
    known = [
        (value, seconds)
        for _, value, seconds in _numbers([*odd, *usual], feature.key)
        if seconds is not None and seconds > 0
    ]
    among_usual = [
        (value, seconds) for _, value, seconds in _numbers(usual, feature.key) if seconds is not None and seconds > 0
    ]
    if target is None or not target.seconds or len(among_usual) < MIN_CORRELATED:
        return 1.0
    if _explained(feature, target.seconds, among_usual) < MIN_EXPLAINED:
        return 1.0
    coefficient = rank_correlation([value for value, _ in known], [seconds for _, seconds in known])
    return math.erfc(abs(coefficient) * math.sqrt((len(known) - 1) / 2))


def _explained(feature: Feature, seconds: float, usual: Sequence[tuple[float, float]]) -> float:
    """The share of a run's additional time (as logarithms) that usual runs lead to expect of a number.

    What is expected is the line of least squares through the usual runs, in logarithms where all numbers are positive.
    """
    number = feature.value
    if not isinstance(number, float):
        return 0.0
    is_positive = number > 0 and all(value > 0 for value, _ in usual)
    xs = [math.log(value) if is_positive else value for value, _ in usual]
    ys = [math.log(duration) for _, duration in usual]
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    additional = math.log(seconds) - median(ys)
    if not spread or not additional:
        return 0.0
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    x = math.log(number) if is_positive else number
    return (mean_y + slope * (x - mean_x) - median(ys)) / additional


def _numbers(runs: Sequence[Described], key: str) -> list[tuple[int, float, float | None]]:
    numbers = []
    for run in runs:
        feature = run.features.get(key)
        if feature is not None and isinstance(feature.value, float):
            numbers.append((run.started_ns, feature.value, run.seconds))
    return numbers
