"""When a workflow should start: cron expressions, intervals, and schedules learned from earlier starts.

Cron expressions mean what Debian's cron makes of them, in a time zone: what falls into the hour that is skipped in
spring runs right after it, and what falls into the hour that comes twice in autumn runs once, unless it runs every hour
anyway (https://manpages.debian.org/bookworm/cron/cron.8.en.html, cronsim).
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim

from tachograph.clock import NS
from tachograph.expectation import EVERY, LEARNED, NO_SCHEDULE, cron_of, parse_seconds
from tachograph_exporter.times import format_duration

EARLY_SECONDS: Final = 60.0
"""So much before its time a start counts as this time's: clocks differ. At most a quarter of the time between two."""
MIN_LEARNED: Final = 6
"""How many starts it takes to learn a schedule."""
MAX_LEARNED: Final = 60
"""From so many of the newest starts it is learned."""
_DAILY_GAP: Final = 12 * 3600.0
_SUCCESSIVE: Final = 30 * 3600.0
_FORTNIGHT: Final = 14 * 86_400
_DAY: Final = 1440
_SPREAD_MINUTES: Final = 30
_REGULAR: Final = 0.9
"""The share of starts that must fit a learned schedule."""
_INTERVAL_SPREAD: Final = 0.2
_ZONELESS_GRACE: Final = 4200.0
"""Without a time zone, clocks that change by an hour must not look like delays."""


class Schedule(Protocol):
    """When something starts."""

    @property
    def text(self) -> str:
        """For people."""

    def after(self, time_ns: int) -> int | None:
        """The first time after another one (unix ns); None if there is none."""


