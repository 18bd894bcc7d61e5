"""A run and everything that an answer to *why* is made from, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.samples import Beside, SampledRun, StepDetail
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.causes.below import Excess
from tachograph_exporter.views.causes.differences import MIN_USUAL, Result
from tachograph_exporter.views.causes.parts import Parts, parts_of, steps_of, usual_parts
from tachograph_exporter.views.schemas.comparison import ExecutionComparison

MIN_SHARE: Final = 0.5
"""The share of the additional time from which something is what made a step slow."""
MIN_SLOW: Final = 1.1
"""How many times as long as usual a run has to take to be called slow."""
MAX_DEVIATIONS: Final = 3.0
"""How many deviations of the noise a usual run may be away from the median."""


class ChildRun(msgspec.Struct):
    """The execution that a step ran, compared with the usual ones of its workflow."""

    execution_id: str
    workflow: str
    seconds: float
    usual_seconds: float | None
    culprit: str | None


class Case(msgspec.Struct):
    """An ended run, compared.

    Attributes:
        run: the run.
        comparison: with the completed runs of the ``back_ns`` nanoseconds before it.
        focus: the step to look at: the one that made it slow, or failed first.
        sample: runs of the workflow around it, the oldest first; it is one of them.
        odd: the runs of the sample that are slow or failed as it did, by id; usual: those they are compared with.
        differences: what splits the two.
        seconds: what the completed runs of the sample are compared by, by id.
        details: what steps of the sample returned and used, by the ids of execution and step.
        below: the spans below the step to look at; empty if none are stored.
        beside: other executions that ran while it waited.
        child: the execution that the step to look at ran.
        focus_parts: the parts of the time of the step to look at, and the usual ones; None if either is not known.
    """

    run: StoredRun
    comparison: ExecutionComparison
    back_ns: int
    focus: StoredStep | None
    sample: Sequence[SampledRun]
    odd: Mapping[str, SampledRun]
    usual: Mapping[str, SampledRun]
    differences: Result
    seconds: Mapping[str, float]
    details: Mapping[tuple[str, str], StepDetail]
    below: Sequence[Excess] = ()
    beside: Sequence[Beside] = ()
    upstream: Beside | None = None
    child: ChildRun | None = None
    focus_parts: tuple[Parts, Parts] | None = None

    @property
    def execution_id(self) -> str:
        """The id of the run."""
        return str(self.run.execution.execution_id)

    @property
    def workflow_id(self) -> str:
        """The id of its workflow."""
        return str(self.run.execution.workflow_id)

    @property
    def sampled(self) -> SampledRun:
        """The run, as one of the sample."""
        execution_id = self.execution_id
        return next(run for run in self.sample if run.execution_id == execution_id)

    @property
    def is_known(self) -> bool:
        """Whether there are enough usual runs to compare with."""
        return len(self.usual) >= MIN_USUAL

    def compare_parts(self) -> None:
        """Set ``focus_parts``."""
        if self.focus is None or self.focus.folded is not None:
            return
        parts = parts_of(self.focus)
        usual = steps_of(list(self.usual.values()), self.focus.step_id)
        if parts is not None and len(usual) >= MIN_USUAL:
            self.focus_parts = parts, usual_parts(usual)
