"""What lies below the steps of an execution: the self time of the spans under each, by name; and what of it grew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph_exporter.store import samples
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import StoredStep
from tachograph_exporter.store.trace_groups import traces_beside
from tachograph_exporter.views.causes.below import SelfTime, excess, self_times
from tachograph_exporter.views.comparison import compare_runs, read_baseline_comparison
from tachograph_exporter.views.schemas.comparison import ComparedSpans, ExecutionComparison
from tachograph_exporter.views.schemas.timeline import SpansBelow
from tachograph_exporter.views.span_times import read_span_times

MAX_NAMES: Final = 20
"""Names of spans below a step that are told apart; the others are one entry without a name."""
MAX_COMPARED_STEPS: Final = 5
"""Of a comparison, so many steps are looked into: those that got slower, by how much."""
MAX_REFERENCES: Final = 10
"""Usual executions whose spans are read."""
MIN_SECONDS: Final = 0.001
"""By how much spans must have got slower to be worth a line of a comparison."""


def read_below(
    connection: Connection, workspace: str, run: StoredRun, steps: Collection[StoredStep]
) -> dict[str, list[SpansBelow]]:
    """What lies below those of the steps that have spans below them, by step id; the longest first."""
    times = _times(connection, workspace, run, steps)
    return {step_id: _entries(by_name) for step_id, by_name in times.items() if by_name}


def span_ids(step: StoredStep) -> set[str]:
    """The spans of a step: its own, and those of its attempts."""
    # Loads OpenTelemetry, which most commands do without.
    from tachograph.spans.attributes import attempt_span_id

    attempts = range(1, step.attempt + 1) if step.attempt > 1 else ()
    return {step.span_id, *(attempt_span_id(step.span_id, attempt) for attempt in attempts)}


def _times(
    connection: Connection, workspace: str, run: StoredRun, steps: Collection[StoredStep]
) -> dict[str, dict[str, SelfTime]]:
    trace_ids = traces_beside(connection, workspace, run.execution.trace_id)
    by_trace = read_span_times(connection, workspace, list(trace_ids))
    spans = [span for of_trace in by_trace.values() for span in of_trace]
    return {step.step_id: self_times(spans, span_ids(step)) for step in steps} if spans else {}


def _entries(times: Mapping[str, SelfTime]) -> list[SpansBelow]:
    ordered = sorted(times.items(), key=lambda item: (-item[1].self_ns, item[0]))
    entries = [
        SpansBelow(name, time.self_ns / NS, time.span_count, time.elapsed_ns / NS) for name, time in ordered[:MAX_NAMES]
    ]
    rest = [time for _, time in ordered[MAX_NAMES:]]
    if rest:
        entries.append(SpansBelow(None, sum(t.self_ns for t in rest) / NS, sum(t.span_count for t in rest), None))
    return entries


def compare_below(
    connection: Connection, workspace: str, comparison: ExecutionComparison, run: StoredRun, reference: StoredRun | None
) -> ExecutionComparison:
    """Add to the steps that got slower which spans below them did. Returns the comparison.

    ``reference``: the other execution; None: usual ones, the last that completed before this one.
    """
    slower = [step for step in comparison.steps if step.step_id is not None and (step.difference_seconds or 0) > 0]
    slower.sort(key=lambda step: -(step.difference_seconds or 0))
    chosen = {step.step_id: step for step in slower[:MAX_COMPARED_STEPS]}
    steps = [step for step in run.steps if step.step_id in chosen]
    times = _times(connection, workspace, run, steps) if steps else {}
    if not any(times.values()):
        return comparison
    then = (
        _times_of_usual(connection, workspace, run, steps)
        if reference is None
        else _times_of(connection, workspace, reference, steps)
    )
    for step in steps:
        compared = [
            ComparedSpans(
                name=each.name, seconds=each.self_ns / NS, reference_seconds=each.usual_ns / NS, count=each.span_count,
                reference_count=each.usual_count, difference_seconds=each.additional_ns / NS,
            )
            for each in excess(times.get(step.step_id, {}), then.get(step.step_id, ()))[:MAX_NAMES]
            if each.references and each.additional_ns >= MIN_SECONDS * NS
        ]  # fmt: skip
        if compared:
            chosen[step.step_id].below = compared
    return comparison


def read_comparison(
    connection: Connection, workspace: str, run: StoredRun, reference: StoredRun | None, back_ns: int
) -> ExecutionComparison:
    """Compare an execution with another one, or (None) with usual ones, down to what lies below its steps.

    ``back_ns``: how far back the usual ones go.
    """
    if reference is None:
        comparison = read_baseline_comparison(connection, workspace, run, back_ns)
    else:
        comparison = compare_runs(run, reference)
    return compare_below(connection, workspace, comparison, run, reference)


def _times_of(
    connection: Connection, workspace: str, reference: StoredRun, steps: Sequence[StoredStep]
) -> dict[str, list[dict[str, SelfTime]]]:
    by_key = {(step.name, step.repetition): step for step in reference.steps}
    same = {step.step_id: by_key[key] for step in steps if (key := (step.name, step.repetition)) in by_key}
    times = _times(connection, workspace, reference, list(same.values()))
    # Without any spans nothing is known of it, which is not the same as that nothing took any time.
    return {step_id: [times[step.step_id]] for step_id, step in same.items() if times.get(step.step_id)}


def _times_of_usual(
    connection: Connection, workspace: str, run: StoredRun, steps: Sequence[StoredStep]
) -> dict[str, list[dict[str, SelfTime]]]:
    row = run.execution
    before_ns = row.started_ns if row.started_ns is not None else row.created_ns
    usual = [
        each
        for each in samples.ended_around(connection, workspace, row.workflow_id, before_ns, 0, 3 * MAX_REFERENCES, 0)
        if each.status == "completed" and each.execution_id != row.execution_id
    ][-MAX_REFERENCES:]
    if not usual:
        return {}
    spans = read_span_times(connection, workspace, [each.trace_id for each in usual])
    details = samples.step_details(connection, [each.execution_id for each in usual], [step.step_id for step in steps])
    return {
        step.step_id: [
            self_times(spans[each.trace_id], {detail.span_id})
            for each in usual
            if each.trace_id in spans and (detail := details.get((each.execution_id, step.step_id))) is not None
        ]
        for step in steps
    }
