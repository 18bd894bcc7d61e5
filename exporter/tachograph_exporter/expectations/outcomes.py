"""Failures in a row of outcomes: when a workflow fails, when it has recovered, and when it does both by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tachograph_exporter.expectations.findings import FAILED, FLAPPING
from tachograph_exporter.expectations.history import Run

FLAP_RUNS: Final = 10
"""A failure so few executions after one that was told is flapping."""
STEADY_RUNS: Final = 3
"""So many successes in a row end flapping."""


class Episode(NamedTuple):
    """A time of failing: `FAILED` or `FLAPPING`, from when it counts until (None: still) a success."""

    kind: str
    first: Run
    since_ns: int
    until_ns: int | None
    failures: int
    last: Run


def episodes(judged: Sequence[Run], limit_ns: int) -> list[Episode]:
    """The times of failing among executions that completed or failed, by their end.

    ``limit_ns``: so long after a failure without a success it counts. The last one may begin to count later than now.
    """
    closed: list[Episode] = []
    current: Episode | None = None
    steady, last_index, told_index = 0, 0, -FLAP_RUNS - 1
    for i, run in enumerate(judged):
        end = run.finished_ns or 0
        if run.is_bad:
            steady, last_index = 0, i
            if current is None:
                kind = FLAPPING if i - told_index <= FLAP_RUNS else FAILED
                current = Episode(kind, run, end + limit_ns, None, 1, run)
            else:
                current = current._replace(failures=current.failures + 1, last=run)
        elif current is not None:
            steady += 1
            if steady == 1 and end < current.since_ns:
                current = None  # It succeeded in time.
            elif current.kind == FAILED or steady >= STEADY_RUNS:
                closed.append(current._replace(until_ns=end))
                current, told_index = None, last_index
    return [*closed, current] if current is not None else closed
