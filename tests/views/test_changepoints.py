"""Change points: detected where a series changes, not where it is only noisy."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph_exporter.views import changepoints
from tachograph_exporter.views.changepoints import MIN_BUCKETS, chance, pelt, shifts


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


NOISES: dict[str, Callable[[random.Random], float]] = {
    "even": lambda rng: math.exp(rng.gauss(0, 0.05)),
    "wide": lambda rng: math.exp(rng.gauss(0, 0.7)),
    "outliers": lambda rng: rng.paretovariate(1.1),
    "two kinds of runs": lambda rng: rng.choice([1, 3]) * math.exp(rng.gauss(0, 0.02)),
    "equal values": lambda rng: rng.choice([1.0, 1.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("name", NOISES)
def test_shuffled_series_announce_no_change(name: str) -> None:
    rng = random.Random(f"{name} in any order")
    announced = sum(bool(shifts([NOISES[name](rng) for _ in range(20)])) for _ in range(1_000))
    assert announced <= 1
    # Shorter and longer series: the more places there are, the more must a change be.
    for count, times in ((14, 500), (100, 50)):
        assert not any(shifts([NOISES[name](rng) for _ in range(count)]) for _ in range(times))


@pytest.mark.parametrize(("before", "after", "is_announced"), [(15, 5, True), (9, 5, True), (10, 3, False)])
def test_a_change_needs_enough_buckets_to_rule_out_chance(before: int, after: int, is_announced: bool) -> None:
    rng = random.Random(3)
    assert bool(shifts([*noisy(rng, 1, before), *noisy(rng, 3, after)])) is is_announced


def test_many_runs_in_each_bucket_are_evidence_too() -> None:
    rng = random.Random(4)
    series = [*noisy(rng, 1, 17, 0.01), *noisy(rng, 1.5, 3, 0.01)]
    assert shifts(series) == shifts(series, [1] * 20) == []
    assert [shift.start for shift in shifts(series, [24] * 20)] == [17]
    # However many they are, noise is none.
    announced = sum(bool(shifts(noisy(random.Random(seed), 1, 20, 0.3), [24] * 20)) for seed in range(500))
    assert announced <= 1


@pytest.mark.parametrize(("sizes", "values"), [((3, 4), range(3)), ((2, 6), range(9)), ((4, 4), range(2))])
def test_the_chance_is_that_of_all_orders(sizes: tuple[int, int], values: range) -> None:
    rng = random.Random(1)
    small, large = sizes
    for _ in range(20):
        before, after = ([float(rng.choice(values)) for _ in range(size)] for size in sizes)

        def exceptions(a: Iterable[float], b: Iterable[float]) -> int:
            pairs = list(itertools.product(a, b))
            return min(sum(x >= y for x, y in pairs), sum(x <= y for x, y in pairs))

        orders = [set(order) for order in itertools.combinations(range(small + large), small)]
        limit = exceptions(before, after)
        as_clear = sum(exceptions(order, set(range(small + large)) - order) <= limit for order in orders)
        assert chance(before, after) == pytest.approx(1 if 2 * limit >= small * large else as_clear / len(orders))


def test_the_chance_in_large_samples_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    before, after = ([rng.gauss(level, 1) for _ in range(40)] for level in (0, 0.8))
    exact = chance(before, after)
    assert 1e-6 < exact < 0.01
    monkeypatch.setattr(changepoints, "_MAX_EXACT_PAIRS", 1)
    assert chance(before, after) == pytest.approx(exact, rel=0.2)


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
