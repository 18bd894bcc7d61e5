"""The periods of rollup rows, as unix seconds in UTC."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from typing import Final

from tachograph.clock import NS

FIVE_MINUTES: Final = 300
HOUR: Final = 3_600
DAY: Final = 86_400
FIVE_MINUTE_DAYS: Final = 7
"""Days before the head's day that keep their five-minute rows."""
ALL: Final = "all"


def floor(moment_s: int, unit: int) -> int:
    """The start of the five minutes, hour or day that contains a moment."""
    return moment_s - moment_s % unit


def month_of(moment_s: int) -> int:
    """The start of the calendar month (UTC) that contains a moment."""
    moment = datetime.fromtimestamp(moment_s, UTC)
    return calendar.timegm((moment.year, moment.month, 1, 0, 0, 0))


def next_month(month_s: int) -> int:
    """The start of the following month."""
    return month_of(month_s + 32 * DAY)


def first_five_minutes(head_s: int) -> int:
    """The earliest time that has five-minute rows."""
    return floor(head_s, DAY) - FIVE_MINUTE_DAYS * DAY


def bucket_of(moment_ns: int) -> int:
    """The start (unix seconds) of the five minutes that contain a moment (unix nanoseconds)."""
    return floor(moment_ns // NS, FIVE_MINUTES)
