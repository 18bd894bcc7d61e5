"""The exponential histogram: an algebra, with a stated error."""

from __future__ import annotations

import math
import random
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tachograph.histogram import (
    MAX_SCHEMA,
    MIN_SCHEMA,
    ZERO_THRESHOLD,
    ExponentialHistogram,
    TooFineError,
    bucket_index,
    upper_bound,
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=64).filter(lambda v: abs(v) < 1e300)
durations = st.floats(min_value=0, max_value=1e7)
value_lists = st.lists(finite, max_size=60)
schemas = st.integers(MIN_SCHEMA, MAX_SCHEMA)


@given(st.floats(min_value=sys.float_info.min, max_value=sys.float_info.max), schemas)
def test_a_value_lies_between_its_buckets_bounds(value: float, schema: int) -> None:
    index = bucket_index(value, schema)
    # Bounds are rounded to the nearest float.
    assert value <= upper_bound(index, schema) * (1 + 1e-15) or upper_bound(index, schema) == math.inf
    assert value > upper_bound(index - 1, schema) * (1 - 1e-15)


@pytest.mark.parametrize("schema", range(MIN_SCHEMA, MAX_SCHEMA + 1))
def test_powers_of_two_are_upper_bounds_exactly(schema: int) -> None:
    for exponent in (-1022, -128, -1, 0, 1, 10, 1023):
        value = math.ldexp(1.0, exponent)
        index = bucket_index(value, schema)
        assert index == math.ceil(exponent * 2**schema) if schema < 0 else index == exponent << schema
        just_above = math.nextafter(value, math.inf)
        assert bucket_index(just_above, schema) >= index
        if schema >= 0:
            assert bucket_index(just_above, schema) == index + 1


def test_bounds_are_those_of_the_specification() -> None:
    # From the native histograms specification: schema 3 has eight buckets to a factor of two.
    assert upper_bound(0, 3) == 1.0
    assert upper_bound(8, 3) == 2.0
    assert upper_bound(1, 3) == pytest.approx(2 ** (1 / 8))
    assert upper_bound(1, -2) == 16.0
    assert upper_bound(-1, -2) == 1 / 16


@given(value_lists, value_lists, value_lists, st.integers(2, 40))
def test_merging_is_associative_and_commutative(a: list[float], b: list[float], c: list[float], most: int) -> None:
    x, y, z = (ExponentialHistogram.of(values, max_buckets=most) for values in (a, b, c))
    assert (x + y) + z == x + (y + z)
    assert x + y == y + x
    assert (x + y) + z == ExponentialHistogram.of([*a, *b, *c], max_buckets=most)
    assert math.isclose(((x + y) + z).sum, (x + (y + z)).sum, rel_tol=1e-9, abs_tol=1e-3) or abs(x.sum) > 1e290


@given(value_lists, value_lists, schemas)
def test_downscaling_commutes_with_merging(a: list[float], b: list[float], schema: int) -> None:
    x, y = ExponentialHistogram.of(a), ExponentialHistogram.of(b)
    target = min(schema, (x + y).schema)
    assert (x + y).downscaled(target) == x.downscaled(target) + y.downscaled(target)


@given(value_lists, st.integers(2, 40))
def test_buckets_stay_within_their_number_and_hold_every_value(values: list[float], most: int) -> None:
    histogram = ExponentialHistogram.of(values, max_buckets=most)
    held = sum(histogram.positive.values()) + sum(histogram.negative.values()) + histogram.zero_count
    assert held == histogram.count == len(values)
    assert len(histogram.positive) + len(histogram.negative) <= most or histogram.schema == MIN_SCHEMA


SHAPES = {
    "skewed": [random.Random(1).lognormvariate(0, 3) for _ in range(3000)],
    "constant": [0.25] * 1000,
    "tiny": [random.Random(2).random() * 1e-30 for _ in range(1000)],
    "huge": [random.Random(3).random() * 1e300 for _ in range(1000)],
    "denormal": [5e-324 * n for n in range(1, 1000)],
    "uniform": [random.Random(4).random() for _ in range(3000)],
    "two modes": [0.001] * 500 + [3600.0] * 500,
    "signed": [random.Random(5).gauss(0, 10) for _ in range(3000)],
    "single": [42.0],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0])
def test_quantiles_keep_the_stated_error(shape: str, q: float) -> None:
    values = sorted(SHAPES[shape])
    histogram = ExponentialHistogram.of(values)
    exact = values[max(0, math.ceil(q * len(values)) - 1)]
    quantile = histogram.quantile(q)
    assert quantile is not None
    allowed = abs(exact) * histogram.relative_error * (1 + 1e-9) + ZERO_THRESHOLD
    assert abs(quantile - exact) <= allowed


