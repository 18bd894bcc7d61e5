"""What an engine's jobs cost: the engine's own time, and the processor's."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias


class Cost(NamedTuple):
    """Of one job, in milliseconds: sending it and running it, by the clock, in the engine's own thread, and in all
    threads of the process and in its children."""

    sent: float
    ran: float
    sent_thread: float
    ran_thread: float
    sent_process: float
    ran_process: float


Engine: TypeAlias = Callable[[int, bool], Cost]
"""Runs so many jobs, without or with hooks."""


class Clock:
    """Times two blocks that are about a number of jobs: sending them, and running them."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._times: list[tuple[float, ...]] = []

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Time what is done in the block."""
        before = _now()
        yield
        self._times.append(tuple((b - a) / self._jobs * 1e3 for a, b in zip(before, _now(), strict=True)))

    @property
    def cost(self) -> Cost:
        """What both blocks took; a block that was not timed took nothing."""
        while len(self._times) < 2:
            self._times.insert(0, (0.0, 0.0, 0.0))
        return Cost(*[value for pair in zip(*self._times, strict=True) for value in pair])


def _now() -> tuple[float, float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.thread_time(), time.process_time() + children.ru_utime + children.ru_stime
