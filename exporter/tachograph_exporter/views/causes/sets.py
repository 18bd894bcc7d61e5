"""What sets some runs of a workflow apart from its others: those that failed, took long, or that somebody chose."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store import samples
from tachograph_exporter.store.samples import MAX_RUNS, SampledRun
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes import surroundings
from tachograph_exporter.views.causes.claims import differing
from tachograph_exporter.views.causes.differences import MAX_FALSE, MAX_KEYS, Described, differences_of_set
from tachograph_exporter.views.causes.features import limit_of
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.why import SampleOfRuns, WorkflowDifferences

FAILED: Final = "failed"


class Choice(NamedTuple):
    """Which runs are the odd ones: with these ids; or that took longer than some nanoseconds; or else that failed."""

    execution_ids: Collection[str] = ()
    slower_than_ns: int | None = None

    @property
    def word(self) -> str:
        """What the runs are called."""
        return "chosen" if self.execution_ids else "slow" if self.slower_than_ns is not None else FAILED

    def is_compared(self, run: SampledRun) -> bool:
        """Whether a run is compared at all: of slow ones, those that completed."""
        if self.execution_ids:
            return True
        return run.status == COMPLETED or (self.slower_than_ns is None and run.status in UNSUCCESSFUL)

    def is_odd(self, run: SampledRun) -> bool:
        """Whether it is one of them."""
        if self.execution_ids:
            return run.execution_id in self.execution_ids
        if self.slower_than_ns is not None:
            return run.finished_ns - run.started_ns > self.slower_than_ns
        return run.status in UNSUCCESSFUL


def read_differences(
    connection: Connection, workspace: str, workflow: Row[Any], choice: Choice, low_ns: int, high_ns: int
) -> WorkflowDifferences:
    """What differs among the last `MAX_RUNS` runs of a workflow that ended in a range (unix nanoseconds)."""
    sample = samples.ended_around(connection, workspace, workflow.id, high_ns, low_ns, MAX_RUNS, 0)
    runs = [run for run in sample if choice.is_compared(run)]
    processes, at_once = surroundings.of_processes(runs), surroundings.of_others(runs)
    described = []
    limit = min(limit_of(len(runs)), MAX_KEYS)
    for run in runs:
        features = surroundings.own_features(run, limit) | processes[run.execution_id]
        features["runs_at_once"] = at_once[run.execution_id]
        seconds = (run.finished_ns - run.started_ns) / NS if choice.slower_than_ns is not None else None
        described.append(Described(run.started_ns, choice.is_odd(run), features, seconds))
    odd = {run.execution_id: run for run in runs if choice.is_odd(run)}
    usual = {run.execution_id: run for run in runs if run.execution_id not in odd}
    result = differences_of_set(described)
    kept = [each for each in result.differences if surroundings.is_plausible(each, odd, usual)]
    return WorkflowDifferences(
        workflow_id=workflow.id,
        workflow_name=workflow.name,
        differences=differing(kept, choice.word),
        sample=SampleOfRuns(
            start=rfc3339(runs[0].started_ns) if runs else None,
            end=rfc3339(runs[-1].finished_ns) if runs else None,
            run_count=len(runs),
            odd_count=len(odd),
            usual_count=len(usual),
            tested=result.tested,
            max_false_discovery_rate=MAX_FALSE,
        ),
    )