@settings(max_examples=200)
@given(st.lists(durations, min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_of_durations_keep_the_stated_error(values: list[float], q: float) -> None:
    histogram = ExponentialHistogram.of(values)
    exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    quantile = histogram.quantile(q)
    assert quantile is not None
    assert abs(quantile - exact) <= exact * histogram.relative_error * (1 + 1e-9) + ZERO_THRESHOLD


@given(value_lists, st.integers(2, 40))
def test_a_stored_histogram_reads_back_equal(values: list[float], most: int) -> None:
    histogram = ExponentialHistogram.of(values, max_buckets=most)
    again = ExponentialHistogram.from_bytes(histogram.to_bytes())
    assert again == histogram
    assert (again.sum, again.max_buckets) == (histogram.sum, histogram.max_buckets)


def test_the_stored_form_is_compact() -> None:
    assert len(ExponentialHistogram.of(SHAPES["skewed"]).to_bytes()) < 450
    for bad in (b"", b"\xc1", b"\x91\x02", ExponentialHistogram().to_bytes()[:-1]):
        with pytest.raises(ValueError):
            ExponentialHistogram.from_bytes(bad)


@given(value_lists, value_lists)
def test_the_difference_of_two_states_is_what_was_observed_between(before: list[float], between: list[float]) -> None:
    earlier = ExponentialHistogram.of(before)
    later = earlier + ExponentialHistogram.of(between)
    later.subtract(earlier)
    only = ExponentialHistogram.of(between).downscaled(min(later.schema, ExponentialHistogram.of(between).schema))
    assert (later.count, later.zero_count) == (only.count, only.zero_count)
    assert later.positive == only.downscaled(later.schema).positive
    assert later.negative == only.downscaled(later.schema).negative


def test_impossible_requests_are_refused() -> None:
    histogram = ExponentialHistogram.of([1, 2, 3])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            histogram.observe(bad)
    assert histogram.count == 3
    with pytest.raises(TooFineError):
        histogram.downscaled(0).downscaled(1)
    with pytest.raises(ValueError, match="earlier"):
        histogram.subtract(ExponentialHistogram.of([50]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        histogram.quantile(1.5)
    assert ExponentialHistogram().quantile(0.5) is None


# In the coarsest schema, values from the zero threshold to 1e9 span 10 buckets.
@given(st.lists(st.floats(0, 1e9), max_size=200), st.integers(10, 40))
@example([0.0, 2**-127, 1.0, 65536.0, 65537.0, 1e9], 10)
def test_bars_hold_every_value_once_and_are_few(values: list[float], most: int) -> None:
    bars = ExponentialHistogram.of(values).bars(most)
    assert sum(count for _, _, count in bars) == len(values)
    assert len(bars) <= most + 1
    assert bars == sorted(bars)
    for value in values:
        assert any(low < value <= high or (value <= ZERO_THRESHOLD and high == 0) for low, high, _ in bars)


@given(value_lists | st.lists(durations), st.booleans())
def test_counting_many_values_is_counting_each(values: list[float], is_coarse: bool) -> None:
    one_by_one, at_once = ExponentialHistogram(), ExponentialHistogram()
    for histogram in (one_by_one, at_once):
        for power in range(-500, 500) if is_coarse else ():
            histogram.observe(2.0**power)
    for value in values:
        one_by_one.observe(value)
    at_once.observe_all(values)
    assert at_once == one_by_one


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_of_many_values_all_are_counted_or_none(value: float) -> None:
    histogram = ExponentialHistogram()
    with pytest.raises(ValueError, match="not a finite number"):
        histogram.observe_all([1.0, value, 2.0])
    assert histogram.count == 0
    histogram.observe_all([-1.0, 0.0, 2.0])
    assert histogram == ExponentialHistogram.of([-1.0, 0.0, 2.0])


@given(value_lists, st.lists(st.floats(0, 1), max_size=6))
def test_many_quantiles_are_each_of_them(values: list[float], qs: list[float]) -> None:
    histogram = ExponentialHistogram.of(values)
    assert histogram.quantiles(sorted(qs)) == [histogram.quantile(q) for q in sorted(qs)]
    if values:
        exact = sorted(values)
        for q in qs:
            found = histogram.quantile(q)
            assert found is not None
            assert abs(found - exact[max(1, math.ceil(q * len(values))) - 1]) <= max(
                ZERO_THRESHOLD, histogram.relative_error * abs(found) * 1.1
            )
