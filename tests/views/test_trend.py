"""A trend is told from a jump, from noise and from outliers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tachograph_exporter.views.causes.trend import trend_of

DAY = 86_400.0


def series(seed: int, shape: Callable[[float], float], count: int = 200, noise: float = 0.12) -> list[float]:
    """Durations over four weeks; ``shape`` of the share of the time that has passed."""
    rng = random.Random(seed)
    tails = [3.0 if rng.random() < 0.05 else 1.0 for _ in range(count)]
    return [300 * shape(i / count) * math.exp(rng.gauss(0, noise)) * tails[i] for i in range(count)]


def starts(count: int = 200) -> list[float]:
    return [1.79e9 + i * 28 * DAY / count for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_one_percent_a_day_is_a_trend(seed: int) -> None:
    trend = trend_of(starts(), series(seed, lambda x: 1.01 ** (28 * x)))
    assert trend is not None
    assert trend.per_day == pytest.approx(0.01, abs=0.003)
    assert trend.first == pytest.approx(300, rel=0.08)
    assert trend.days == pytest.approx(27.86, abs=0.01)


def test_what_is_no_trend() -> None:
    shapes: dict[str, Callable[[float], float]] = {
        "noise": lambda _: 1.0,
        "a jump": lambda x: 1.0 if x < 0.6 else 1.4,
        "an early jump": lambda x: 1.0 if x < 0.3 else 1.5,
        "a late jump": lambda x: 1.0 if x < 0.95 else 3.0,
        "faster": lambda x: 0.99 ** (28 * x),
        "too little": lambda x: 1.001 ** (28 * x),
        "a hill": lambda x: 1.4 if 0.3 < x < 0.6 else 1.0,
    }
    for name, shape in shapes.items():
        seeds = [seed for seed in range(8) if trend_of(starts(), series(seed, shape)) is not None]
        assert not seeds, (name, seeds)


def test_an_afternoon_and_few_runs_are_no_trend() -> None:
    values = series(1, lambda x: 2**x, noise=0.01)
    assert trend_of(starts(), values) is not None
    assert trend_of([1.79e9 + 60 * i for i in range(200)], values) is None
    assert trend_of(starts(20), series(1, lambda x: 2**x, 20, 0.01)) is None
    assert trend_of([], []) is None
    assert trend_of([1.0] * 40, [1.0] * 40) is None
