"""Since when a run, or the step to look at, takes longer: the last change in a sample of runs that still lasts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from tachograph.clock import NS
from tachograph_exporter.store.samples import SampledRun
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes.case import MAX_DEVIATIONS, MIN_SLOW, Case
from tachograph_exporter.views.causes.claims import LIKELY, claim, length, trends_url
from tachograph_exporter.views.causes.parts import parts_of
from tachograph_exporter.views.causes.statistics import median, noise
from tachograph_exporter.views.changepoints import Shift, shifts
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.why import Claim

MAX_RUNS: Final = 200
"""Runs in which a change is looked for."""


def seconds_of(run: SampledRun, step_id: str | None) -> float | None:
    """What a run took, or a step of it with its wait for a slot."""
    if step_id is None:
        return (run.finished_ns - run.started_ns) / NS
    step = run.steps.get(step_id)
    parts = parts_of(step) if step is not None and step.folded_count is None else None
    return parts.total_ns / NS if parts is not None else None


def runs_before(sample: Sequence[SampledRun], execution_id: str) -> frozenset[str]:
    """The ids of the completed runs before the last change, if a run is clearly slow beside those, and so are the runs
    since: then many runs are as slow as it, and it is slow all the same.
    """
    runs = [run for run in sample if run.status == COMPLETED and (seconds_of(run, None) or 0) > 0][-MAX_RUNS:]
    seconds = [seconds_of(run, None) or 0.0 for run in runs]
    place = next((i for i, run in enumerate(runs) if run.execution_id == execution_id), None)
    change = _lasting(shifts(seconds), len(runs), place)
    if change is None or place is None:
        return frozenset()
    before = seconds[: change.start]
    ratio = seconds[place] / median(before)
    if ratio < MIN_SLOW or math.log(ratio) < MAX_DEVIATIONS * noise(before):
        return frozenset()
    return frozenset(run.execution_id for run in runs[: change.start])


def _lasting(changes: Sequence[Shift], count: int, place: int | None) -> Shift | None:
    """The last change to longer times, if it lasts to the end and the run at a place is one of those since."""
    if not changes or place is None:
        return None
    change = changes[-1]
    return change if change.end == count and change.ratio > 1 and change.start <= place else None


def since(case: Case) -> Iterator[Claim]:
    """Since which run it takes longer, if the run is one of those."""
    step = case.focus if case.run.execution.status == COMPLETED else None
    step_id = step.step_id if step is not None else None
    runs = [run for run in case.sample if run.status == COMPLETED and (seconds_of(run, step_id) or 0) > 0]
    runs = runs[-MAX_RUNS:]
    changes = shifts([seconds_of(run, step_id) or 0.0 for run in runs])
    place = next((i for i, run in enumerate(runs) if run.execution_id == case.execution_id), None)
    change = _lasting(changes, len(runs), place)
    if change is None:
        return
    first, previous = runs[change.start], runs[change.start - 1]
    is_new_version = first.version != previous.version and all(
        run.version != first.version for run in runs[: change.start]
    )
    version = f", the first with version {first.version}" if is_new_version else ""
    number = f"run #{first.number:,}" if first.number is not None else "the run"
    who = f"Step “{step.name}”" if step is not None else "A run"
    yield claim(
        "since",
        first.version if is_new_version else first.execution_id,
        f"{who} takes {change.ratio:.3g} times as long since {number} on "
        f"{rfc3339(first.started_ns)[:16].replace('T', ' ')} UTC{version}: {length(change.after)} instead of "
        f"{length(change.before)}.",
        LIKELY,
        trends_url(case.workflow_id, step.name if step is not None else None),
        execution_id=first.execution_id,
        since=rfc3339(first.started_ns),
        version=first.version if is_new_version else None,
        before_seconds=change.before,
        after_seconds=change.after,
        runs_before=change.start,
        runs_since=len(runs) - change.start,
    )
