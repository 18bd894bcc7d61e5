"""What is known of a workflow's executions: the facts that expectations are held against. Times are unix ns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from tachograph.events import UNSUCCESSFUL

WINDOWS: Final = (300, 1800, 3600, 7200, 21_600, 86_400, 259_200)
"""Seconds back from now, or from the last failure, for which executions are counted."""


class Run(NamedTuple):
    """An execution that has started. ``status``: see `tachograph.events.ExecutionStatus`."""

    execution_id: str
    started_ns: int
    finished_ns: int | None
    status: str

    @property
    def is_bad(self) -> bool:
        """Whether it counts against the success rate."""
        return self.finished_ns is not None and self.status in UNSUCCESSFUL

    @property
    def is_good(self) -> bool:
        """Whether it completed."""
        return self.finished_ns is not None and self.status == "completed"


class RunningStep(NamedTuple):
    """A step that runs."""

    execution_id: str
    name: str
    started_ns: int


class LongStep(NamedTuple):
    """A step that took longer than its deadline."""

    execution_id: str
    name: str
    started_ns: int
    finished_ns: int


class Hour(NamedTuple):
    """An hour (its start in unix seconds) in which executions ended: US dollars, and mean seconds by step."""

    start_s: int
    cost_usd: float
    steps: Mapping[str, float]


class Count(NamedTuple):
    """How many executions completed or failed in a time, and how many failed."""

    judged: int = 0
    failed: int = 0


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a workflow.

    ``runs`` are the newest executions and all open ones, by start. ``steps`` are those that run, ``long_steps`` those
    of the newest executions that took longer than their deadline. ``waiting_ns``: since when one is queued that has
    not started. ``usual_p95_seconds``: of completed executions; ``usual_steps``: of completed steps, by name, if it
    matters. ``counts`` are by seconds (`WINDOWS`) up to now.
    ``hours`` are the last fortnight's in which executions ended, oldest first. ``last_success_ns`` may be older than
    all ``runs``.
    """

    runs: Sequence[Run] = ()
    steps: Sequence[RunningStep] = ()
    long_steps: Sequence[LongStep] = ()
    waiting_ns: int | None = None
    usual_p95_seconds: float | None = None
    usual_steps: Mapping[str, float] = {}
    counts: Mapping[int, Count] = {}
    hours: Sequence[Hour] = ()
    last_success_ns: int | None = None
