"""Split a range of time into rollup rows and two ragged edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph_exporter.store.rollups.periods import (
    ALL,
    DAY,
    FIVE_MINUTES,
    HOUR,
    first_five_minutes,
    floor,
    month_of,
    next_month,
)


class RowRange(NamedTuple):
    """Rows of one period whose starts (unix seconds) lie in a range."""

    period: str
    low_s: int
    high_s: int


class RangeParts(NamedTuple):
    """The parts of a range of time: rollup rows, and edges (unix nanoseconds) to be counted from the executions."""

    row_ranges: tuple[RowRange, ...]
    edges: tuple[tuple[int, int], ...]


def split_range(head: int | None, from_ns: int | None, to_ns: int | None, *, coarsest: str = ALL) -> RangeParts:
    """The fewest rows that make up a range, given the head. ``coarsest``: use no longer period than this one.

    Exact for any range: the edges are what whole periods do not cover.
    """
    if head is None:
        return RangeParts((), ())
    end = head + FIVE_MINUTES
    five_minutes, hour, day = first_five_minutes(head), floor(head, HOUR), floor(head, DAY)
    edges: list[tuple[int, int]] = []
    low = 0
    if from_ns is not None and from_ns > 0:
        low = -(-from_ns // (FIVE_MINUTES * NS)) * FIVE_MINUTES
        if low < five_minutes:
            low = -(-from_ns // (HOUR * NS)) * HOUR
    high = end
    if to_ns is not None and to_ns < end * NS:
        high = floor(max(0, to_ns // NS), FIVE_MINUTES)
        if high < five_minutes:
            high = floor(high, HOUR)
    if from_ns is not None and low > high:
        # The range holds no whole unit.
        last = min(to_ns, end * NS) if to_ns is not None else end * NS
        return RangeParts((), ((from_ns, last),) if from_ns < last else ())
    if from_ns is not None and from_ns < low * NS:
        edges.append((from_ns, low * NS))
    if to_ns is not None and high * NS < to_ns and high < end:
        edges.append((high * NS, to_ns))
    allowed = _PERIODS[_PERIODS.index(coarsest) :]
    closed = {ALL: day, "1mo": day, "1d": day, "1h": hour, "5m": end}
    row_ranges: list[RowRange] = []
    at = low
    if not low:
        # From the beginning of time: rows of the longest period, as far as they reach.
        for period in allowed:
            stop = month_of(high) if period == "1mo" and high < day else min(high, closed[period])
            if period == ALL and high < day:
                continue
            if period in _SECONDS:
                stop = floor(stop, _SECONDS[period])
            row_ranges.append(RowRange(period, 0, stop))
            at = stop
            break
    while at < high:
        period, stop = _next_range(at, high, allowed, closed)
        if row_ranges and row_ranges[-1].period == period and row_ranges[-1].high_s == at:
            row_ranges[-1] = RowRange(period, row_ranges[-1].low_s, stop)
        else:
            row_ranges.append(RowRange(period, at, stop))
        at = stop
    return RangeParts(tuple(rows for rows in row_ranges if rows.low_s < rows.high_s), tuple(edges))


_PERIODS: Final = (ALL, "1mo", "1d", "1h", "5m")
_SECONDS: Final = {"1d": DAY, "1h": HOUR, "5m": FIVE_MINUTES}


def _next_range(at: int, high: int, allowed: Sequence[str], closed: Mapping[str, int]) -> tuple[str, int]:
    """The longest period that starts at ``at`` and ends by ``high``, and the end of a run of such periods."""
    if "1mo" in allowed and at == month_of(at) and at < closed["1mo"]:
        stop = min(next_month(at), closed["1mo"])
        if stop <= high:
            return "1mo", stop
    larger = next_month(month_of(at)) if "1mo" in allowed else high
    for period, unit in _SECONDS.items():
        if period not in allowed:
            continue
        until = floor(min(high, closed[period]), unit)
        if at % unit == 0 and at + unit <= until:
            return period, min(until, larger)
        larger = min(larger, floor(at, unit) + unit)
    raise AssertionError(f"{at} is not between whole units")  # pragma: no cover
