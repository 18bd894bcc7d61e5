"""Reading what an answer to *why* is made from. Each read is bounded, whatever the history."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.errors import TachographError
from tachograph.events import UNSUCCESSFUL
from tachograph.redaction import is_secret_key, mask_text
from tachograph_exporter.ingest.spans import stored_record
from tachograph_exporter.store import samples
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.samples import Beside, SampledRun, StepDetail
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.views.causes import features as kinds
from tachograph_exporter.views.causes import now, surroundings
from tachograph_exporter.views.causes.answer import Verdict, answer, sentence, verdict_of
from tachograph_exporter.views.causes.below import Excess, excess, self_times
from tachograph_exporter.views.causes.case import Case, ChildRun
from tachograph_exporter.views.causes.course import runs_before, seconds_of
from tachograph_exporter.views.causes.differences import MAX_FALSE, MIN_USUAL, Described, Result, differences
from tachograph_exporter.views.causes.failures import SameFailure
from tachograph_exporter.views.causes.features import Feature, Value, flattened, of_resources
from tachograph_exporter.views.causes.sampled import sampled
from tachograph_exporter.views.causes.statistics import median
from tachograph_exporter.views.causes.trend import early_runs
from tachograph_exporter.views.comparison import MIN_BLAME, failed_step, read_baseline_comparison
from tachograph_exporter.views.expected_end import expected_end, read_usual
from tachograph_exporter.views.metrics import COMPLETED
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.why import Claim, SampleOfRuns, WhyAnswer
from tachograph_exporter.views.span_times import read_span_times
from tachograph_exporter.views.step_below import span_ids

BACK_SECONDS: Final = 28 * 86_400
"""Default length of the time before a run whose runs it is compared with."""
MAX_BEFORE: Final = 400
MAX_AFTER: Final = 100
MAX_STEP_IDS: Final = 24
"""Steps of the run that are read of the sample: the step to look at, those on the critical path, then others."""
MAX_REFERENCES: Final = 10
"""Usual runs whose spans are read."""
MAX_DETAILED: Final = 4
"""Steps whose outputs and resources are compared: the step to look at, and those it waited for."""
MAX_BESIDE: Final = 5
"""Other workflows whose runs are compared with those of the sample."""
MAX_ATTRIBUTED: Final = 200
"""Runs whose spans' attributes are compared, the newest ones."""
_MAX_ATTRIBUTES: Final = 40
_MAX_MISSING: Final = 5
_USUAL_STEPS_OF: Final = 9
"""Usual runs that say which steps usually run."""
_MAX_STEPS_OF_RUN: Final = 1_000
_OURS: Final = ("workflow.", "cicd.", "telemetry.", "error.", "exception.", "process.pid", "otel.", "code.", "thread.")
_END_SLACK_NS: Final = NS
_MIN_FOLLOWING: Final = 0.8
_MIN_FOLLOWED: Final = 10


def read_why(connection: Connection, workspace: str, execution_id: str, back_ns: int, now_ns: int) -> WhyAnswer:
    """Why a run of a workspace (an id) was slow or failed, compared with the runs of ``back_ns`` nanoseconds before it.

    Raises `ExecutionNotFound` and `ArchiveError`.
    """
    run = find_run(connection, workspace, execution_id)
    if run.execution.finished_ns is None:
        return _open_run(connection, workspace, run, now_ns)
    if run.execution.started_ns is None:
        return _never_started(run)
    comparison = read_baseline_comparison(connection, workspace, run, back_ns)
    sample = _sample(connection, workspace, run, back_ns)
    totals = [seconds for each in sample if each.status == COMPLETED and (seconds := seconds_of(each, None))]
    verdict = verdict_of(comparison, totals)
    focus = _focus(run, comparison, verdict)
    before = frozenset[str]()
    if verdict == "usual":
        before = runs_before(sample, run.execution.execution_id) or early_runs(sample, run.execution.execution_id)
    if before and focus is not None:
        verdict = "slow"
    _read_steps(connection, sample, run, comparison, focus)
    if verdict in ("failed", "lost"):
        samples.read_failure_groups(connection, sample)
    case = Case(
        run=run, comparison=comparison, back_ns=back_ns, focus=focus, sample=sample, odd={}, usual={},
        differences=Result([], 0), seconds={}, details={},
    )  # fmt: skip
    case.seconds = _measures(case)
    _group(case, verdict, before)
    case.compare_parts()
    if verdict in ("slow", "failed", "lost"):
        _explain(connection, workspace, case, verdict)
    said = answer(case, verdict)
    if focus is not None and verdict != "usual":
        said.claims = [*said.claims, *sampled(connection, run, [focus])]
    return said


