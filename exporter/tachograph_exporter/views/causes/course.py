"""Since when a run, or the step to look at, takes longer: the last change in a sample of runs that still lasts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tachograph.clock import NS
from tachograph_exporter.store.samples import SampledRun
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes.case import Case
from tachograph_exporter.views.causes.claims import LIKELY, claim, length, trends_url
from tachograph_exporter.views.causes.parts import parts_of
from tachograph_exporter.views.changepoints import shifts
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


def since(case: Case) -> Iterator[Claim]:
    """Since which run it takes longer, if the run is one of those."""
    step = case.focus if case.run.execution.status == COMPLETED else None
    step_id = step.step_id if step is not None else None
    runs = [run for run in case.sample if run.status == COMPLETED and (seconds_of(run, step_id) or 0) > 0]
    runs = runs[-MAX_RUNS:]
    changes = shifts([seconds_of(run, step_id) or 0.0 for run in runs])
    place = next((i for i, run in enumerate(runs) if run.execution_id == case.execution_id), None)
    if not changes or place is None:
        return
    change = changes[-1]
    if change.end != len(runs) or change.ratio <= 1 or not change.start <= place:
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
