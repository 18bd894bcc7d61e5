"""Conversion of times and durations: unix nanoseconds inside, RFC 3339 UTC and seconds outside."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from tachograph.clock import NS

_SECONDS_BY_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_MAX_NS: Final = 1 << 63
"""Times are 64-bit integers: from the year 1677 to 2262."""
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)?")
# The micro sign and the Greek letter.
_GO_NS: Final = {"ns": 1, "us": 1_000, "\u00b5s": 1_000, "\u03bcs": 1_000, "ms": 1_000_000, "s": NS, "m": 60 * NS,
                 "h": 3600 * NS, "d": 86_400 * NS, "w": 604_800 * NS}  # fmt: skip
_GO_PART: Final = re.compile(r"([0-9]{0,20})(?:\.([0-9]{0,30}))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h|d|w)")


@lru_cache(maxsize=65_536)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339(time_ns: int) -> str:
    """RFC 3339 in UTC with microseconds: ``2026-01-31T23:59:59.123456Z``."""
    microseconds = time_ns // 1000
    return f"{_second(microseconds // 1_000_000)}.{microseconds % 1_000_000:06d}Z"


def rfc3339_or_none(time_ns: int | None) -> str | None:
    """`rfc3339`, or None for None."""
    return None if time_ns is None else rfc3339(time_ns)


def seconds(duration_ns: int | None) -> float | None:
    """A duration in seconds; None for None."""
    return None if duration_ns is None else duration_ns / NS


def parse_time(text: str, now_ns: int) -> int:
    """Unix nanoseconds of an RFC 3339 time, of unix seconds, or of an age such as ``7d``. Raises ValueError."""
    if match := _DURATION.fullmatch(text):
        if match[2]:
            return max(0, now_ns - _nanoseconds(text, match))
        return _nanoseconds(text, match)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a valid time: expected RFC 3339 (2026-01-31T12:00:00Z), unix seconds, or an age "
            "(90m, 24h, 7d)"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return checked(round(moment.timestamp() * 1_000_000) * 1000, text)


def checked(time_ns: int, text: str) -> int:
    """A time in unix nanoseconds. Raises ValueError if it does not fit into 64 bits; ``text`` is what was read."""
    if not -_MAX_NS <= time_ns < _MAX_NS:
        raise ValueError(f"{text[:40]!r} is out of range: times begin in the year 1677 and end in 2262")
    return time_ns


def _nanoseconds(text: str, match: re.Match[str]) -> int:
    nanoseconds = float(match[1]) * _SECONDS_BY_UNIT[match[2] or "s"] * NS
    if nanoseconds >= _MAX_NS:
        raise ValueError(f"{text[:40]!r} is too large: times end in the year 2262")
    return round(nanoseconds)


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration: seconds, or a number with a unit (``250ms``, ``90s``, ``1.5h``). Raises ValueError."""
    if match := _DURATION.fullmatch(text):
        return _nanoseconds(text, match)
    raise ValueError(
        f"{text!r} is not a valid duration: expected seconds (0.25) or a number with a unit (250ms, 90s, 1.5h)"
    )


def parse_go_duration(text: str) -> int:
    """Nanoseconds of a duration as Go writes it: numbers with units, added up (``1h30m``, ``1.5s``, ``100µs``, ``0``).

    A number without a unit is seconds; ``d`` and ``w`` are days and weeks. Raises ValueError.
    Source: https://pkg.go.dev/time#ParseDuration.
    """
    if re.fullmatch(r"[0-9]{1,10}(?:\.[0-9]{1,9})?", text):
        text += "s"
    total, at = 0, 1 if text.startswith("+") else 0
    is_valid = at < len(text) <= 200
    while is_valid and at < len(text):
        part = _GO_PART.match(text, at)
        if part is None or not (part[1] or part[2]):
            is_valid = False
            break
        unit, fraction = _GO_NS[part[3]], part[2] or ""
        total += int(part[1] or 0) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
        at = part.end()
    if not is_valid:
        raise ValueError(f"{text[:40]!r} is not a valid duration: expected numbers with units (250ms, 1.5s, 1h30m)")
    if total >= _MAX_NS:
        raise ValueError(f"{text[:40]!r} is too large: durations end at 292 years")
    return total


def format_duration(duration_ns: int | None) -> str:
    """A duration for people: ``820 µs``, ``12.3 ms``, ``4.56 s``, ``3 m 20 s``, ``2 h 05 m``, ``3 d 04 h``."""
    if duration_ns is None:
        return "–"
    if duration_ns < 0:
        return f"-{format_duration(-duration_ns)}"
    value = duration_ns / NS
    # What rounds up to the next unit is shown in it.
    if value < 0.0009995:
        return f"{value * 1e6:.0f} µs"
    if value < 0.9995:
        return f"{value * 1e3:.3g} ms"
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} m"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"
