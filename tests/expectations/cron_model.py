"""Debian's cron, minute by minute: what `cronsim` and what is built on it are held against.

https://manpages.debian.org/bookworm/cron/cron.8.en.html: jobs whose minute or hour begins with a star run by what the
clock shows. Of others, those that fall into time that is left out run right after it, and those that fall into time
that comes twice run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
MINUTE = timedelta(minutes=1)


def values(text: str, low: int, high: int, names: Sequence[str] = ()) -> set[int]:
    """The numbers of a field."""

    def number(word: str) -> int:
        return names.index(word) + low if word in names else int(word)

    numbers: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (number(first), number(last or first))
        numbers |= set(range(begin, end + 1, int(step or 1)))
    return numbers


class Job(NamedTuple):
    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    needs_both_days: bool
    follows_clock: bool

    @classmethod
    def of(cls, expression: str) -> Job:
        minute, hour, day, month, weekday = expression.split()
        return cls(
            values(minute, 0, 59), values(hour, 0, 23), values(day, 1, 31), values(month, 1, 12, MONTHS),
            {number % 7 for number in values(weekday, 0, 7, WEEKDAYS)},
            day.startswith("*") or weekday.startswith("*"), minute.startswith("*") or hour.startswith("*"),
        )  # fmt: skip

    def runs_at(self, shown: datetime) -> bool:
        """Whether it runs when the clock shows this."""
        if shown.minute not in self.minutes or shown.hour not in self.hours or shown.month not in self.months:
            return False
        is_day, is_weekday = shown.day in self.days, shown.isoweekday() % 7 in self.weekdays
        return is_day and is_weekday if self.needs_both_days else is_day or is_weekday


def starts(expression: str, zone: str, begin: int, end: int) -> list[int]:
    """When cron starts it after a time and before another (unix seconds, both at a full minute)."""
    job, info, times = Job.of(expression), ZoneInfo(zone), []
    before: datetime | None = None
    for second in range(begin, end, 60):
        moment = datetime.fromtimestamp(second, info)
        shown = moment.replace(tzinfo=None, fold=0)
        runs = job.runs_at(shown) and (job.follows_clock or not moment.fold)
        if before is not None and not job.follows_clock and shown - before <= timedelta(hours=3):
            skipped = range(1, round((shown - before) / MINUTE))
            runs = runs or any(job.runs_at(before + minute * MINUTE) for minute in skipped)
        if runs and second > begin:
            times.append(second)
        before = shown
    return times
