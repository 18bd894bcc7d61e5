"""Which step made this run slow? One execution against another, or against what is usual for its workflow.

The time of a run is that of its critical path: the steps on it and the time they waited for a slot. So what a step is
to blame for is by how much longer it took *and* waited for a slot than on the other side, if it is on the path.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.critical_path import critical_path
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.store.totals import Totals, WorkflowTotals
from tachograph_exporter.times import human, rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.comparison import Baseline, ComparedRun, ComparedStep, ExecutionComparison

NOTABLE: Final = 0.05
"""A run that took this much longer (as a part) is slower; less is noise."""
MAX_BLAME: Final = 0.2
"""A step that explains less of a slowdown than this is not named alone."""


def compare_runs(run: StoredRun, reference: StoredRun) -> ExecutionComparison:
    """An execution against another one (``reference``, usually an earlier one)."""
    other = {(step.name, step.repetition): step for step in reference.steps}
    mine = {(step.name, step.repetition): step for step in run.steps}
    path = _path(run)
    difference = _difference(_duration(run), _duration(reference))
    slowdown = _slowdown(difference, _duration(reference))
    steps = []
    for key in [*mine, *[key for key in other if key not in mine]]:
        step, before = mine.get(key), other.get(key)
        now_ns, then_ns = _length(step), _length(before)
        steps.append(
            ComparedStep(
                step_name=key[0],
                repetition=key[1],
                status=step.status if step is not None else None,
                reference_status=before.status if before is not None else None,
                seconds=seconds(now_ns),
                reference_seconds=seconds(then_ns),
                reference_p95=None,
                difference_seconds=seconds(_difference(now_ns, then_ns)),
                ratio=_ratio(now_ns, then_ns),
                percentile=None,
                on_critical_path=step is not None and step.step_id in path,
                retry_count=max(0, step.attempt - 1) if step is not None else 0,
                queue_seconds=seconds(step.queue_ns) if step is not None else None,
                blame=_blame(
                    (now_ns or 0) - (then_ns or 0) if step is not None and step.step_id in path else 0, slowdown
                ),
            )
        )
    steps.sort(key=_order)
    culprit = _culprit(steps)
    return ExecutionComparison(
        execution=_side(run),
        reference=_side(reference),
        baseline=None,
        difference_seconds=seconds(difference),
        ratio=_ratio(_duration(run), _duration(reference)),
        percentile=None,
        culprit=culprit.step_name if culprit is not None else _failed_step(run),
        sentence=_sentence(run, culprit, difference, _duration(reference), "the other execution took", None),
        steps=steps,
    )


def compare_with_usual(run: StoredRun, usual: WorkflowTotals, low_ns: int, high_ns: int) -> ExecutionComparison:
    """An execution against the completed ones that ended in a range (unix nanoseconds) before it."""
    whole = usual.executions.get(COMPLETED, Totals())
    histogram = whole.histogram()
    median_ns = _ns(histogram.quantile(0.5))
    duration = _duration(run)
    difference = _difference(duration, median_ns)
    slowdown = _slowdown(difference, median_ns)
    path = _path(run)
    steps = []
    for step in run.steps:
        pack = usual.steps.get(step.name)
        before = (pack.by_status.get(COMPLETED) if pack is not None else None) or Totals()
        durations = before.histogram()
        usual_ns = _ns(durations.quantile(0.5))
        queue_ns = round(before.queue_ns / before.count) if before.count else 0
        now_ns = _length(step)
        ran_ns = now_ns - (step.queue_ns or 0) if now_ns is not None else None
        then_ns = usual_ns + queue_ns if usual_ns is not None else None
        rank = durations.rank(ran_ns / NS) if ran_ns is not None and before.count else None
        steps.append(
            ComparedStep(
                step_name=step.name,
                repetition=step.repetition,
                status=step.status,
                reference_status=COMPLETED if before.count else None,
                seconds=seconds(now_ns),
                reference_seconds=seconds(then_ns),
                reference_p95=durations.quantile(0.95),
                difference_seconds=seconds(_difference(now_ns, then_ns)),
                ratio=_ratio(now_ns, then_ns),
                percentile=100 * rank if rank is not None else None,
                on_critical_path=step.step_id in path,
                retry_count=max(0, step.attempt - 1),
                queue_seconds=seconds(step.queue_ns),
                blame=_blame((now_ns or 0) - (then_ns or 0) if step.step_id in path else 0, slowdown),
            )
        )
    steps.sort(key=_order)
    culprit = _culprit(steps)
    rank = histogram.rank(duration / NS) if duration is not None else None
    return ExecutionComparison(
        execution=_side(run),
        reference=None,
        baseline=Baseline(
            start=rfc3339(low_ns),
            end=rfc3339(high_ns),
            execution_count=whole.count,
            average_duration_seconds=whole.sum_ns / NS / whole.count if whole.count else None,
            p50=histogram.quantile(0.5),
            p95=histogram.quantile(0.95),
        ),
        difference_seconds=seconds(difference),
        ratio=_ratio(duration, median_ns),
        percentile=100 * rank if rank is not None else None,
        culprit=culprit.step_name if culprit is not None else _failed_step(run),
        sentence=_sentence(run, culprit, difference, median_ns, "usual is", 100 * rank if rank is not None else None),
        steps=steps,
    )


def _path(run: StoredRun) -> frozenset[str]:
    return frozenset(step.step_id for step in critical_path(run.steps))


def _side(run: StoredRun) -> ComparedRun:
    row = run.execution
    queued = row.started_ns - row.queued_ns if row.started_ns is not None and row.queued_ns is not None else None
    return ComparedRun(
        execution_id=row.execution_id,
        status=row.status,
        started_at=rfc3339_or_none(row.started_ns),
        duration_seconds=seconds(_duration(run)),
        critical_path_seconds=(row.critical_path_ns or 0) / NS,
        queued_seconds=seconds(queued),
        error_message=row.error_message,
    )


def _duration(run: StoredRun) -> int | None:
    row = run.execution
    return row.finished_ns - row.started_ns if row.finished_ns is not None and row.started_ns is not None else None


def _length(step: StoredStep | None) -> int | None:
    """A step's duration with the time it waited for a slot; None for one that did not run to an end."""
    if step is None or step.started_ns is None or step.finished_ns is None:
        return None
    return step.finished_ns - step.started_ns + (step.queue_ns or 0)


