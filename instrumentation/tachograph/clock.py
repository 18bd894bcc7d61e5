"""Times: unix nanoseconds, from a clock that never steps back during an execution."""

from __future__ import annotations

import time
from typing import Final, Protocol

NS: Final = 1_000_000_000
"""Nanoseconds in a second."""


class Clock(Protocol):
    """Anything that tells unix nanoseconds."""

    def __call__(self) -> int: ...


class AnchoredClock:
    """Unix nanoseconds that never step back: the wall clock read once, the monotonic clock added from then on.

    One clock serves one execution, so its times are consistent even when the machine's clock is set meanwhile.
    """

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.perf_counter_ns()

    def __call__(self) -> int:
        return self._offset + time.perf_counter_ns()
