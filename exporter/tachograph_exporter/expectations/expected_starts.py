"""The times of a window at which a workflow was expected to start, and what became of each."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph_exporter.expectations.limits import Limits
from tachograph_exporter.expectations.schedules import EARLY_SECONDS, Every, Learned, Schedule
from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.schemas.night import NightStart

MAX_STARTS: Final = 500
"""So many of the newest expected starts of a workflow are listed."""
MAX_LOOKED_AT: Final = 12_000
"""So many are looked at: one each minute of eight days."""


class Known(NamedTuple):
    """What is known of a workflow's starts; times are unix nanoseconds.

    ``starts_ns``: the oldest first. ``since_ns``: these are all since then. ``hung_ns``: times (from, to) of runs that
    took too long: whoever schedules a workflow may not start it meanwhile, so nothing is missed.
    """

    starts_ns: Sequence[int]
    since_ns: int = 0
    hung_ns: Sequence[tuple[int, int]] = ()

    def is_hung(self, time_ns: int) -> bool:
        """Whether a run hung at a time."""
        return any(low <= time_ns < high for low, high in self.hung_ns)


def expected_starts(
    schedule: Schedule, limits: Limits, window_ns: tuple[int, int], known: Known, now_ns: int, expected_since_ns: int
) -> tuple[list[NightStart], bool]:
    """The times of a window at which a workflow was due, each with what became of it; and whether that is all.

    A start belongs to the last time before it, or to the one right after it. Of an interval, the next time depends on
    the start before it: where one is missing, nothing is expected after it, and its time may be before the window.
    """
    grace = limits.grace_seconds
    early = EARLY_SECONDS
    if isinstance(schedule, Learned):
        grace = max(grace, schedule.spread_seconds if limits.has_grace else schedule.grace_seconds)
        early = max(early, schedule.spread_seconds)
    grace_ns = round(grace * NS)
    rhythm = schedule.schedule if isinstance(schedule, Learned) else schedule
    if isinstance(rhythm, Every):
        chain = _chain(rhythm, grace_ns, window_ns, known, now_ns, expected_since_ns)
    else:
        low = max(window_ns[0], expected_since_ns, known.since_ns)
        chain = _calendar(schedule, (round(early * NS), grace_ns), (low, window_ns[1]), known, now_ns)
    kept: deque[NightStart] = deque(maxlen=MAX_STARTS)
    count = 0
    for start in chain:
        kept.append(start)
        count += 1
        if count >= MAX_LOOKED_AT:
            break
    return [*kept], count <= MAX_STARTS


def _calendar(
    schedule: Schedule, tolerance_ns: tuple[int, int], window_ns: tuple[int, int], known: Known, now_ns: int
) -> Iterator[NightStart]:
    early_ns, grace_ns = tolerance_ns
    due = schedule.after(window_ns[0] - 1)
    while due is not None and due < window_ns[1]:
        following = schedule.after(due)
        gap = following - due if following is not None else 86_400 * NS
        begin = due - min(early_ns, gap // 4)
        place = bisect.bisect_left(known.starts_ns, begin)
        start = known.starts_ns[place] if place < len(known.starts_ns) else None
        yield _start(due, start if start is not None and start < begin + gap else None, grace_ns, known, now_ns)
        due = following


def _chain(
    every: Every, grace_ns: int, window_ns: tuple[int, int], known: Known, now_ns: int, expected_since_ns: int
) -> Iterator[NightStart]:
    low = max(window_ns[0], expected_since_ns, known.since_ns)
    starts = known.starts_ns
    place = bisect.bisect_left(starts, low)
    if place and starts[place - 1] >= max(expected_since_ns, known.since_ns):
        before = starts[place - 1]
    elif known.since_ns > expected_since_ns and place < len(starts):
        before = starts[place]  # What was before it is not known.
        place += 1
    else:
        before = expected_since_ns
    for start in [*starts[place:], None]:
        ends = [high for begin, high in known.hung_ns if begin <= before < high]
        due = every.after(max([before, *ends])) or 0
        if due >= window_ns[1] and (start is None or start >= window_ns[1]):
            return
        if start is None or start >= low:
            # Whoever starts it earlier moves the next time.
            yield _start(due if start is None else min(due, start), start, grace_ns, known, now_ns)
        before = start or 0


def _start(due: int, start: int | None, grace_ns: int, known: Known, now_ns: int) -> NightStart:
    if start is not None:
        state = "late" if start > due + grace_ns else "started"
    elif now_ns <= due + grace_ns:
        state = "due"
    else:
        state = "held" if known.is_hung(due) else "missing"
    return NightStart(at=rfc3339(due), state=state, started_at=rfc3339_or_none(start))
