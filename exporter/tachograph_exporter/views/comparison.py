"""Comparison of an execution with another one or with a baseline: which step made it slow?

The duration of an execution is the length of its critical path: the steps on it plus their waits for a slot, and for
the time they were scheduled for. A step is therefore to blame for the additional time it ran and waited like this, and
only if it is on the critical path. A step
that did not run in the reference (another branch was taken there, or the step is new) did not become slower: the
sentence says that it ran, and it is not blamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.critical_path import critical_path
from tachograph.events import UNSUCCESSFUL
from tachograph.resources import Resources
from tachograph.run_window import RunWindow, placed
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.steps import StoredStep, by_step
from tachograph_exporter.store.totals import StepTotals, Totals, WorkflowTotals
from tachograph_exporter.times import format_duration, rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.machine import average_use, use_of_step
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.common import AverageUse
from tachograph_exporter.views.schemas.comparison import Baseline, ComparedRun, ComparedStep, ExecutionComparison
from tachograph_exporter.views.spending import dollars, spending_of

MIN_SLOWDOWN: Final = 0.05
"""Relative increase in duration from which an execution counts as slower; below it is noise."""
MIN_BLAME: Final = 0.2
"""Share of the slowdown from which a step is named: as the culprit, or as one that did not run in the reference."""
MAX_NAMED: Final = 3
"""How many steps that did not run in the reference the sentence names."""
BASELINE_SECONDS: Final = 7 * 86_400
"""Default length of the baseline range."""


def compare_runs(run: StoredRun, reference: StoredRun) -> ExecutionComparison:
    """Compare an execution with another one (``reference``, usually an earlier one)."""
    steps_now = {(step.name, step.repetition): step for step in run.steps}
    steps_then = {(step.name, step.repetition): step for step in reference.steps}
    attempts_now, attempts_then = by_step(run.attempts), by_step(reference.attempts)
    path = _path(run)
    difference = _difference(_duration(run), _duration(reference))
    slowdown = _slowdown(difference, _duration(reference))
    steps = []
    for key in [*steps_now, *[key for key in steps_then if key not in steps_now]]:
        step, before = steps_now.get(key), steps_then.get(key)
        now_ns, then_ns = _slot_time(step), _slot_time(before)
        is_new = now_ns is not None and (before is None or before.started_ns is None)
        is_critical = step is not None and step.step_id in path
        steps.append(
            ComparedStep(
                step_id=step.step_id if step is not None else None,
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
                on_critical_path=is_critical,
                not_in_reference=is_new,
                retry_count=max(0, step.attempt - 1) if step is not None else 0,
                queue_seconds=seconds(step.queue_ns) if step is not None else None,
                scheduled_seconds=seconds(step.scheduled_ns) if step is not None else None,
                blame=_blame(_difference(now_ns, then_ns) if is_critical else None, slowdown),
                **_used(_use(step, attempts_now), _use(before, attempts_then)),
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
        culprit=_culprit_name(culprit, run),
        sentence=_sentence(
            run, culprit, _unexpected(steps, slowdown), difference, _duration(reference), _OTHER_RUN, None
        ),
        steps=steps,
    )


def compare_with_baseline(run: StoredRun, baseline: WorkflowTotals, low_ns: int, high_ns: int) -> ExecutionComparison:
    """Compare an execution with the completed ones of a range (unix nanoseconds); ``baseline`` is their totals."""
    completed = baseline.executions.get(COMPLETED, Totals())
    histogram = completed.histogram()
    median_ns = _ns(histogram.quantile(0.5))
    duration = _duration(run)
    difference = _difference(duration, median_ns)
    slowdown = _slowdown(difference, median_ns)
    path = _path(run)
    attempts = by_step(run.attempts)
    steps = []
    for step in run.steps:
        if step.folded is not None:
            # The baseline knows single repetitions; what many of them add up to compares with nothing in it.
            continue
        step_totals = baseline.steps.get(step.name)
        before = (step_totals.by_status.get(COMPLETED) if step_totals is not None else None) or Totals()
        durations = before.histogram()
        step_median_ns = _ns(durations.quantile(0.5))
        waited_ns = round((before.queue_ns + before.scheduled_ns) / before.count) if before.count else 0
        now_ns = _slot_time(step)
        ran_ns = now_ns - (step.queue_ns or 0) - (step.scheduled_ns or 0) if now_ns is not None else None
        then_ns = step_median_ns + waited_ns if step_median_ns is not None else None
        rank = durations.rank(ran_ns / NS) if ran_ns is not None and before.count else None
        steps.append(
            ComparedStep(
                step_id=step.step_id,
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
                not_in_reference=now_ns is not None and 2 * before.count < completed.count,
                retry_count=max(0, step.attempt - 1),
                queue_seconds=seconds(step.queue_ns),
                scheduled_seconds=seconds(step.scheduled_ns),
                blame=_blame(_difference(now_ns, then_ns) if step.step_id in path else None, slowdown),
                **_used(_use(step, attempts), _average(step_totals)),
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
            execution_count=completed.count,
            average_duration_seconds=completed.sum_ns / NS / completed.count if completed.count else None,
            p50=histogram.quantile(0.5),
            p95=histogram.quantile(0.95),
            average_cost_usd=dollars(round(completed.cost_nano_usd / completed.count)) if completed.count else None,
        ),
        difference_seconds=seconds(difference),
        ratio=_ratio(duration, median_ns),
        percentile=100 * rank if rank is not None else None,
        culprit=_culprit_name(culprit, run),
        sentence=_sentence(
            run,
            culprit,
            _unexpected(steps, slowdown),
            difference,
            median_ns,
            _USUAL_RUNS,
            100 * rank if rank is not None else None,
        ),
        steps=steps,
    )


def _use(step: StoredStep | None, attempts: Mapping[str, Sequence[Row[Any]]]) -> Resources | None:
    return use_of_step(step, attempts.get(step.step_id, ())) if step is not None else None


def _average(step_totals: StepTotals | None) -> AverageUse | None:
    """What completed runs of a step used."""
    totals = step_totals.uses.get(COMPLETED) if step_totals is not None else None
    return average_use(totals) if totals is not None else None


def _used(now: Resources | None, then: Resources | AverageUse | None) -> dict[str, Any]:
    """The fields of a `ComparedStep` that say what it used. Memory of a process shared with others is not its own."""
    is_own = now is not None and not now.is_shared
    was_own = isinstance(then, AverageUse) or (then is not None and not then.is_shared)
    return {
        "cpu_seconds": now.cpu_seconds if now is not None else None,
        "reference_cpu_seconds": then.cpu_seconds if then is not None else None,
        "peak_memory_bytes": now.peak_memory_bytes if now is not None and is_own else None,
        "reference_peak_memory_bytes": then.peak_memory_bytes if then is not None and was_own else None,
        "read_bytes": now.read_bytes if now is not None else None,
        "reference_read_bytes": then.read_bytes if then is not None else None,
        "written_bytes": now.written_bytes if now is not None else None,
        "reference_written_bytes": then.written_bytes if then is not None else None,
    }


def _path(run: StoredRun) -> frozenset[str]:
    row = run.execution
    start_ns = row.started_ns if row.started_ns is not None else row.created_ns
    window = RunWindow.of(start_ns, row.finished_ns, row.last_seen_ns)
    return frozenset(step.step_id for step in critical_path(placed(run.steps, window)))


def _side(run: StoredRun) -> ComparedRun:
    row, spending = run.execution, spending_of(run)
    queued = row.started_ns - row.queued_ns if row.started_ns is not None and row.queued_ns is not None else None
    return ComparedRun(
        execution_id=row.execution_id,
        status=row.status,
        started_at=rfc3339_or_none(row.started_ns),
        duration_seconds=seconds(_duration(run)),
        critical_path_seconds=(row.critical_path_ns or 0) / NS,
        queued_seconds=seconds(queued),
        cost_usd=spending.usd,
        tokens_in=spending.tokens_in,
        tokens_out=spending.tokens_out,
        error_message=row.error_message,
    )


def _duration(run: StoredRun) -> int | None:
    row = run.execution
    return row.finished_ns - row.started_ns if row.finished_ns is not None and row.started_ns is not None else None


def _slot_time(step: StoredStep | None) -> int | None:
    """A step's duration plus the time it waited for a slot or was scheduled; None if it has not started and ended."""
    if step is None or step.started_ns is None or step.finished_ns is None:
        return None
    if step.folded is not None:
        # Of the time from the first repetition to the last, other steps had a part.
        return step.folded.busy_ns
    return step.finished_ns - step.started_ns + (step.queue_ns or 0) + (step.scheduled_ns or 0)


