"""Exponential histograms: bucket widths grow by a constant factor, so every value keeps its relative precision.

The bucket arithmetic of Prometheus' native histograms (and of OpenTelemetry's exponential histograms). In schema s,
bucket i holds the values in ``(2**(2**-s * (i - 1)), 2**(2**-s * i)]``, negative values likewise by absolute value, and
a zero bucket holds values within `ZERO_THRESHOLD` of zero. Schemas range from 8 (a bucket is 0.27 % wide) to -4 (a
factor of 65,536). Beyond ``max_buckets`` buckets, neighbours are joined (schema - 1) until few enough are left.

The final schema depends only on the values, not on the order of observing or merging: it is the finest in which they
fit. So merging is associative and commutative, and downscaling commutes with it.

Wire and bucket definitions: https://prometheus.io/docs/specs/native_histograms/
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import frexp
from typing import Final, Self

import msgspec

MAX_SCHEMA: Final = 8
MIN_SCHEMA: Final = -4
MAX_BUCKETS: Final = 160
ZERO_THRESHOLD: Final = 2.0**-128
"""Values this close to zero are counted as zero. Prometheus' default."""

# Upper bounds of the buckets between 0.5 and 1, by schema; a value's fraction (`frexp`) is looked up here.
_BOUNDS: Final = {
    schema: tuple(0.5 * 2.0 ** (i / (1 << schema)) for i in range(1 << schema)) for schema in range(1, MAX_SCHEMA + 1)
}


class TooFineError(ValueError):
    """A finer schema was requested than the histogram has."""


def bucket_index(value: float, schema: int) -> int:
    """The index of the bucket that holds a positive, finite value."""
    fraction, exponent = frexp(value)
    if schema > 0:
        return bisect_left(_BOUNDS[schema], fraction) + ((exponent - 1) << schema)
    if fraction == 0.5:
        exponent -= 1  # A power of two is the upper bound of its bucket.
    return -(-exponent >> -schema)


def upper_bound(index: int, schema: int) -> float:
    """The inclusive upper bound of a bucket; ``inf`` beyond the largest float."""
    if schema > 0:
        exponent, rest = divmod(index, 1 << schema)
        try:
            return math.ldexp(_BOUNDS[schema][rest], exponent + 1)
        except OverflowError:
            return math.inf
    try:
        return math.ldexp(1.0, index << -schema)
    except OverflowError:
        return math.inf


def join_buckets(buckets: Mapping[int, int], by: int) -> dict[int, int]:
    """The buckets in a schema coarser by ``by``: 2**by neighbours become one."""
    if not by:
        return dict(buckets)
    joined: dict[int, int] = {}
    for index, count in buckets.items():
        wider = -(-index >> by)
        joined[wider] = joined.get(wider, 0) + count
    return joined


