"""The answer to *why*: the claims about an ended run in their order, and the sentence they make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.causes import course, failures, mechanisms, structure, trend
from tachograph_exporter.views.causes.case import MAX_DEVIATIONS, MIN_SLOW, Case
from tachograph_exporter.views.causes.claims import (
    CERTAIN,
    NOT_KNOWN,
    claim,
    comparison_url,
    difference_claim,
    differing,
    length,
    plural,
    why_url,
)
from tachograph_exporter.views.causes.differences import MAX_FALSE, MIN_USUAL, Difference
from tachograph_exporter.views.causes.statistics import noise
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.why import Claim, SampleOfRuns, WhyAnswer

Verdict = Literal["usual", "slow", "failed", "running", "pending", "cancelled", "lost", "unknown"]

MAX_NAMED: Final = 3
"""Causes that the sentence names."""
_CONTEXT: Final = ("workers", "concurrency")
"""Kinds of differences that say why a step waited for a slot."""


def verdict_of(comparison: ExecutionComparison, seconds: Sequence[float]) -> Verdict:
    """What is to be explained of an ended run; ``seconds`` are the durations of the completed runs around it."""
    status, baseline = comparison.execution.status, comparison.baseline
    if status == "lost":
        return "lost"
    if status in UNSUCCESSFUL:
        return "failed"
    if status != COMPLETED:
        return "cancelled"
    duration = comparison.execution.duration_seconds
    if baseline is None or baseline.execution_count < MIN_USUAL or not baseline.p50 or not duration:
        return "unknown"
    ratio = duration / baseline.p50
    is_slow = ratio >= MIN_SLOW and math.log(ratio) >= MAX_DEVIATIONS * noise(seconds)
    return "slow" if is_slow else "usual"


def late_start(case: Case) -> Iterator[Claim]:
    """A run that waited long before it started: that is no part of its duration."""
    row = case.run.execution
    if row.queued_ns is None or row.started_ns is None or not case.is_known:
        return
    waits = [(run.started_ns - run.queued_ns) / 1e9 for run in case.usual.values() if run.queued_ns is not None]
    waited = (row.started_ns - row.queued_ns) / 1e9
    usual = sorted(waits)[len(waits) * 95 // 100] if waits else None
    duration = case.comparison.baseline.p50 if case.comparison.baseline is not None else None
    if usual is None or len(waits) < MIN_USUAL or duration is None or waited < 2 * usual or waited < 0.2 * duration:
        return
    yield claim(
        "late_start",
        row.workflow,
        f"It waited {length(waited)} before it started; 95 % of the usual runs waited at most {length(usual)}.",
        CERTAIN,
        comparison_url(case.execution_id, case.back_ns),
        queued_seconds=waited,
        usual_p95_seconds=usual,
    )


def answer(case: Case, verdict: Verdict) -> WhyAnswer:
    """The answer for an ended run."""
    row = case.run.execution
    odd = "failed" if verdict in ("failed", "lost") else "slow"
    if verdict in ("failed", "lost"):
        claims = [*failures.outcome(case), *late_start(case), *failures.before(case), *failures.later(case)]
        causes = list(_failure_causes(case))
    else:
        trends = list(trend.of_case(case)) if verdict == "slow" else []
        claims = [_compared(case), *late_start(case), *([] if trends else course.since(case))]
        causes = list(_slow_causes(case, trends)) if verdict == "slow" else []
        if verdict == "slow" and not causes:
            causes.append(_unknown(case))
    return WhyAnswer(
        execution_id=case.execution_id,
        workflow_id=case.workflow_id,
        workflow_name=row.workflow,
        status=row.status,
        verdict=verdict,
        sentence=sentence(claims, causes),
        claims=claims,
        causes=causes,
        differences=differing(case.differences.differences, odd),
        sample=sample_of(case),
    )


def sample_of(case: Case) -> SampleOfRuns:
    """Which runs were compared."""
    return SampleOfRuns(
        start=rfc3339(case.sample[0].started_ns) if case.sample else None,
        end=rfc3339(case.sample[-1].finished_ns) if case.sample else None,
        run_count=len(case.sample),
        odd_count=len(case.odd),
        usual_count=len(case.usual),
        tested=case.differences.tested,
        max_false_discovery_rate=MAX_FALSE,
    )


def sentence(claims: Iterable[Claim], causes: Iterable[Claim]) -> str:
    """What happened and why, in words: the first claim, the likeliest causes, then the rest."""
    first, *rest = claims
    return " ".join(each.text for each in (first, *itertools.islice(causes, MAX_NAMED), *rest))


def _compared(case: Case) -> Claim:
    comparison, focus = case.comparison, case.focus
    step = comparison.steps[0] if comparison.steps and focus is not None else None
    return claim(
        "step" if focus is not None else "run",
        focus.name if focus is not None else case.run.execution.workflow,
        comparison.sentence,
        CERTAIN,
        comparison_url(case.execution_id, case.back_ns),
        seconds=step.seconds if step is not None else comparison.execution.duration_seconds,
        usual_seconds=step.reference_seconds
        if step is not None
        else (comparison.baseline.p50 if comparison.baseline is not None else None),
        blame=step.blame if step is not None else None,
        run_seconds=comparison.execution.duration_seconds,
        percentile=comparison.percentile,
    )


def _slow_causes(case: Case, trends: Sequence[Claim]) -> Iterator[Claim]:
    """The likeliest first: what can only be the cause, what sets slow runs apart, then how the time was spent.

    ``trends``: that runs take longer and longer, if they do. Then only a quantity that grows with them says why.
    """
    strong = [each for each in case.differences.differences if each.is_strong]
    before = [each for each in strong if not each.is_outcome]
    if trends:
        growing = [each for each in before if each.place.kind == "input" and each.odd_median is not None]
        yield from _named(case, growing)
        yield from trends
        before = []
    is_queueing = mechanisms.is_queueing(case)
    yield from structure.child_run(case)
    new_steps = list(structure.new_steps(case))
    # A new step is waited for, too.
    yield from new_steps or structure.other_order(case)
    yield from structure.skew(case)
    yield from _named(case, [each for each in before if each.place.kind not in _CONTEXT])
    if is_queueing:
        yield from _named(case, [each for each in before if each.place.kind == "workers"])
        yield from mechanisms.slot_holder(case)
    yield from mechanisms.queue(case)
    yield from _named(case, [each for each in before if each.place.kind == "concurrency"])
    yield from mechanisms.retries(case)
    yield from mechanisms.upstream(case)
    yield from mechanisms.below(case)
    yield from _named(case, [each for each in strong if each.is_outcome and each.place.kind != "cpu"])
    yield from mechanisms.work(case)


def _failure_causes(case: Case) -> Iterator[Claim]:
    strong = [each for each in case.differences.differences if each.is_strong]
    yield from _named(case, [each for each in strong if not each.is_outcome])
    reasons = list(failures.reason(case))
    yield from reasons
    if any(reason.kind == "timeout" for reason in reasons):
        yield from structure.child_run(case)
        yield from mechanisms.queue(case)
        yield from mechanisms.retries(case)
        yield from mechanisms.below(case)
        yield from mechanisms.work(case)
    yield from _named(case, [each for each in strong if each.is_outcome and each.place.kind != "cpu"])


def _named(case: Case, differences: Iterable[Difference]) -> Iterator[Claim]:
    odd = "slow" if case.run.execution.status == COMPLETED else "failed"
    for difference in differences:
        yield difference_claim(difference, odd, why_url(case.execution_id))


def _unknown(case: Case) -> Claim:
    tested = case.differences.tested
    usual = plural(len(case.usual), "usual run")
    if tested:
        text = f"none of {plural(tested, 'recorded value')} sets it apart from {usual}"
    elif len(case.odd) == 1:
        # The run that chose what to look for is no evidence for it.
        outcome = "as slow" if case.run.execution.status == COMPLETED else "like it"
        text = f"no other run was {outcome}, so nothing recorded can be told to set it apart from {usual}"
    else:
        text = f"nothing is recorded that could set it apart from {usual}"
    return claim(
        "unknown",
        None,
        f"Why is not known: {text}.",
        NOT_KNOWN,
        why_url(case.execution_id),
        tested=case.differences.tested,
        usual_runs=len(case.usual),
    )
