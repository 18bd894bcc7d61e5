"""Response types used by several topics. Field names are a contract; durations are seconds, times RFC 3339 UTC."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    """A page of a list. ``total`` is the length of the whole list."""

    items: list[T]
    total: int
    skip: int
    limit: int


class Wait(msgspec.Struct, gc=False):
    """Seconds that a step waited for its dependencies, for a slot, and between attempts.

    ``unaccounted`` is the time between the end of what it depends on and the moment something asked for it: nothing
    says what the program did then. ``scheduled`` is the time between that moment and the time it was asked for: a
    countdown, or a start that whoever asked for it had chosen.
    """

    dependency: float
    queue: float
    backoff: float
    unaccounted: float = 0.0
    scheduled: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.dependency + self.queue + self.backoff + self.unaccounted + self.scheduled


class MeasureSummary(msgspec.Struct, kw_only=True):
    """Summary of the values that steps reported under one name."""

    name: str
    unit: str
    count: int
    sum: float
    average: float
    min: float
    max: float


class AverageUse(msgspec.Struct, gc=False):
    """What a run of a step used of the machine on average. Null: not known.

    ``count`` is how many runs say so. ``busy_share`` is processor time per running time, at most 1; the rest was
    waiting. ``peak_memory_bytes`` is the average of the runs' peaks, and without those that shared their process.
    """

    count: int
    cpu_seconds: float | None
    max_cpu_seconds: float | None
    busy_share: float | None
    peak_memory_bytes: int | None
    max_peak_memory_bytes: int | None
    read_bytes: int
    written_bytes: int
    gc_seconds: float
