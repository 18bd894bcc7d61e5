"""Two values that make a run odd only together: a version on one host, an option with one kind of input.

Each of the two has to tell odd runs apart among the runs that have the other: Fisher's exact test within both, of which
the larger chance counts. If only one of them matters, the other one tells nothing among its runs, so the test bounds
the chance of a false pair whatever single values do (an intersection-union test: R. L. Berger, "Multiparameter
hypothesis testing and acceptance sampling", Technometrics 24(4), 1982). Only the clearest values are paired, but the
chance is multiplied by the number of all pairs: the choice of the clearest costs no bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tachograph_exporter.views.causes.features import PAIRED, Feature, Value
from tachograph_exporter.views.causes.statistics import fisher

MAX_CANDIDATES: Final = 12
"""Values that are paired with each other."""
MAX_LEVELS: Final = 12
"""Different numbers up to which a number is a choice, and not a quantity."""
MAX_LOOKED_AT: Final = 1_000


class Pair(NamedTuple):
    """Two values, how many odd and usual runs have both, and the chance of a false pair."""

    first: Feature
    second: Feature
    odd_with: int
    usual_with: int
    rate: float


class _Having(NamedTuple):
    """Which of the runs have a value, as bits, and how likely chance is as the reason."""

    feature: Feature
    odd: int
    usual: int
    chance: float


def pairs(
    features: Sequence[Feature], odd: Sequence[Mapping[str, Feature]], usual: Sequence[Mapping[str, Feature]]
) -> list[Pair]:
    """Pairs of values of which both have to be there, the clearest first; each value is in one pair at most.

    ``odd`` and ``usual`` are what the runs have, without the one in question.
    """
    if len(odd) < 2:
        return []
    candidates: list[_Having] = []
    count = 0
    for feature in list(features)[:MAX_LOOKED_AT]:
        if feature.place.kind not in PAIRED or not _is_choice(feature, odd, usual):
            continue
        in_odd, in_usual = _bits(feature, odd), _bits(feature, usual)
        count += 1
        a, c = in_odd.bit_count(), in_usual.bit_count()
        if a and c:
            candidates.append(_Having(feature, in_odd, in_usual, fisher(a, len(odd) - a, c, len(usual) - c)))
    candidates.sort(key=lambda each: each.chance)
    candidates = candidates[:MAX_CANDIDATES]
    tested = []
    for i, first in enumerate(candidates):
        for second in candidates[i + 1 :]:
            if first.feature.key == second.feature.key:
                continue
            a, c = (first.odd & second.odd).bit_count(), (first.usual & second.usual).bit_count()
            if a < 2 or a < c:
                continue
            chance = max(_within(each, a, c) for each in (first, second))
            ordered = sorted((first.feature, second.feature), key=lambda each: each.key)
            tested.append(Pair(ordered[0], ordered[1], a, c, min(1.0, chance * count * (count - 1) / 2)))
    tested.sort(key=lambda pair: (pair.rate, -pair.odd_with, pair.first.key))
    result: list[Pair] = []
    taken: set[tuple[str, Value]] = set()
    for pair in tested:
        both = {(part.key, part.value) for part in pair[:2]}
        if not both & taken:
            taken |= both
            result.append(pair)
    return result


def _within(value: _Having, odd_both: int, usual_both: int) -> float:
    """How likely chance alone puts the other value so often into odd ones of the runs that have this one."""
    return fisher(odd_both, value.odd.bit_count() - odd_both, usual_both, value.usual.bit_count() - usual_both)


def _bits(feature: Feature, runs: Sequence[Mapping[str, Feature]]) -> int:
    bits = 0
    for i, run in enumerate(runs):
        other = run.get(feature.key)
        if other is not None and other.value == feature.value:
            bits |= 1 << i
    return bits


def _is_choice(feature: Feature, *groups: Sequence[Mapping[str, Feature]]) -> bool:
    if not isinstance(feature.value, float):
        return True
    levels = set()
    for runs in groups:
        for run in runs:
            if (other := run.get(feature.key)) is not None:
                levels.add(other.value)
                if len(levels) > MAX_LEVELS:
                    return False
    return True
