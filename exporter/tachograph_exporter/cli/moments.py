"""Times for people: in the zone of the terminal (``TZ``), and never without it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime


def moment(text: str) -> str:
    """A time of the API (RFC 3339 in UTC) as ``2026-01-31 23:59:59 +01:00`` in the local zone."""
    local = _local(text)
    return f"{local:%Y-%m-%d %H:%M:%S} {_zone(local)}"


def clock(text: str) -> str:
    """The local time of day, for lines that follow one another: ``23:59:59``."""
    return f"{_local(text):%H:%M:%S}"


def column(title: str, texts: Sequence[str | None]) -> tuple[str, list[str]]:
    """(title, cells) of a column of times: the zone is in the title, or in each cell where the zones differ."""
    times = [_local(text) if text is not None else None for text in texts]
    zones = {_zone(time) for time in times if time is not None}
    if len(zones) == 1:
        (zone,) = zones
        return f"{title} ({zone})", [f"{time:%Y-%m-%d %H:%M:%S}" if time is not None else "–" for time in times]
    return title, [moment(text) if text is not None else "–" for text in texts]


def _local(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


def _zone(time: datetime) -> str:
    offset = f"{time:%z}"
    return "UTC" if offset in ("+0000", "-0000") else f"{offset[:3]}:{offset[3:5]}"
