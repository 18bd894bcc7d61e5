"""The stretches of time that rollup rows stand for, in unix seconds, UTC."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from typing import Final

from tachograph.clock import NS

FINE: Final = 300
HOUR: Final = 3_600
DAY: Final = 86_400
FINE_DAYS: Final = 7
"""How many days before the head's day keep their five-minute rows."""
ALL: Final = "all"


def floor(moment_s: int, unit: int) -> int:
    """The start of the five minutes, hour or day a moment is in."""
    return moment_s - moment_s % unit


def month_of(moment_s: int) -> int:
    """The start of the calendar month (UTC) a moment is in."""
    moment = datetime.fromtimestamp(moment_s, UTC)
    return calendar.timegm((moment.year, moment.month, 1, 0, 0, 0))


def next_month(month_s: int) -> int:
    """The start of the month after."""
    return month_of(month_s + 32 * DAY)


def fine_from(head_s: int) -> int:
    """Since when there are five-minute rows, by the head."""
    return floor(head_s, DAY) - FINE_DAYS * DAY


def bucket_of(moment_ns: int) -> int:
    return floor(moment_ns // NS, FINE)