def _ns(value: float | None) -> int | None:
    return None if value is None else round(value * NS)


def _difference(now: int | None, then: int | None) -> int | None:
    return None if now is None or then is None else now - then


def _ratio(now: int | None, then: int | None) -> float | None:
    return None if now is None or not then else now / then


def _slowdown(difference_ns: int | None, reference_ns: int | None) -> int | None:
    """The difference, if it is a slowdown beyond noise."""
    if difference_ns is None or not reference_ns or difference_ns < reference_ns * MIN_SLOWDOWN:
        return None
    return difference_ns


def _blame(additional_ns: int | None, slowdown_ns: int | None) -> float | None:
    """The share of a slowdown, from 0 to 1, in whole percent: the sentence and every table show the same number."""
    if not slowdown_ns:
        return None
    return round(min(max((additional_ns or 0) / slowdown_ns, 0.0), 1.0), 2)


def _unexpected(steps: Sequence[ComparedStep], slowdown_ns: int | None) -> list[ComparedStep]:
    """Steps that did not run in the reference and took a notable share of the slowdown, the longest first."""
    if not slowdown_ns:
        return []
    least = MIN_BLAME * slowdown_ns / NS
    ran = [step for step in steps if step.not_in_reference and step.on_critical_path and (step.seconds or 0) >= least]
    return sorted(ran, key=lambda step: -(step.seconds or 0))


