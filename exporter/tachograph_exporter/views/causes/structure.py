"""What the steps of a run were: steps that usually do not run, other dependencies, one instance of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from tachograph.clock import NS
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.causes.case import MIN_SHARE, Case
from tachograph_exporter.views.causes.claims import (
    CERTAIN,
    LIKELY,
    claim,
    comparison_url,
    length,
    plural,
    timeline_url,
)
from tachograph_exporter.views.causes.parts import parts_of
from tachograph_exporter.views.causes.statistics import median
from tachograph_exporter.views.schemas.comparison import ComparedStep
from tachograph_exporter.views.schemas.why import Claim

MIN_INSTANCES: Final = 4
"""Instances of a mapped step of which one can be unlike the others."""
MIN_SKEW: Final = 2.0
"""How many times as long as the median of the instances one of them takes if it is."""
_MIN_AGREEING: Final = 0.9
"""The share of usual runs that have the same dependencies, from which others are a change."""
_decode: Final = msgspec.json.Decoder(list[str]).decode


def child_run(case: Case) -> Iterator[Claim]:
    """The execution that the step to look at ran, if it took the additional time."""
    child, parts, focus = case.child, case.focus_parts, case.focus
    if child is None or child.usual_seconds is None or parts is None or focus is None:
        return
    additional = (parts[0].total_ns - parts[1].total_ns) / NS
    if additional <= 0 or child.seconds - child.usual_seconds < MIN_SHARE * additional:
        return
    inner = f"; in it, step “{child.culprit}” is to blame" if child.culprit is not None else ""
    yield claim(
        "child",
        child.workflow,
        f"Step “{focus.name}” ran workflow “{child.workflow}”, which took {length(child.seconds)} instead of "
        f"{length(child.usual_seconds)}{inner}.",
        CERTAIN,
        f"/api/workflows/executions/{child.execution_id}/why",
        child_execution_id=child.execution_id,
        seconds=child.seconds,
        usual_seconds=child.usual_seconds,
        step=child.culprit,
    )


def new_steps(case: Case) -> Iterator[Claim]:
    """Steps on the critical path that usually do not run, if they took the additional time."""
    additional = case.comparison.difference_seconds or 0
    if additional <= 0 or not case.is_known:
        return
    ran = [step for step in case.comparison.steps if step.not_in_reference and step.on_critical_path]
    ran = [step for step in ran if not _ran_often(case, step)]
    total = sum(step.seconds or 0 for step in ran)
    if not ran or total < MIN_SHARE * additional:
        return
    ran.sort(key=lambda step: -(step.seconds or 0))
    first = ran[0]
    more = f" (with {plural(len(ran) - 1, 'other step')} of the kind, {length(total)})" if len(ran) > 1 else ""
    yield claim(
        "new_step",
        first.step_name,
        f"Step “{first.step_name}” usually does not run; here it took {length(first.seconds or 0)}{more}.",
        CERTAIN,
        comparison_url(case.execution_id, case.back_ns),
        step=first.step_name,
        seconds=first.seconds,
        all_seconds=total,
        step_count=len(ran),
    )


def _ran_often(case: Case, step: ComparedStep) -> bool:
    """Whether it ran in half of the usual runs after all: a comparison knows steps by their names alone."""
    ran = sum(
        step.step_id in run.steps and run.steps[step.step_id].started_ns is not None for run in case.usual.values()
    )
    return 2 * ran >= len(case.usual)


def other_order(case: Case) -> Iterator[Claim]:
    """A step on the critical path that waited for other steps than it usually does."""
    additional = case.comparison.difference_seconds or 0
    if additional <= 0 or not case.is_known:
        return
    names = {step.step_id: step.name for step in case.run.steps}
    on_path = {step.step_id for step in case.comparison.steps if step.on_critical_path}
    # Of the sample only some steps were read.
    known = set().union(*(run.steps for run in case.usual.values())) & on_path
    for step in case.run.steps:
        if step.step_id not in known or step.folded is not None or step.dependency_count:
            continue
        usual = [run.steps[step.step_id] for run in case.usual.values() if step.step_id in run.steps]
        if len(usual) < MIN_SHARE * len(case.usual) or not usual:
            continue
        dependencies, agreeing = Counter(_ids(each.depends_on) for each in usual).most_common(1)[0]
        now = frozenset(step.depends_on)
        added = sorted(names.get(each, each) for each in now - dependencies)
        if agreeing < _MIN_AGREEING * len(usual) or not added:
            continue
        # The path leads through what it did not wait for before, and that took the additional time.
        waited = [each for each in case.run.steps if each.step_id in now - dependencies and each.step_id in on_path]
        if sum(_seconds(each) for each in waited) < MIN_SHARE * additional:
            continue
        yield claim(
            "order",
            step.name,
            f"Step “{step.name}” waited for {_names(added)}, which it usually does not: in {agreeing:,} of "
            f"{len(usual):,} usual runs it waited for {_names(sorted(names.get(d, d) for d in dependencies))}.",
            LIKELY,
            timeline_url(case.execution_id, step.name),
            step=step.name,
            added=", ".join(added),
            agreeing=agreeing,
            usual_runs=len(usual),
        )
        return


def _ids(text: str) -> frozenset[str]:
    try:
        return frozenset(_decode(text))
    except msgspec.DecodeError:
        return frozenset()


def _names(names: list[str]) -> str:
    return ", ".join(f"“{name}”" for name in names[:3]) or "nothing"


def _seconds(step: StoredStep) -> float:
    parts = parts_of(step)
    return parts.total_ns / NS if parts is not None else 0.0


def skew(case: Case) -> Iterator[Claim]:
    """One instance of a mapped step that took much longer than the others."""
    focus = case.focus
    if focus is None or focus.folded is not None:
        return
    siblings = [step for step in case.run.steps if step.name == focus.name and step.step_id != focus.step_id]
    others = [_seconds(step) for step in siblings if step.folded is None and step.finished_ns is not None]
    mine, usual = _seconds(focus), median(others)
    parts = case.focus_parts
    if len(others) + 1 < MIN_INSTANCES or mine < MIN_SKEW * usual or mine <= max(others):
        return
    if parts is not None and mine < MIN_SKEW * parts[1].total_ns / NS:
        return  # It always takes longer than the others.
    index = focus.map_index if focus.map_index is not None else str(focus.repetition)
    yield claim(
        "skew",
        focus.name,
        f"Only instance {index} of “{focus.name}” took so long: {length(mine)}, the median of the other "
        f"{len(others):,} is {length(usual)}.",
        CERTAIN,
        timeline_url(case.execution_id, focus.name),
        step=focus.name,
        instance=index,
        seconds=mine,
        others_median=usual,
        instances=len(others) + 1,
    )