def runs(buckets: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of neighbouring indexes as (gap to the run before, length); the first gap is the first index."""
    spans: list[tuple[int, int]] = []
    end = 0
    for index in sorted(buckets):
        if spans and index == end:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((index - end, 1))
        end = index + 1
    return spans


class ExponentialHistogram:
    """Counts of values by exponential bucket, with their count, sum, minimum and maximum.

    Not thread-safe: callers that share a histogram must lock it.
    """

    __slots__ = ("count", "max", "max_buckets", "min", "negative", "positive", "schema", "sum", "zero_count")

    def __init__(self, *, schema: int = MAX_SCHEMA, max_buckets: int = MAX_BUCKETS) -> None:
        if not MIN_SCHEMA <= schema <= MAX_SCHEMA:
            raise ValueError(f"schema {schema} is not between {MIN_SCHEMA} and {MAX_SCHEMA}")
        if max_buckets < 2:
            raise ValueError(f"max_buckets {max_buckets} is less than 2")
        self.schema = schema
        self.max_buckets = max_buckets
        self.count = 0
        self.sum = 0.0
        self.min = math.inf
        self.max = -math.inf
        self.zero_count = 0
        self.positive: dict[int, int] = {}
        self.negative: dict[int, int] = {}

    @classmethod
    def of(cls, values: Iterable[float], *, max_buckets: int = MAX_BUCKETS) -> Self:
        """A histogram of ``values``."""
        histogram = cls(max_buckets=max_buckets)
        for value in values:
            histogram.observe(value)
        return histogram

    @property
    def base(self) -> float:
        """The ratio of a bucket's bounds."""
        return float(2.0 ** (2.0**-self.schema))

    @property
    def relative_error(self) -> float:
        """The largest relative error of a quantile: ``(base - 1) / (base + 1)``."""
        return (self.base - 1) / (self.base + 1)

    def observe(self, value: float) -> None:
        """Count a value. Raises `ValueError` if it is not finite."""
        # x - x is 0 if x is finite, else NaN.
        if value - value != 0:
            raise ValueError(f"cannot observe {value}: not a finite number")
        self.count += 1
        self.sum += value
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value
        if value > ZERO_THRESHOLD:
            buckets = self.positive
        elif value < -ZERO_THRESHOLD:
            buckets = self.negative
            value = -value
        else:
            self.zero_count += 1
            return
        schema = self.schema
        if schema > 0:
            # `bucket_index` inlined: this is the hot path.
            fraction, exponent = frexp(value)
            index = bisect_left(_BOUNDS[schema], fraction) + ((exponent - 1) << schema)
        else:
            index = bucket_index(value, schema)
        count = buckets.get(index)
        if count is not None:
            buckets[index] = count + 1
            return
        buckets[index] = 1
        if len(self.positive) + len(self.negative) > self.max_buckets:
            self._fit()

    def observe_all(self, values: Sequence[float]) -> None:
        """Count values, as `observe` would one by one, in a fraction of the time. Raises `ValueError` likewise, and
        then counts none.
        """
        if not values:
            return
        low, high, total = min(values), max(values), sum(values)
        # The sum of finite values may be infinite; NaN is no minimum.
        if not all(map(math.isfinite, values)):
            raise ValueError("cannot observe all of the values: not a finite number among them")
        if low < 0 or self.schema < 1:
            for value in values:
                self.observe(value)
            return
        positive = [value for value in values if value > ZERO_THRESHOLD]
        bounds, schema, buckets = _BOUNDS[self.schema], self.schema, self.positive
        indexes = [
            bisect_left(bounds, fraction) + ((exponent - 1) << schema) for fraction, exponent in map(frexp, positive)
        ]
        for index, count in Counter(indexes).items():
            buckets[index] = buckets.get(index, 0) + count
        self.count += len(values)
        self.zero_count += len(values) - len(positive)
        self.sum += total
        self.min, self.max = min(self.min, low), max(self.max, high)
        if len(buckets) + len(self.negative) > self.max_buckets:
            self._fit()

    def _fit(self) -> None:
        while len(self.positive) + len(self.negative) > self.max_buckets and self.schema > MIN_SCHEMA:
            self._coarsen(self.schema - 1)

    def _coarsen(self, schema: int) -> None:
        by = self.schema - schema
        self.positive = join_buckets(self.positive, by)
        self.negative = join_buckets(self.negative, by)
        self.schema = schema

    def downscaled(self, schema: int) -> Self:
        """A copy in a coarser schema, or the same. Raises `TooFineError` for a finer one."""
        if schema > self.schema:
            raise TooFineError(f"schema {schema} is finer than {self.schema}, the finest that this histogram has")
        if schema < MIN_SCHEMA:
            raise ValueError(f"schema {schema} is less than {MIN_SCHEMA}")
        copy = self.copy()
        copy._coarsen(schema)
        return copy

    def copy(self) -> Self:
        """An independent copy."""
        copy = type(self)(schema=self.schema, max_buckets=self.max_buckets)
        copy.count, copy.sum, copy.min, copy.max = self.count, self.sum, self.min, self.max
        copy.zero_count = self.zero_count
        copy.positive, copy.negative = dict(self.positive), dict(self.negative)
        return copy

    def merge(self, other: ExponentialHistogram) -> None:
        """Add another histogram's values. Costs O(buckets), however many values they hold."""
        if other.max_buckets < self.max_buckets:
            self.max_buckets = other.max_buckets
        if other.schema < self.schema:
            self._coarsen(other.schema)
        by = other.schema - self.schema
        for mine, theirs in ((self.positive, other.positive), (self.negative, other.negative)):
            if by:
                theirs = join_buckets(theirs, by)
            if mine:
                get = mine.get
                for index, count in theirs.items():
                    mine[index] = get(index, 0) + count
            else:
                mine.update(theirs)
        self.zero_count += other.zero_count
        self.count += other.count
        self.sum += other.sum
        if other.min < self.min:
            self.min = other.min
        if other.max > self.max:
            self.max = other.max
        if len(self.positive) + len(self.negative) > self.max_buckets:
            self._fit()

    def __add__(self, other: ExponentialHistogram) -> Self:
        total = self.copy()
        total.merge(other)
        return total

    def subtract(self, earlier: ExponentialHistogram) -> None:
        """Remove the values of an earlier state of this histogram, leaving those observed since.

        ``min`` and ``max`` keep their values, since those of the rest are unknown. Raises `ValueError` if ``earlier``
        is not an earlier state: it holds values that this one does not.
        """
        schema = min(self.schema, earlier.schema)
        mine, theirs = self.downscaled(schema), earlier.downscaled(schema)
        for buckets, subtracted in ((mine.positive, theirs.positive), (mine.negative, theirs.negative)):
            for index, count in subtracted.items():
                rest = buckets.get(index, 0) - count
                if rest < 0:
                    raise ValueError(f"bucket {index} would hold {rest} values: not an earlier state of this histogram")
                if rest:
                    buckets[index] = rest
                else:
                    buckets.pop(index, None)
        if theirs.zero_count > mine.zero_count or theirs.count > mine.count:
            raise ValueError("not an earlier state of this histogram")
        self.schema, self.positive, self.negative = schema, mine.positive, mine.negative
        self.zero_count -= earlier.zero_count
        self.count -= earlier.count
        self.sum -= earlier.sum

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same counts in the same schema. Sums are not compared: they depend on the order."""
        if not isinstance(other, ExponentialHistogram):
            return NotImplemented
        return (
            (self.schema, self.count, self.zero_count, self.min, self.max)
            == (other.schema, other.count, other.zero_count, other.min, other.max)
            and self.positive == other.positive
            and self.negative == other.negative
        )

    __hash__ = None  # type: ignore[assignment]

    def quantile(self, q: float) -> float | None:
        """The q-quantile (nearest rank), or None without values. Raises `ValueError` unless ``q`` is in [0, 1].

        Within `relative_error` of the exact quantile, or `ZERO_THRESHOLD` in the zero bucket. The result is the value
        of a bucket that is equally far from both bounds, relatively: ``2 * low * high / (low + high)``.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Sequence[float]) -> list[float | None]:
        """The quantiles for ascending ``qs``, each as `quantile` gives it, in one pass over the buckets."""
        for q in qs:
            if not 0 <= q <= 1:
                raise ValueError(f"a quantile is between 0 and 1, not {q}")
        if not self.count or not qs:
            return [None] * len(qs)
        ranks = [max(1, math.ceil(q * self.count)) for q in qs]
        values: list[float | None] = []
        seen = 0
        for index, sign, count in self._ascending():
            seen += count
            while seen >= ranks[len(values)]:
                values.append(self._clamped(sign * _middle(index, self.schema) if sign else 0.0))
                if len(values) == len(ranks):
                    return values
        return values + [self.max] * (len(ranks) - len(values))

    def _ascending(self) -> Iterator[tuple[int, int, int]]:
        """(index, sign, count) of the buckets from the lowest values to the highest; the zero bucket has sign 0."""
        for index in sorted(self.negative, reverse=True):
            yield index, -1, self.negative[index]
        yield 0, 0, self.zero_count
        for index in sorted(self.positive):
            yield index, 1, self.positive[index]

    def rank(self, value: float) -> float | None:
        """The fraction of values that are at most ``value``, from 0 to 1; None without values.

        Half of the values in the same bucket as ``value`` count as being below it.
        """
        if not self.count:
            return None
        if value >= self.max:
            return 1.0
        if value < self.min:
            return 0.0
        below = 0.0
        for buckets, sign in ((self.positive, 1), (self.negative, -1)):
            its_bucket = bucket_index(abs(value), self.schema) if value * sign > ZERO_THRESHOLD else None
            for index, count in buckets.items():
                if index == its_bucket:
                    below += count / 2
                elif (value * sign > 0 and its_bucket is not None and (index < its_bucket) == (sign > 0)) or (
                    sign < 0 <= value
                ):
                    below += count
        if value >= -ZERO_THRESHOLD:
            below += self.zero_count / (1 if value > ZERO_THRESHOLD else 2)
        return below / self.count

    def bars(self, most: int) -> list[tuple[float, float, int]]:
        """(low, high, count) of the filled buckets, ascending.

        In the finest schema in which they span at most ``most`` buckets. If not even the coarsest is coarse enough,
        neighbours are joined. The zero bucket comes first, as (0, 0, count), and is not among the ``most``; negative
        values are left out. Raises `ValueError` unless ``most`` is positive.
        """
        if most < 1:
            raise ValueError(f"at least one bucket is needed, not {most}")
        schema = self.schema
        while schema > MIN_SCHEMA:
            indexes = [-(-index >> (self.schema - schema)) for index in self.positive]
            if not indexes or max(indexes) - min(indexes) < most:
                break
            schema -= 1
        filled = sorted(join_buckets(self.positive, self.schema - schema).items())
        per_bar = max(1, -(-len(filled) // most))
        bars = [(0.0, 0.0, self.zero_count)] if self.zero_count else []
        for i in range(0, len(filled), per_bar):
            group = filled[i : i + per_bar]
            low, high = upper_bound(group[0][0] - 1, schema), upper_bound(group[-1][0], schema)
            bars.append((low, high, sum(count for _, count in group)))
        return bars

    def _clamped(self, value: float) -> float:
        return min(max(value, self.min), self.max)

    def to_bytes(self) -> bytes:
        """A compact form for storage: msgpack, with bucket indexes as differences."""
        return msgspec.msgpack.encode(
            (
                1,
                self.schema,
                self.max_buckets,
                self.count,
                self.sum,
                self.min,
                self.max,
                self.zero_count,
                _differences(self.positive),
                _differences(self.negative),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The histogram that `to_bytes` encoded. Raises `ValueError` for anything else."""
        try:
            fields = msgspec.msgpack.decode(
                data, type=tuple[int, int, int, int, float, float, float, int, list[int], list[int]]
            )
            version, schema, max_buckets, count, total, minimum, maximum, zero_count, positive, negative = fields
            if version != 1:
                raise ValueError(f"a histogram of version {version} cannot be read; this is version 1")
            histogram = cls(schema=schema, max_buckets=max_buckets)
        except msgspec.DecodeError as error:
            raise ValueError(f"not a stored histogram: {error}") from None
        histogram.count, histogram.sum, histogram.min, histogram.max = count, total, minimum, maximum
        histogram.zero_count = zero_count
        histogram.positive, histogram.negative = _from_differences(positive), _from_differences(negative)
        return histogram


def _middle(index: int, schema: int) -> float:
    low, high = upper_bound(index - 1, schema), upper_bound(index, schema)
    if high == math.inf:
        return low
    # 2 * low * high / (low + high), without overflow.
    return 2 * (low / (low + high)) * high if low + high else high


def _differences(buckets: Mapping[int, int]) -> list[int]:
    flat: list[int] = []
    previous = 0
    for index in sorted(buckets):
        flat += (index - previous, buckets[index])
        previous = index
    return flat


def _from_differences(flat: list[int]) -> dict[int, int]:
    buckets: dict[int, int] = {}
    index = 0
    for i in range(0, len(flat) - 1, 2):
        index += flat[i]
        buckets[index] = flat[i + 1]
    return buckets