class Cron(NamedTuple):
    """A cron expression in a time zone."""

    expression: str
    zone: str

    @property
    def text(self) -> str:
        """See `Schedule.text`."""
        return f"{self.expression} ({self.zone})"

    def after(self, time_ns: int) -> int | None:
        """See `Schedule.after`."""
        try:
            return _next(self.expression, self.zone, time_ns // NS) * NS
        except (StopIteration, OverflowError, ValueError):
            return None


@lru_cache(maxsize=65_536)
def _next(expression: str, zone: str, second: int) -> int:
    if zone == "UTC":
        return round(next(CronSim(expression, datetime.fromtimestamp(second, UTC))).timestamp())
    info = ZoneInfo(zone)
    if any(field.startswith("*") for field in expression.split()[:2]):
        return _next_reading(expression, info, second)
    return round(next(CronSim(expression, datetime.fromtimestamp(second, info))).timestamp())


def _next_reading(expression: str, zone: ZoneInfo, second: int) -> int:
    """The first moment after another (unix seconds) at which the zone's clock shows a time of the expression.

    That is what cron does where the minute or the hour begins with a star. cronsim steps by hours through a zone: it
    goes astray where a clock changes by half an hour, or at midnight. So it is asked about clocks that never change.
    """
    shown = _shown(zone, second)
    first = next(at for reading in CronSim(expression, shown) if (at := _moment(zone, reading, second)) is not None)
    day_later = second + 86_400
    if _shown(zone, day_later) - shown >= timedelta(days=1):
        return first
    # The clock is put back within a day: from then on it shows times again that it has shown before.
    low, high = second, day_later
    while high - low > 1:
        middle = (low + high) // 2
        is_after = _shown(zone, middle) - shown < timedelta(seconds=middle - second)
        low, high = (low, middle) if is_after else (middle, high)
    again = CronSim(expression, _shown(zone, high) - timedelta(minutes=1))
    return min(first, next(at for reading in again if (at := _moment(zone, reading, low)) is not None))


def _shown(zone: ZoneInfo, second: int) -> datetime:
    """What the zone's clock shows."""
    return datetime.fromtimestamp(second, zone).replace(tzinfo=None, fold=0)


def _moment(zone: ZoneInfo, reading: datetime, second: int) -> int | None:
    """The first moment after another at which the zone's clock shows a time; None if it never does."""
    moments = [round(reading.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1)]
    return min((at for at in moments if at > second and _shown(zone, at) == reading), default=None)


class Every(NamedTuple):
    """So long after the previous start."""

    seconds: float

    @property
    def text(self) -> str:
        """See `Schedule.text`."""
        return f"every {format_duration(round(self.seconds * NS))}"

    def after(self, time_ns: int) -> int | None:
        """See `Schedule.after`."""
        return time_ns + round(self.seconds * NS)


class Learned(NamedTuple):
    """A schedule learned from starts.

    ``spread_seconds``: starts differed so much from it, so no grace is less. ``grace_seconds``: where none is said.
    """

    schedule: Schedule
    spread_seconds: float
    grace_seconds: float
    starts: int

    @property
    def text(self) -> str:
        """See `Schedule.text`."""
        return f"{self.schedule.text}, learned from {self.starts} starts"

    def after(self, time_ns: int) -> int | None:
        """See `Schedule.after`."""
        return self.schedule.after(time_ns)


def schedule_of(text: str | None, zone: str | None, starts_ns: Sequence[int]) -> Schedule | None:
    """A schedule as it is written; None if there is none, or none can be learned from the starts (oldest first).

    It must have no fault (see `tachograph.expectation.schedule_fault`).
    """
    text = (text or NO_SCHEDULE).strip()
    if text == NO_SCHEDULE:
        return None
    if text == LEARNED:
        return learn(starts_ns, zone)
    cron = cron_of(text)
    return Cron(cron, zone or "UTC") if cron is not None else Every(parse_seconds(text.removeprefix(EVERY)))


def due_after(schedule: Schedule, start_ns: int) -> int | None:
    """When the next start after this one is due. A start shortly before a time is the start of that time."""
    first = schedule.after(start_ns)
    early = max(EARLY_SECONDS, schedule.spread_seconds) if isinstance(schedule, Learned) else EARLY_SECONDS
    if first is None or first - start_ns > early * NS:
        return first
    second = schedule.after(first)
    return second if second is not None and first - start_ns <= (second - first) // 4 else first


def learn(starts_ns: Sequence[int], zone: str | None) -> Learned | None:
    """The schedule that these starts (oldest first) follow, or None: too few, or no rhythm.

    Runs at a time of day, on some days of the week; else runs at an interval.
    """
    starts = starts_ns[-MAX_LEARNED:]
    if len(starts) < MIN_LEARNED:
        return None
    gaps = [(later - earlier) / NS for earlier, later in itertools.pairwise(starts)]
    return _daily(starts, gaps, zone) or _interval(gaps)


def _daily(starts: Sequence[int], gaps: Sequence[float], zone: str | None) -> Learned | None:
    if min(gaps) < _DAILY_GAP:
        return None
    info = ZoneInfo(zone or "UTC")
    local = [datetime.fromtimestamp(start / NS, info) for start in starts]
    minutes = [moment.hour * 60 + moment.minute for moment in local]
    # Around midnight, minutes are counted from noon.
    shift = _DAY // 2 if max(minutes) - min(minutes) > _DAY // 2 else 0
    shifted = [(minute + shift) % _DAY for minute in minutes]
    usual = round(statistics.median_low(shifted))
    spread = [abs(minute - usual) for minute in shifted]
    if sum(apart <= _SPREAD_MINUTES for apart in spread) < _REGULAR * len(spread):
        return None
    hour, minute = divmod((usual - shift) % _DAY, 60)
    # The day of the time that a start belongs to, which may be the other side of midnight.
    days = [(moment - timedelta(minutes=minute_ - usual)).isoweekday() % 7
            for moment, minute_ in zip(local, shifted, strict=True)]  # fmt: skip
    on = {day for day, count in Counter(days).items() if count > 1}
    if max(gaps) < _SUCCESSIVE and starts[-1] - starts[0] < _FORTNIGHT * NS:
        on = set(range(7))  # Day after day, and not for long enough to see each day twice.
    if not on:
        return None
    cron = Cron(f"{minute} {hour} * * {'*' if len(on) == 7 else ','.join(map(str, sorted(on)))}", zone or "UTC")
    times, at = 0, starts[0] - _SPREAD_MINUTES * 60 * NS
    while (at := cron.after(at) or starts[-1] + 1) <= starts[-1] + _SPREAD_MINUTES * 60 * NS and times <= MAX_LEARNED:
        times += 1
    fitting = sum(day in on for day in days)
    if fitting < _REGULAR * len(starts) or fitting < _REGULAR * times:
        return None
    apart = 60.0 * (1 + max(minutes_ for minutes_ in spread if minutes_ <= _SPREAD_MINUTES))
    return Learned(cron, 2 * apart, max(2 * apart, _ZONELESS_GRACE if zone is None else 0.0), len(starts))


def _interval(gaps: Sequence[float]) -> Learned | None:
    usual = statistics.median(gaps)
    if usual <= 0 or sum(abs(gap - usual) <= _INTERVAL_SPREAD * usual for gap in gaps) < _REGULAR * len(gaps):
        return None
    apart = max(abs(gap - usual) for gap in gaps if abs(gap - usual) <= _INTERVAL_SPREAD * usual)
    return Learned(Every(usual), 2 * apart, usual / 2, len(gaps) + 1)
