"""Change points: detected where a series changes, not where it is only noisy."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph_exporter.views.changepoints import MIN_BUCKETS, pelt, shifts


def noisy(rng: random.Random, level: float, count: int, noise: float = 0.05) -> list[float]:
    return [level * math.exp(rng.gauss(0, noise)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("factor", [0.5, 1.3, 2.0, 10.0])
def test_a_change_is_detected_where_it_is(seed: int, factor: float) -> None:
    rng = random.Random(seed)
    changes = shifts([*noisy(rng, 2.0, 40), *noisy(rng, 2.0 * factor, 25)])
    assert len(changes) == 1
    assert abs(changes[0].start - 40) <= 1
    assert changes[0].end == 65
    assert changes[0].ratio == pytest.approx(factor, rel=0.06)


def test_noise_alone_is_rarely_a_change() -> None:
    detected = sum(bool(shifts(noisy(random.Random(seed), 1.0, 100, 0.2))) for seed in range(200))
    assert detected <= 6


def test_a_change_and_its_reversal_are_two_changes() -> None:
    rng = random.Random(1)
    changes = shifts([*noisy(rng, 1, 20), *noisy(rng, 3, 10), *noisy(rng, 1, 20)])
    assert [(shift.start, shift.end) for shift in changes] == [(20, 30), (30, 50)]
    assert changes[0].ratio > 2.5
    assert changes[1].ratio < 0.4


def test_an_outlier_and_a_short_series_are_no_change() -> None:
    rng = random.Random(2)
    values = noisy(rng, 1, 40)
    values[20] = 50
    assert shifts(values) == []
    assert shifts([1, 1, 1, 1, 9, 9, 9][: MIN_BUCKETS - 1]) == []
    assert shifts([5.0] * 50) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-10, 10), min_size=6, max_size=14), st.floats(0.1, 20))
def test_pelt_finds_the_optimal_segmentation(values: list[float], penalty: float) -> None:
    def cost(borders: tuple[int, ...]) -> float:
        total = 0.0
        for low, high in itertools.pairwise((0, *borders, len(values))):
            if high - low < 3:
                return math.inf
            part = values[low:high]
            mean = sum(part) / len(part)
            total += sum((value - mean) ** 2 for value in part)
        return total + penalty * len(borders)

    segmentations = (borders for size in range(5) for borders in itertools.combinations(range(1, len(values)), size))
    assert cost(tuple(pelt(values, penalty))) == pytest.approx(min(map(cost, segmentations)), abs=1e-6)
