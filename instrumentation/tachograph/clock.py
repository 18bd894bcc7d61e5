"""Unix nanoseconds from a clock that never steps back during an execution."""

from __future__ import annotations

import time
from typing import Final, Protocol

NS: Final = 1_000_000_000
"""Nanoseconds in a second."""


class Clock(Protocol):
    """Returns the current time in unix nanoseconds."""

    def __call__(self) -> int: ...


class AnchoredClock:
    """Unix nanoseconds that never step back: the wall clock at creation plus monotonic time since.

    Each execution has its own, so its times stay consistent when the machine's clock is adjusted meanwhile.
    """

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.perf_counter_ns()

    def __call__(self) -> int:
        return self._offset + time.perf_counter_ns()
