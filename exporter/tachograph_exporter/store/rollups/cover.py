"""Any range of time as a few rollup rows and two ragged edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph_exporter.store.rollups.periods import ALL, DAY, FINE, HOUR, fine_from, floor, month_of, next_month


class RowRange(NamedTuple):
    """Rows of one kind that start in a range of unix seconds."""

    kind: str
    low_s: int
    high_s: int


class RangeParts(NamedTuple):
    """How a range of time is put together: rollup rows, and executions' own rows in ranges of unix nanoseconds."""

    pieces: tuple[RowRange, ...]
    edges: tuple[tuple[int, int], ...]


def cover(head: int | None, from_ns: int | None, to_ns: int | None, *, coarsest: str = ALL) -> RangeParts:
    """The fewest rows that make up a range, given the head. ``coarsest``: no larger unit than this one.

    Between its edges a range is made of whole units; `cover` is exact for any range, since what is left over at the
    edges is read from the executions.
    """
    if head is None:
        return RangeParts((), ())
    end = head + FINE
    fine, hour, day = fine_from(head), floor(head, HOUR), floor(head, DAY)
    edges: list[tuple[int, int]] = []
    low = 0
    if from_ns is not None and from_ns > 0:
        low = -(-from_ns // (FINE * NS)) * FINE
        if low < fine:
            low = -(-from_ns // (HOUR * NS)) * HOUR
    high = end
    if to_ns is not None and to_ns < end * NS:
        high = floor(max(0, to_ns // NS), FINE)
        if high < fine:
            high = floor(high, HOUR)
    if from_ns is not None and low > high:
        # Not even one whole unit.
        last = min(to_ns, end * NS) if to_ns is not None else end * NS
        return RangeParts((), ((from_ns, last),) if from_ns < last else ())
    if from_ns is not None and from_ns < low * NS:
        edges.append((from_ns, low * NS))
    if to_ns is not None and high * NS < to_ns and high < end:
        edges.append((high * NS, to_ns))
    allowed = _KINDS[_KINDS.index(coarsest) :]
    closed = {ALL: day, "1mo": day, "1d": day, "1h": hour, "5m": end}
    pieces: list[RowRange] = []
    at = low
    if not low:
        # From the beginning, whenever that was: rows of the largest kind, as far as they go.
        for kind in allowed:
            stop = month_of(high) if kind == "1mo" and high < day else min(high, closed[kind])
            if kind == ALL and high < day:
                continue
            if kind in _SECONDS:
                stop = floor(stop, _SECONDS[kind])
            pieces.append(RowRange(kind, 0, stop))
            at = stop
            break
    while at < high:
        kind, stop = _next_piece(at, high, allowed, closed)
        if pieces and pieces[-1].kind == kind and pieces[-1].high_s == at:
            pieces[-1] = RowRange(kind, pieces[-1].low_s, stop)
        else:
            pieces.append(RowRange(kind, at, stop))
        at = stop
    return RangeParts(tuple(piece for piece in pieces if piece.low_s < piece.high_s), tuple(edges))


_KINDS: Final = (ALL, "1mo", "1d", "1h", "5m")
_SECONDS: Final = {"1d": DAY, "1h": HOUR, "5m": FINE}


def _next_piece(at: int, high: int, allowed: Sequence[str], closed: Mapping[str, int]) -> tuple[str, int]:
    """The largest kind of row that starts at ``at`` and ends by ``high``, and how far rows of that kind go on."""
    if "1mo" in allowed and at == month_of(at) and at < closed["1mo"]:
        stop = min(next_month(at), closed["1mo"])
        if stop <= high:
            return "1mo", stop
    larger = next_month(month_of(at)) if "1mo" in allowed else high
    for kind, unit in _SECONDS.items():
        if kind not in allowed:
            continue
        until = floor(min(high, closed[kind]), unit)
        if at % unit == 0 and at + unit <= until:
            return kind, min(until, larger)
        larger = min(larger, floor(at, unit) + unit)
    raise AssertionError(f"{at} is not between whole units")  # pragma: no cover