def _sample(connection: Connection, workspace: str, run: StoredRun, back_ns: int) -> list[SampledRun]:
    row = run.execution
    low = max(0, row.started_ns - back_ns)
    sample = samples.ended_around(connection, workspace, row.workflow_id, row.finished_ns, low, MAX_BEFORE, MAX_AFTER)
    if all(each.execution_id != row.execution_id for each in sample):
        # It is archived, or older than so many runs that ended in the same moment.
        sample.append(SampledRun(*(getattr(row, name, None) for name in samples.RUN_COLUMNS)))  # type: ignore[arg-type]
    sample.sort(key=lambda each: (each.started_ns, each.execution_id))
    return sample


def _focus(run: StoredRun, comparison: ExecutionComparison, verdict: Verdict) -> StoredStep | None:
    if verdict in ("failed", "lost"):
        return failed_step(run)
    first = comparison.steps[0] if comparison.steps else None
    if first is None or first.blame is None or first.blame < MIN_BLAME or first.step_id is None:
        return None
    return next((step for step in run.steps if step.step_id == first.step_id), None)


def _read_steps(
    connection: Connection, sample: list[SampledRun], run: StoredRun, comparison: ExecutionComparison,
    focus: StoredStep | None,
) -> None:  # fmt: skip
    """Read the steps that matter of as many runs of the sample as the bound allows, the nearest ones to the run."""
    wanted_ids = [focus.step_id] if focus is not None else []
    wanted_ids += [step.step_id for step in comparison.steps if step.on_critical_path and step.step_id is not None]
    wanted_ids += focus.depends_on if focus is not None else ()
    wanted_ids += [step.step_id for step in run.steps]
    step_ids = list(dict.fromkeys(wanted_ids))[:MAX_STEP_IDS]
    most = samples.MAX_STEPS // max(1, len(step_ids))
    if len(sample) > most:
        place = next(i for i, each in enumerate(sample) if each.execution_id == run.execution.execution_id)
        low = max(0, min(place + MAX_AFTER // 2, len(sample)) - most)
        sample[:] = sample[low : low + most]
    samples.read_steps(connection, sample, step_ids)


def _group(case: Case, verdict: Verdict, before: AbstractSet[str]) -> None:
    """Divide the sample into the odd runs, which are as this one, and the usual ones.

    ``before``: the runs that say what is usual, because those since are slower; empty: all of them.
    """
    if verdict in ("failed", "lost"):
        failed_so = SameFailure(case.sampled)
        case.odd = {
            run.execution_id: run for run in case.sample if run.execution_id == case.execution_id or failed_so(run)
        }
        case.usual = {run.execution_id: run for run in case.sample if run.status == COMPLETED}
        return
    completed, seconds = [run for run in case.sample if run.status == COMPLETED], case.seconds
    mine = seconds.get(case.execution_id)
    others = [value for key, value in seconds.items() if value and key != case.execution_id]
    usually = median([seconds[key] for key in before if key in seconds] or others)
    if not mine or not usually or verdict != "slow":
        case.usual = {run.execution_id: run for run in completed if run.execution_id != case.execution_id}
        return
    # Half of the way in logarithms: what is nearer to this run is as slow as it.
    limit = math.sqrt(mine * max(usually, 1e-9)) if mine > usually else math.inf
    odd: dict[str, SampledRun] = {}
    usual: dict[str, SampledRun] = {}
    for run in completed:
        value = seconds.get(run.execution_id)
        if value is None:
            continue
        (odd if value >= limit or run.execution_id == case.execution_id else usual)[run.execution_id] = run
    case.odd, case.usual = odd, usual


def _measures(case: Case) -> dict[str, float]:
    """What completed runs are compared by: the time of the step to look at, if most have it; else their duration."""
    focus, completed = case.focus, [run for run in case.sample if run.status == COMPLETED]
    step_id = focus.step_id if focus is not None and focus.folded is None else None
    if 2 * sum(step_id in run.steps for run in completed) < len(completed):
        step_id = None
    return {run.execution_id: seconds for run in completed if (seconds := seconds_of(run, step_id))}


def _explain(connection: Connection, workspace: str, case: Case, verdict: Verdict) -> None:
    focus = case.focus
    if focus is not None:
        ids = list(dict.fromkeys([focus.step_id, *focus.depends_on]))[:MAX_DETAILED]
        compared = [*case.odd, *case.usual]
        case.details = samples.step_details(connection, compared, ids) if compared else {}
    others = _read_beside(connection, workspace, case)
    case.differences = _differences(connection, workspace, case, verdict, others)
    if focus is None:
        return
    case.below = _read_below(connection, workspace, case, focus)
    case.upstream = _upstream(case, focus, others)
    if focus.child_execution_id is not None:
        case.child = _read_child(connection, workspace, focus.child_execution_id, case.back_ns)


def _window(case: Case, run: SampledRun, usual_ns: int) -> tuple[int, int] | None:
    """The time in which others are looked for beside a run: as long for a slow run as for others."""
    focus = case.focus
    if focus is None:
        return run.started_ns, run.started_ns + usual_ns
    step = run.steps.get(focus.step_id)
    if step is None or step.started_ns is None:
        return None
    ready = step.started_ns - (step.queue_ns or 0)
    return ready, ready + usual_ns


def _read_beside(connection: Connection, workspace: str, case: Case) -> dict[str, list[Beside]]:
    """The runs, over the time of the sample, of those workflows that ran beside the run, by name."""
    row, focus = case.run.execution, case.focus
    low, high = row.started_ns, row.finished_ns
    if focus is not None and focus.started_ns is not None:
        low, high = focus.started_ns - (focus.queue_ns or 0), focus.finished_ns or row.finished_ns
    kin = {row.execution_id, row.parent_execution_id, *(step.child_execution_id for step in case.run.steps)}
    slack = max(_END_SLACK_NS, (high - low) // 50)
    beside = [
        other
        for other in samples.running_between(connection, workspace, low, high + slack)
        if other.execution_id not in kin and other.workflow_id != row.workflow_id
    ]
    case.beside = beside
    overlap: Counter[tuple[str, str]] = Counter()
    for other in beside:
        until = min(other.finished_ns if other.finished_ns is not None else high, high)
        overlap[other.workflow_id, other.workflow] += max(0, until - max(other.started_ns, low))
    first, last = case.sample[0].started_ns, max(run.finished_ns for run in case.sample)
    return {
        name: samples.ended_between(connection, workspace, workflow_id, first, last + slack)
        for (workflow_id, name), _ in overlap.most_common(MAX_BESIDE)
    }


def _differences(
    connection: Connection, workspace: str, case: Case, verdict: Verdict, others: Mapping[str, Sequence[Beside]]
) -> Result:
    if len(case.usual) < MIN_USUAL:
        return Result([], 0)
    runs = [*case.odd.values(), *case.usual.values()]
    target = case.odd.get(case.execution_id)
    if target is None:
        return Result([], 0)
    limit = kinds.limit_of(len(runs))
    by_run = {run.execution_id: surroundings.own_features(run, limit) for run in runs}
    processes, at_once = surroundings.of_processes(case.sample), surroundings.of_others(case.sample)
    usual_ns = round(median([case.seconds.get(run.execution_id, 0.0) for run in case.usual.values()]) * NS)
    windows = {run.execution_id: window for run in runs if (window := _window(case, run, usual_ns)) is not None}
    beside = surroundings.of_beside(windows, others)
    times = surroundings.of_time(target, runs, case.odd)
    weekdays = surroundings.of_weekdays(target, runs, case.odd)
    missing = _missing_steps(connection, case) if verdict == "slow" else {}
    attributes = _attributes(connection, workspace, case, runs)
    names = {step.step_id: step.name for step in case.run.steps}
    for run in runs:
        values = by_run[run.execution_id]
        values |= processes[run.execution_id]
        values["runs_at_once"] = at_once[run.execution_id]
        values |= beside.get(run.execution_id, {})
        values |= attributes.get(run.execution_id, {})
        values |= missing.get(run.execution_id, {})
        if run.execution_id in times:
            values[surroundings.TIME_OF_DAY] = times[run.execution_id]
        if run.execution_id in weekdays:
            values[weekdays[run.execution_id].key] = weekdays[run.execution_id]
    for (execution_id, step_id), detail in case.details.items():
        if execution_id in by_run:
            for feature in _of_step(names.get(step_id, step_id), detail):
                by_run[execution_id].setdefault(feature.key, feature)
    described = []
    for run in runs:
        is_target = run is target
        values = by_run[run.execution_id]
        if is_target:
            # It is no evidence for what was made relative to it.
            values = {key: feature for key, feature in values.items() if key != surroundings.TIME_OF_DAY}
        seconds = case.seconds.get(run.execution_id) if verdict == "slow" else None
        described.append(Described(run.started_ns, run.execution_id in case.odd, values, seconds, is_target))
    result = differences(by_run[target.execution_id], described)
    of_odd = [window for execution_id, window in windows.items() if execution_id in case.odd]
    kept = [
        each
        for each in result.differences
        if surroundings.is_plausible(each, case.odd, case.usual)
        or (each.place is kinds.BESIDE and surroundings.come_and_go(others[each.key.partition(".")[2]], of_odd))
    ]
    return Result(kept, result.tested)


def _missing_steps(connection: Connection, case: Case) -> dict[str, dict[str, Feature]]:
    """Of the steps that usually run and did not run in this one: in which runs of the sample they did not, either."""
    near = sorted(case.usual.values(), key=lambda run: abs(run.started_ns - case.run.execution.started_ns))
    references = [run.execution_id for run in near[:_USUAL_STEPS_OF]]
    if len(case.run.steps) > _MAX_STEPS_OF_RUN or not references:
        return {}
    ran = {step.name for step in case.run.steps if step.started_ns is not None}
    usual: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for steps in samples.steps_that_ran(connection, references).values():
        usual |= steps
        counts.update(steps.keys())
    names = [name for name, count in counts.most_common() if name not in ran and 2 * count > len(references)]
    if not names:
        return {}
    ids = {name: usual[name] for name in names[:_MAX_MISSING]}
    runs = [*case.odd, *case.usual]
    started = samples.started_steps(connection, runs, list(ids.values()))
    return {
        execution_id: {
            key: Feature(key, (execution_id, step_id) not in started, kinds.MISSING)
            for key, step_id in ((f"missing.{name}", step_id) for name, step_id in ids.items())
        }
        for execution_id in runs
    }


def _of_step(name: str, detail: StepDetail) -> Iterable[Feature]:
    key = f"steps.{name}"
    yield from flattened(f"{key}.output", detail.output, kinds.OUTPUT)
    if detail.output is not None:
        yield Feature(f"{key}.output_size", float(len(detail.output)), kinds.SIZE)
    yield from of_resources(key, detail.resources)


def _attributes(
    connection: Connection, workspace: str, case: Case, runs: Sequence[SampledRun]
) -> dict[str, dict[str, Feature]]:
    """Attributes that the engine gave to the spans of each run and of its step to look at, where spans are stored."""
    focus = case.focus
    newest = sorted(runs, key=lambda run: -run.started_ns)[:MAX_ATTRIBUTED]
    keys: dict[tuple[str, str], str] = {}
    for run in [case.odd[case.execution_id], *newest]:
        keys[run.trace_id, run.span_id] = run.execution_id
        detail = case.details.get((run.execution_id, focus.step_id)) if focus is not None else None
        if detail is not None:
            keys[run.trace_id, detail.span_id] = run.execution_id
    first = case.odd[case.execution_id]
    if not samples.span_payloads(connection, workspace, [key for key in keys if keys[key] == first.execution_id]):
        return {}
    result: dict[str, dict[str, Feature]] = {}
    for key, (payload, resource, resource_id) in samples.span_payloads(connection, workspace, list(keys)).items():
        span = stored_record(payload, resource, resource_id)
        named = [*(("resource", item) for item in span.resource_attributes.items()),
                 *(("span", item) for item in span.attributes.items())]  # fmt: skip
        values = result.setdefault(keys[key], {})
        for scope, (name, value) in named:
            if name.startswith(_OURS) or len(values) >= _MAX_ATTRIBUTES:
                continue
            plain = _plain(name, value)
            if plain is not None:
                place = _ATTRIBUTE_PLACES.get(name, kinds.ATTRIBUTE)
                values.setdefault(f"{scope}.{name}", Feature(f"{scope}.{name}", plain, place))
    return result


_ATTRIBUTE_PLACES: Final = {
    "host.name": kinds.HOST,
    "service.version": kinds.VERSION,
    "service.instance.id": kinds.PROCESS,
    "k8s.node.name": kinds.HOST,
    "k8s.pod.name": kinds.PROCESS,
}


def _plain(name: str, value: object) -> Value | None:
    """An attribute as it is compared; None if it cannot be, or is a secret: spans are stored as they were sent."""
    if is_secret_key(name):
        return None
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return mask_text(value, 100) if isinstance(value, str) and not kinds.is_date(value) else None


def _read_below(connection: Connection, workspace: str, case: Case, focus: StoredStep) -> list[Excess]:
    """The spans below the step to look at, compared with those of usual runs whose step took what is usual."""
    trace_id = case.run.execution.trace_id
    roots = span_ids(focus)
    mine = self_times(read_span_times(connection, workspace, [trace_id]).get(trace_id, ()), roots)
    if not mine:
        return []
    having = [run for run in case.usual.values() if (run.execution_id, focus.step_id) in case.details]
    usually = median([case.seconds.get(run.execution_id, 0.0) for run in having])
    having.sort(key=lambda run: abs(case.seconds.get(run.execution_id, 0.0) - usually))
    references = having[:MAX_REFERENCES]
    spans = read_span_times(connection, workspace, [run.trace_id for run in references])
    usual = [
        self_times(spans[run.trace_id], {case.details[run.execution_id, focus.step_id].span_id})
        for run in references
        if run.trace_id in spans
    ]
    return excess(mine, usual)


def _read_child(connection: Connection, workspace: str, execution_id: str, back_ns: int) -> ChildRun | None:
    try:
        run = find_run(connection, workspace, execution_id)
    except TachographError:
        return None
    comparison = read_baseline_comparison(connection, workspace, run, back_ns)
    seconds = comparison.execution.duration_seconds
    if seconds is None:
        return None
    baseline = comparison.baseline
    is_known = baseline is not None and baseline.execution_count >= MIN_USUAL
    return ChildRun(
        execution_id,
        run.execution.workflow,
        seconds,
        baseline.p50 if baseline is not None and is_known else None,
        comparison.culprit,
    )


def _upstream(case: Case, focus: StoredStep, others: Mapping[str, Sequence[Beside]]) -> Beside | None:
    """A run of another workflow that the step ended with, if usual runs of it do so too, and not by chance."""
    if focus.finished_ns is None or focus.started_ns is None:
        return None
    for runs in others.values():
        ends = sorted(run.finished_ns for run in runs if run.finished_ns is not None)
        candidate = next(
            (run for run in runs if _is_just_before(run.finished_ns, focus.started_ns, focus.finished_ns)), None
        )
        if candidate is None:
            continue
        followed = middle = count = 0
        for each in case.usual.values():
            step = each.steps.get(focus.step_id)
            if step is None or step.started_ns is None or step.finished_ns is None:
                continue
            count += 1
            half = (step.started_ns + step.finished_ns) // 2
            followed += any(_is_just_before(end, step.started_ns, step.finished_ns) for end in ends)
            middle += any(_is_just_before(end, step.started_ns, half) for end in ends)
        if count >= _MIN_FOLLOWED and followed >= _MIN_FOLLOWING * count and 2 * middle < followed:
            return candidate
    return None


def _is_just_before(end_ns: int | None, low_ns: int, high_ns: int) -> bool:
    if end_ns is None:
        return False
    slack = max(_END_SLACK_NS, (high_ns - low_ns) // 50)
    return max(low_ns, high_ns - slack) <= end_ns <= high_ns


def _never_started(run: StoredRun) -> WhyAnswer:
    row = run.execution
    claims = [now.never_started(run)]
    verdict: Verdict = "failed" if row.status in UNSUCCESSFUL else "cancelled"
    return _brief(run, verdict, claims, [])


def _open_run(connection: Connection, workspace: str, run: StoredRun, now_ns: int) -> WhyAnswer:
    row = run.execution
    usual = read_usual(connection, (workspace, row.workflow_id), now_ns)
    claims = [*now.progress(run, expected_end(row, run.steps, usual, now_ns), usual, now_ns)]
    steps = list(now.open_steps(run, usual, now_ns))
    causes = now.late_steps(steps)
    claims += [each for each in steps if each not in causes]
    claims += sampled(connection, run, [step for step in run.steps if step.status == "running"])
    return _brief(run, "running" if row.started_ns is not None else "pending", claims, causes)


def _brief(run: StoredRun, verdict: Verdict, claims: list[Claim], causes: list[Claim]) -> WhyAnswer:
    """An answer for which no other runs were compared."""
    row = run.execution
    return WhyAnswer(
        execution_id=row.execution_id,
        workflow_id=row.workflow_id,
        workflow_name=row.workflow,
        status=row.status,
        verdict=verdict,
        sentence=sentence(claims, causes),
        claims=claims,
        causes=causes,
        differences=[],
        sample=SampleOfRuns(
            start=None, end=None, run_count=0, odd_count=0, usual_count=0, tested=0,
            max_false_discovery_rate=MAX_FALSE,
        ),
    )  # fmt: skip
