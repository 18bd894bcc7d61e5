"""The times of a metrics query: each value is of the spans that started in the step that ends then.

As in Tempo (``pkg/traceql/engine_metrics.go``): steps are aligned to multiples of their length, so that a range that
moves with the clock does not change its values; a step begins one step before the range; it includes its end.
"""

from __future__ import annotations

from typing import Final

import msgspec

NS: Final = 1_000_000_000
MAX_STEPS: Final = 11_000
"""Steps of one query at most, as in Prometheus."""
_TARGET: Final = 240
_ROUND_NS: Final = (3600 * NS, 300 * NS, 60 * NS, 15 * NS, 5 * NS, NS)
_FINE_NS: Final = 50_000_000


class TimeSteps(msgspec.Struct, frozen=True):
    """Steps of ``step_ns`` from ``start_ns`` (exclusive, unless there is one step only) to ``end_ns`` (inclusive)."""

    start_ns: int
    end_ns: int
    step_ns: int
    is_instant: bool = False

    @classmethod
    def over(cls, start_ns: int, end_ns: int, step_ns: int) -> TimeSteps:
        """Aligned steps over a range. Raises ValueError for more than `MAX_STEPS`."""
        start = start_ns - start_ns % step_ns - step_ns
        end = -(-end_ns // step_ns) * step_ns
        if (end - start) // step_ns > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS:,} steps; use a longer step or a shorter range")
        return cls(start, end, step_ns)

    @classmethod
    def instant(cls, start_ns: int, end_ns: int) -> TimeSteps:
        """One step that is the whole range."""
        return cls(start_ns, end_ns, end_ns - start_ns, is_instant=True)

    @property
    def count(self) -> int:
        """The number of steps."""
        return 1 if self.is_instant else (self.end_ns - self.start_ns) // self.step_ns

    def index(self, time_ns: int) -> int | None:
        """The step of a time, or None outside of them."""
        if self.is_instant:
            return 0 if self.start_ns <= time_ns <= self.end_ns else None
        if not self.start_ns < time_ns <= self.end_ns:
            return None
        return (time_ns - self.start_ns - 1) // self.step_ns

    def timestamp_ms(self, index: int) -> int:
        """When a step ends, in unix milliseconds."""
        end_ns = self.end_ns if self.is_instant else self.start_ns + (index + 1) * self.step_ns
        return end_ns // 1_000_000


def default_step_ns(start_ns: int, end_ns: int) -> int:
    """The step of a range for which none was asked: about 240 of them, of a round length."""
    length = end_ns - start_ns
    step = length // _TARGET
    if length < 60 * NS:
        return max(step // _FINE_NS * _FINE_NS, _FINE_NS)
    for unit in _ROUND_NS:
        if step > unit:
            return step // unit * unit
    return NS
