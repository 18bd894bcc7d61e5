"""Distributions: values counted by classic and by native bucket, with their exact sum.

What a Prometheus histogram shows, kept so that it can be stored, added up and taken apart again: every part is an
integer or an exact sum, so the order of adding does not matter, not even in the last digit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from tachograph.exact_sum import ExactSum
from tachograph.histogram import MAX_BUCKETS, MAX_SCHEMA, MIN_SCHEMA, ExponentialHistogram, join_buckets

DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 57_600.0, 86_400.0,
)  # fmt: skip
"""Upper bounds of classic buckets in seconds, 5 ms to 24 h: workflows take milliseconds to days, unlike requests."""

MEASURE_BUCKETS: Final = tuple(step * 10.0**power for power in range(-3, 10) for step in (1, 2.5, 5))
"""Upper bounds for measures of any unit, from a thousandth to billions; native buckets are finer."""

MEMORY_BUCKETS: Final = tuple(float(1 << power) for power in range(20, 41))
"""Upper bounds for memory in bytes: 1 MiB to 1 TiB, each twice the one before."""

_NS: Final = 1_000_000_000
_LARGEST: Final = 1 << 63

Sum: TypeAlias = int | ExactSum
"""Nanoseconds, or the sum of values in any unit."""


class DistributionRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `Distribution` as it is stored. ``total``: nanoseconds (as text beyond 63 bits), or an `ExactSum` as text."""

    count: int = 0
    total: int | str = 0
    schema: int = MAX_SCHEMA
    zero_count: int = 0
    positive: dict[int, int] = {}
    negative: dict[int, int] = {}
    classic: dict[int, int] = {}


def stored_integer(value: int) -> int | str:
    """An integer of any size as msgpack and JSON can carry it: text beyond 63 bits."""
    return value if -_LARGEST < value < _LARGEST else str(value)


def quotient(value: int, divisor: int) -> float:
    """An integer divided by a positive one, rounded once; infinite beyond the largest float."""
    try:
        return value / divisor
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


