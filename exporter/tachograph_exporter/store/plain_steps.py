"""Many steps of one kind, by column: what they add to totals and series costs a fraction of adding them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tachograph.distribution import Distribution
from tachograph.resources import Resources


class PlainSteps(NamedTuple):
    """Steps of one name and status that started, and ended with their first attempt. Times are nanoseconds.

    Attributes:
        execution_ids, span_ids, finished_ns, durations_ns, dependency_ns, queue_ns, scheduled_ns, unaccounted_ns: a
            value for each of them. None of the durations is negative.
        durations: the distribution of their durations.
        classic: the classic bucket of each of them.
        backoff_ns, run_ns, critical_ns: sums. ``critical_ns`` is the time of those on their critical path.
        uses: what they used of the machine and how long they ran, of those of which it is known.
    """

    name: str
    status: str
    execution_ids: Sequence[str]
    span_ids: Sequence[str]
    finished_ns: Sequence[int]
    durations_ns: Sequence[int]
    dependency_ns: Sequence[int]
    queue_ns: Sequence[int]
    scheduled_ns: Sequence[int]
    unaccounted_ns: Sequence[int]
    durations: Distribution
    classic: Sequence[int]
    backoff_ns: int
    run_ns: int
    critical_ns: int
    uses: Sequence[tuple[Resources, int]]