def _ns(value: float | None) -> int | None:
    return None if value is None else round(value * NS)


def _difference(now: int | None, then: int | None) -> int | None:
    return None if now is None or then is None else now - then


def _ratio(now: int | None, then: int | None) -> float | None:
    return None if now is None or not then else now / then


def _slowdown(difference_ns: int | None, usual_ns: int | None) -> int | None:
    """By how much a run was slower, if it was by more than noise."""
    if difference_ns is None or not usual_ns or difference_ns < usual_ns * NOTABLE:
        return None
    return difference_ns


def _blame(more_ns: int, slowdown_ns: int | None) -> float | None:
    return more_ns / slowdown_ns if slowdown_ns else None


def _order(step: ComparedStep) -> tuple[float, float]:
    return (-(step.blame or 0), -(step.difference_seconds or 0))


def _culprit(steps: list[ComparedStep]) -> ComparedStep | None:
    first = steps[0] if steps else None
    return first if first is not None and first.blame is not None and first.blame >= MAX_BLAME else None


def _failed_step(run: StoredRun) -> str | None:
    failed = [
        step for step in run.steps if step.status in ("failed", "timeout", "lost") and step.finished_ns is not None
    ]
    return min(failed, key=lambda step: step.finished_ns or 0).name if failed else None


def _sentence(
    run: StoredRun,
    culprit: ComparedStep | None,
    difference_ns: int | None,
    usual_ns: int | None,
    reference: str,
    percentile: float | None,
) -> str:
    row, duration = run.execution, _duration(run)
    if duration is None:
        return f"The execution is {row.status}; it can be compared when it has ended."
    parts = []
    failed = _failed_step(run)
    if row.status != COMPLETED:
        blamed = next((step for step in run.steps if step.name == failed), None)
        why = f" in step “{failed}”: {blamed.error_message}" if blamed is not None and blamed.error_message else ""
        parts.append(f"The execution is {row.status}{why}.")
    if usual_ns is None or difference_ns is None:
        parts.append(f"It took {human(duration)}; there is nothing to compare it with.")
        return " ".join(parts)
    unusual = f", longer than {percentile:.3g} % of them" if percentile is not None and percentile >= 50 else ""
    if culprit is not None:
        ratio = f" ({culprit.ratio:.3g} times as long)" if culprit.ratio is not None else ""
        then = f" instead of {human(_ns(culprit.reference_seconds))}" if culprit.reference_seconds is not None else ""
        retried = f" after {culprit.retry_count} retries" if culprit.retry_count else ""
        part = f"{100 * min(culprit.blame or 0, 1):.0f} %"
        parts.append(
            f"Step “{culprit.step_name}” took {human(_ns(culprit.seconds))}{then}{ratio}{retried}, "
            f"on the critical path: {part} of the slowdown. "
            f"The execution took {human(duration)}, {reference} {human(usual_ns)}{unusual}."
        )
    elif difference_ns >= usual_ns * NOTABLE:
        parts.append(
            f"The execution took {human(duration)}, {reference} {human(usual_ns)}{unusual}; no single step is to blame."
        )
    else:
        parts.append(f"Nothing stands out: the execution took {human(duration)}, {reference} {human(usual_ns)}.")
    return " ".join(parts)


def usual_comparison(connection: Connection, workspace: str, run: StoredRun, back_ns: int) -> ExecutionComparison:
    """A run against the completed executions of its workflow that ended in so long a time before it started."""
    row = run.execution
    high = row.started_ns if row.started_ns is not None else row.created_ns
    low = max(high - back_ns, 0)
    return compare_with_usual(run, read.read(connection, (workspace, row.workflow_id), low, high), low, high)


BASELINE_SECONDS: Final = 7 * 86_400
