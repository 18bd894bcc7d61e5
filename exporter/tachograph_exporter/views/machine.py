"""What attempts used of the machine: processor time, memory, storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from tachograph.events import Resources
from tachograph_exporter.views.schemas.timeline import ResourceUse

_decode: Final = msgspec.json.Decoder(Resources).decode
_Number = TypeVar("_Number", int, float)


def resources_of(stored: str | None) -> ResourceUse | None:
    """What an attempt used, from its row."""
    if stored is None:
        return None
    try:
        use = _decode(stored)
    except (msgspec.MsgspecError, ValueError):
        return None
    return ResourceUse(use.cpu_seconds, use.peak_memory_bytes, use.read_bytes, use.written_bytes)


def all_resources(attempts: Sequence[ResourceUse]) -> ResourceUse | None:
    """What all attempts used: their sums, and the highest peak."""
    if not attempts:
        return None
    peaks = [use.peak_memory_bytes for use in attempts if use.peak_memory_bytes is not None]
    return ResourceUse(
        _total(use.cpu_seconds for use in attempts),
        max(peaks, default=None),
        _total(use.read_bytes for use in attempts),
        _total(use.written_bytes for use in attempts),
    )


def _total(values: Iterable[_Number | None]) -> _Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None