def _order(step: ComparedStep) -> tuple[float, float]:
    return (-(step.blame or 0), -(step.difference_seconds or 0))


def _culprit(steps: list[ComparedStep]) -> ComparedStep | None:
    first = steps[0] if steps else None
    return first if first is not None and first.blame is not None and first.blame >= MIN_BLAME else None


def _culprit_name(culprit: ComparedStep | None, run: StoredRun) -> str | None:
    if culprit is not None:
        return culprit.step_name
    failed = failed_step(run)
    return failed.name if failed is not None else None


def failed_step(run: StoredRun) -> StoredStep | None:
    """The step that failed first."""
    failed = [step for step in run.steps if step.status in UNSUCCESSFUL and step.finished_ns is not None]
    return min(failed, key=lambda step: step.finished_ns or 0, default=None)


class _Reference(NamedTuple):
    """How a sentence speaks of what a run is compared with."""

    duration: str
    did_not_run: str


_OTHER_RUN: Final = _Reference("the other run took", "did not run in the other run")
_USUAL_RUNS: Final = _Reference("the median is", "usually does not run")


def _sentence(
    run: StoredRun,
    culprit: ComparedStep | None,
    unexpected: Sequence[ComparedStep],
    difference_ns: int | None,
    reference_ns: int | None,
    reference: _Reference,
    percentile: float | None,
) -> str:
    """The result in words. ``unexpected``: see `_unexpected`."""
    row, duration = run.execution, _duration(run)
    if duration is None:
        return f"The run is {row.status}; it can be compared once it has ended."
    parts = [] if row.status == COMPLETED else [_outcome(run)]
    if reference_ns is None or difference_ns is None:
        parts.append(f"It took {format_duration(duration)}; there is nothing to compare it with.")
        return " ".join(parts)
    rank = ""
    if percentile is not None and percentile >= 50:
        rank = f", longer than {'all' if percentile >= 100 else f'{min(percentile, 99.9):.3g} % of the'} usual runs"
    took = f"run took {format_duration(duration)}{rank}; {reference.duration} {format_duration(reference_ns)}."
    if culprit is not None:
        parts.append(_blamed(culprit))
    if unexpected:
        names = ", ".join(
            f"“{step.step_name}” ({format_duration(_ns(step.seconds))})" for step in unexpected[:MAX_NAMED]
        )
        more = f" and {len(unexpected) - MAX_NAMED} more" if len(unexpected) > MAX_NAMED else ""
        parts.append(f"It took another path: {names}{more} {reference.did_not_run}.")
    if culprit is not None or unexpected or row.status != COMPLETED:
        parts.append(f"The {took}")
    elif difference_ns >= reference_ns * MIN_SLOWDOWN:
        parts.append(f"The {took} No single step is to blame.")
    else:
        parts.append(f"Nothing stands out: the {took}")
    return " ".join(parts)


def _outcome(run: StoredRun) -> str:
    """How a run ended that did not complete."""
    failed = failed_step(run)
    words = {"failed": "failed", "timeout": "timed out"}.get(run.execution.status, f"is {run.execution.status}")
    if failed is None:
        return f"The run {words}."
    return f"The run {words} in step “{failed.name}”" + (f": {failed.error_message}." if failed.error_message else ".")


def _blamed(culprit: ComparedStep) -> str:
    """What the step took that made the run slow."""
    usual = format_duration(_ns(culprit.reference_seconds))
    ratio = f" ({culprit.ratio:.3g} times as long)" if culprit.ratio is not None else ""
    retries = f" after {culprit.retry_count} retries" if culprit.retry_count else ""
    scheduled_ns = _ns(culprit.scheduled_seconds)
    if scheduled_ns:
        retries += f", {format_duration(scheduled_ns)} of it until its scheduled time"
    return (
        f"Step “{culprit.step_name}” took {format_duration(_ns(culprit.seconds))} instead of {usual}{ratio}{retries}, "
        f"on the critical path: {100 * (culprit.blame or 0):.0f} % of the slowdown."
    )


def read_baseline_comparison(
    connection: Connection, workspace: str, run: StoredRun, back_ns: int
) -> ExecutionComparison:
    """Compare an execution with the completed ones of its workflow that ended up to ``back_ns`` before it started."""
    row = run.execution
    high = row.started_ns if row.started_ns is not None else row.created_ns
    low = max(high - back_ns, 0)
    return compare_with_baseline(run, read.read(connection, (workspace, row.workflow_id), low, high), low, high)