class Distribution:
    """How values are distributed over classic and native buckets.

    ``classic``: counts by the index of their bucket among the upper bounds; the index after the last bound is +Inf.
    ``native``: their exponential histogram, whose own sum and extremes are not kept. Counts may be negative where one
    distribution was taken from another.
    """

    __slots__ = ("classic", "native", "total")

    def __init__(self, total: Sum = 0) -> None:
        self.total = total
        self.native = ExponentialHistogram()
        self.classic: dict[int, int] = {}

    @classmethod
    def of_measures(cls) -> Distribution:
        """An empty distribution of values in any unit."""
        return cls(ExactSum(0, 0))

    @property
    def count(self) -> int:
        """Number of values."""
        return self.native.count

    @property
    def sum(self) -> float:
        """The sum in seconds, or in the values' unit, rounded once."""
        return self.total.value if isinstance(self.total, ExactSum) else quotient(self.total, _NS)

    def observe_ns(self, value_ns: int) -> int:
        """Count a time. A negative one (a clock set back) counts as zero. Returns its classic bucket."""
        native, classic = self.native, self.classic
        if value_ns <= 0:
            native.count += 1
            native.zero_count += 1
            classic[0] = classic.get(0, 0) + 1
            return 0
        self.total += value_ns  # type: ignore[operator]
        seconds = value_ns / _NS
        native.observe(seconds)
        index = bisect_left(DURATION_BUCKETS, seconds)
        classic[index] = classic.get(index, 0) + 1
        return index

    def observe_all_ns(self, values_ns: Sequence[int]) -> list[int]:
        """Count times, as `observe_ns` would one by one. Returns the classic bucket of each."""
        seconds = [value / _NS if value > 0 else 0.0 for value in values_ns]
        self.total += sum([value for value in values_ns if value > 0])  # type: ignore[operator]
        self.native.observe_all(seconds)
        indexes = [bisect_left(DURATION_BUCKETS, value) for value in seconds]
        for index, count in Counter(indexes).items():
            self.classic[index] = self.classic.get(index, 0) + count
        return indexes

    def observe_zeros(self, times: int) -> None:
        """Count zero a number of times."""
        self.native.count += times
        self.native.zero_count += times
        self.classic[0] = self.classic.get(0, 0) + times

    def observe(self, value: float) -> None:
        """Count a value in any unit. Raises `ValueError` if it is not finite."""
        self.native.observe(value)
        self.total += ExactSum.of(value)  # type: ignore[operator]
        index = bisect_left(MEASURE_BUCKETS, value)
        self.classic[index] = self.classic.get(index, 0) + 1

    def observe_bytes(self, value: int) -> None:
        """Count a size. Its classic buckets are `MEMORY_BUCKETS`, so a distribution of sizes holds nothing else."""
        self.native.observe(value)
        self.total += ExactSum.of(value)  # type: ignore[operator]
        index = bisect_left(MEMORY_BUCKETS, value)
        self.classic[index] = self.classic.get(index, 0) + 1

    def add(self, other: Distribution, sign: int = 1) -> None:
        """Add another distribution's values, or take them away (``sign`` -1)."""
        total = other.total
        if sign < 0:
            total = ExactSum(-total.mantissa, total.exponent) if isinstance(total, ExactSum) else -total
        self.total += total  # type: ignore[operator]
        mine, theirs = self.native, other.native
        if theirs.schema < mine.schema:
            _coarsen(mine, theirs.schema)
        by = theirs.schema - mine.schema
        _add_counts(mine.positive, join_buckets(theirs.positive, by) if by else theirs.positive, sign)
        _add_counts(mine.negative, join_buckets(theirs.negative, by) if by else theirs.negative, sign)
        _add_counts(self.classic, other.classic, sign)
        mine.count += sign * theirs.count
        mine.zero_count += sign * theirs.zero_count
        while len(mine.positive) + len(mine.negative) > MAX_BUCKETS and mine.schema > MIN_SCHEMA:
            _coarsen(mine, mine.schema - 1)

    def copy(self) -> Distribution:
        """An independent copy."""
        copy = Distribution(self.total)
        copy.native, copy.classic = self.native.copy(), dict(self.classic)
        return copy

    def is_empty(self) -> bool:
        """Whether it holds no values, and adding it would change nothing."""
        native = self.native
        return not (native.count or native.zero_count or native.positive or native.negative or self.classic) and (
            self.total in (0, (0, 0))
        )

    def only_adds(self) -> bool:
        """Whether no count is negative, so that adding it lets no bucket shrink."""
        native = self.native
        counts = (*native.positive.values(), *native.negative.values(), *self.classic.values(), native.zero_count)
        return (
            native.count >= 0 and min(counts, default=0) >= 0 and not (isinstance(self.total, int) and self.total < 0)
        )

    def advance(self, true: Distribution) -> bool:
        """Grow towards another distribution without any count becoming smaller. Returns whether both are equal now.

        What Prometheus has been shown cannot be taken back: a bucket that shrinks is a counter reset to it. So the
        number of values grows to that of ``true``, if it is larger, in buckets that ``true`` has more of.
        """
        mine = self.native
        if true.native.schema < mine.schema:
            _coarsen(mine, true.native.schema)
        by = true.native.schema - mine.schema
        theirs = true.native.copy()
        if by:
            theirs.positive, theirs.negative = join_buckets(theirs.positive, by), join_buckets(theirs.negative, by)
        room = theirs.count - mine.count
        if room > 0:
            rest = _grow(mine.positive, theirs.positive, room)
            rest = _grow(mine.negative, theirs.negative, rest)
            mine.zero_count += min(rest, max(0, theirs.zero_count - mine.zero_count))
            _grow(self.classic, true.classic, room)
            mine.count = theirs.count
        # A sum of values of any sign may fall.
        if isinstance(self.total, ExactSum) or isinstance(true.total, ExactSum) or self.total < true.total:
            self.total = true.total
        return (
            self.total == true.total
            and mine.count == theirs.count
            and mine.zero_count == theirs.zero_count
            and mine.positive == theirs.positive
            and mine.negative == theirs.negative
            and self.classic == true.classic
        )

    def to_row(self) -> DistributionRow:
        """The stored form; equal distributions have equal ones."""
        native, total = self.native, self.total
        return DistributionRow(
            native.count,
            total.text if isinstance(total, ExactSum) else stored_integer(total),
            native.schema,
            native.zero_count,
            dict(sorted(native.positive.items())),
            dict(sorted(native.negative.items())),
            dict(sorted(self.classic.items())),
        )

    @classmethod
    def from_row(cls, row: DistributionRow) -> Distribution:
        """The distribution that `to_row` gave."""
        total: Sum = row.total if isinstance(row.total, int) else _parsed(row.total)
        distribution = cls(total)
        native = distribution.native
        native.schema, native.count, native.zero_count = row.schema, row.count, row.zero_count
        native.positive, native.negative = dict(row.positive), dict(row.negative)
        distribution.classic = dict(row.classic)
        return distribution


def _parsed(text: str) -> Sum:
    return ExactSum.parse(text) if "p" in text else int(text)


def _coarsen(native: ExponentialHistogram, schema: int) -> None:
    by = native.schema - schema
    native.positive, native.negative = join_buckets(native.positive, by), join_buckets(native.negative, by)
    for counts in (native.positive, native.negative):
        for index in [index for index, count in counts.items() if not count]:
            del counts[index]
    native.schema = schema


def _add_counts(mine: dict[int, int], theirs: dict[int, int], sign: int) -> None:
    for index, count in theirs.items():
        total = mine.get(index, 0) + sign * count
        if total:
            mine[index] = total
        else:
            mine.pop(index, None)


def _grow(mine: dict[int, int], theirs: dict[int, int], room: int) -> int:
    """Let counts grow towards others, by ``room`` in all. Returns what is left of it."""
    for index, count in sorted(theirs.items()):
        more = min(room, count - mine.get(index, 0))
        if more > 0:
            mine[index] = mine.get(index, 0) + more
            room -= more
    return room
