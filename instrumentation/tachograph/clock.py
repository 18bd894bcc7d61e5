"""Unix nanoseconds from a clock that never steps back during an execution."""

from __future__ import annotations

import time
from typing import Final, Protocol

NS: Final = 1_000_000_000
"""Nanoseconds in a second."""
MAX_NS: Final = (1 << 63) - 1
"""The longest time that a database holds: 292 years."""


class Clock(Protocol):
    """Returns the current time in unix nanoseconds."""

    def __call__(self) -> int: ...


class AnchoredClock:
    """Unix nanoseconds that never step back: the wall clock at creation plus monotonic time since.

    Each execution has its own, so its times stay consistent when the machine's clock is adjusted meanwhile.
    """

    __slots__ = ("_offset",)

    def __init__(self, offset_ns: int | None = None) -> None:
        # The monotonic clock is the machine's: an execution's processes share its offset, and so its time.
        self._offset = time.time_ns() - time.perf_counter_ns() if offset_ns is None else offset_ns

    @property
    def offset_ns(self) -> int:
        """Wall clock minus monotonic clock, as read at the start."""
        return self._offset

    def __call__(self) -> int:
        return self._offset + time.perf_counter_ns()
