"""Failures in a row of outcomes: when a workflow fails, when it has recovered, and when it does both by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tachograph.clock import NS
from tachograph_exporter.expectations.findings import FAILED, FLAPPING
from tachograph_exporter.expectations.history import Count, Run

FLAP_RUNS: Final = 10
"""A failure so many executions after one that had ended is flapping."""
STEADY_RUNS: Final = 3
"""So many successes in a row end flapping."""
SHORT_S: Final = 86_400
LONG_S: Final = 259_200


class Episode(NamedTuple):
    """A time of failing: `FAILED` or `FLAPPING`, from its first failure until (None: still) a success."""

    kind: str
    first: Run
    since_ns: int
    until_ns: int | None
    failures: int
    last: Run


def episodes(judged: Sequence[Run], counts: bool | Callable[[Run], bool]) -> list[Episode]:
    """The times of failing among executions that completed or failed, by their end.

    ``counts``: whether a failure counts, see `exceeds_ratio`.
    """
    closed: list[Episode] = []
    current: Episode | None = None
    steady, last_failure = 0, -FLAP_RUNS - 1
    for i, run in enumerate(judged):
        end = run.finished_ns or 0
        if run.is_bad:
            steady = 0
            if current is not None:
                current = current._replace(failures=current.failures + 1, last=run)
            elif counts is True or (callable(counts) and counts(run)):
                kind = FLAPPING if i - last_failure <= FLAP_RUNS else FAILED
                current = Episode(kind, run, end, None, 1, run)
            last_failure = i
        else:
            steady += 1
            if current is not None and (current.kind == FAILED or steady >= STEADY_RUNS):
                closed.append(current._replace(until_ns=end))
                current = None
    return [*closed, current] if current is not None else closed


def exceeds_ratio(judged: Sequence[Run], ratio: float, run: Run) -> bool:
    """Whether the failures of the day, or of the three days, before a failure's end are more than this fraction."""
    end = run.finished_ns or 0
    for window in (SHORT_S, LONG_S):
        count = counted(judged, end - window * NS, end)
        if count.failed > ratio * count.judged:
            return True
    return False


def counted(judged: Sequence[Run], after_ns: int, until_ns: int) -> Count:
    """How many of the executions ended in a time, and how many of these failed."""
    bad = [run.is_bad for run in judged if run.finished_ns is not None and after_ns < run.finished_ns <= until_ns]
    return Count(len(bad), sum(bad))
