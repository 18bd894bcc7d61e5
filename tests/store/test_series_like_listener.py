"""The database's series are what `MetricsListener` counts from the same events, in every count, sum and bucket."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from tests.conftest import make_execution, make_step

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    SkipReason,
    StepCost,
    StepEvent,
    StepMeasured,
    StepsFolded,
    StepSkipped,
    StepStatus,
)
from tachograph.folding import Fold
from tachograph.identity import ExecutionRef, StepRef, new_span_id, workspace_id
from tachograph.metrics.children import Child, CounterChild, HistogramChild
from tachograph.metrics.listener import MetricsListener
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.resources import Resources
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.metrics.shown_series import SeriesKey, ShownSeries
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.series import rows
from tachograph_exporter.store.writer import StoreWriter

MEASURES = ("rows", "bytes")
NOT_COMPARED = {"workflow_step_critical_path_seconds_total", "workflow_failure_group_failures_total"}
"""Only the database knows failures by cause."""
FAILURE = Failure("ValueError", "no")


class Attempt(NamedTuple):
    """One attempt of a repetition: how long it waited, was queued and ran (ns), and what it reported."""

    backoff: int
    queue: int
    run: int
    outcome: StepStatus
    measures: Sequence[tuple[str, str, float]]
    costs: Sequence[tuple[str, int, int, int]]
    use: Resources | None


class Repetition(NamedTuple):
    """One call of a step. ``is_stopped``: it ends while it waits for its next attempt."""

    name: str
    dependency: int
    unaccounted: int
    scheduled: int
    attempts: Sequence[Attempt]
    is_stopped: bool
    is_skipped: bool


times = st.one_of(
    st.just(0),
    st.sampled_from((5_000_000, 1_000_000_000, 2_500_000_000, 86_400_000_000_000)),
    st.integers(1, 10**6),
    st.integers(1, 10**14),
)
measured = st.one_of(
    st.sampled_from((0.0, -0.0, 1.0, 2.5, 0.001, -7.0, 5e9, 1e-300, 1e300, -1e300)), st.floats(-1e6, 1e6)
)
attempts = st.builds(
    Attempt,
    times,
    times,
    times,
    st.sampled_from((StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.TIMEOUT, StepStatus.CANCELLED)),
    st.lists(st.tuples(st.sampled_from((*MEASURES, "undeclared")), st.sampled_from(("row", "")), measured), max_size=2),
    st.lists(
        st.tuples(st.sampled_from(("m", "", "x" * 250)), *[st.integers(0, 10**9)] * 3),
        max_size=2,
    ),
    st.one_of(
        st.none(),
        st.builds(
            Resources,
            st.one_of(st.none(), st.integers(0, 10**14).map(lambda ns: ns / 1e9)),
            st.one_of(st.none(), st.sampled_from((0, 1 << 20, (1 << 20) + 1)), st.integers(0, 1 << 42)),
            is_shared=st.booleans(),
        ),
    ),
)
repetitions = st.builds(
    Repetition,
    st.sampled_from(("load", "", 'a"b\n\\', "y" * 200)),
    times,
    times,
    times,
    st.lists(attempts, min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 9).map(lambda number: number == 0),
)


def events_of(repetition: Repetition, ref: StepRef, origin_ns: int) -> list[StepEvent]:
    """The events of a repetition, as an executor accounts for its attempts."""
    if repetition.is_skipped and ref.folded_as is None:
        return [StepSkipped(step=ref, time_ns=origin_ns, reason=SkipReason.CONDITION)]
    events: list[StepEvent] = []
    accounts = StepAttempts(ref, origin_ns)
    met_ns = origin_ns + repetition.dependency
    asked_ns = met_ns + repetition.unaccounted
    now = asked_ns + repetition.scheduled
    events.append(accounts.ready(now, met_ns, asked_ns))
    sequence = 0
    for number, attempt in enumerate(repetition.attempts, 1):
        if number > 1:
            now += attempt.backoff
            accounts.backed_off(now)
        now += attempt.queue
        events.append(accounts.started(now))
        for name, unit, value in attempt.measures:
            sequence += 1
            events.append(
                StepMeasured(
                    step=ref, time_ns=now, sequence=sequence, attempt=number, name=name, unit=unit, value=value
                )
            )
        for model, nano_usd, tokens_in, tokens_out in attempt.costs:
            sequence += 1
            spent = StepCost(
                step=ref, time_ns=now, sequence=sequence, attempt=number, usd=nano_usd / 1e9, model=model,
                tokens_in=tokens_in, tokens_out=tokens_out,
            )  # fmt: skip
            events.append(spent)
        now += attempt.run
        is_last = number == len(repetition.attempts)
        if not is_last or repetition.is_stopped:
            events.append(accounts.retrying(now, attempt.outcome, attempt.backoff, FAILURE, attempt.use))
        if is_last:
            # A moment later at least: only its times tell it from one that ends with its attempt.
            now += attempt.backoff + 1 if repetition.is_stopped else 0
            failure = None if attempt.outcome is StepStatus.COMPLETED else FAILURE
            events.append(accounts.finished(now, attempt.outcome, failure, resources=attempt.use))
    return events


def run_of(workflow: str, calls: Sequence[Repetition], bound: int) -> tuple[list[Event], list[Event]]:
    """The events of a run that listeners receive, and those for the store: repetitions past a bound are folded."""
    execution = make_execution(workflow)
    origin_ns = 1_700_000_000_000_000_000
    told: list[Event] = [ExecutionStarted(execution=execution, time_ns=origin_ns)]
    stored: list[Event] = list(told)
    folds: dict[str, Fold] = {}
    for number, call in enumerate(calls):
        ref = make_step(execution, call.name)
        if number < bound:
            own = replace(ref, step_id=str(uuid.uuid4()))
            events = events_of(call, own, origin_ns)
            told += events
            stored += events
            continue
        fold = folds.setdefault(call.name, Fold(replace(ref, step_id=str(uuid.uuid4())), lambda event: None))
        folded = replace(ref, step_id=fold.ref.step_id, span_id=new_span_id(), folded_as=call.name)
        for event in events_of(call, folded, origin_ns):
            fold.note(event)
            told.append(event)
    for fold in folds.values():
        stored.append(StepsFolded(step=fold.ref, time_ns=origin_ns, folded=fold.folded(), is_final=True))
    end = ExecutionFinished(
        execution=execution, time_ns=origin_ns + 10**9, status=ExecutionStatus.COMPLETED, started_ns=origin_ns,
        step_count=len(calls),
    )  # fmt: skip
    return [*told, end], [*stored, end]


def parts(child: Child) -> dict[str, Any]:
    """What a scrape says of a label set, but for sums, which are rounded differently."""
    if isinstance(child, HistogramChild):
        native = child.native
        schema = (native.schema, native.count, native.zero_count, dict(native.positive), dict(native.negative))
        return {"counts": list(child.counts), "native": schema}
    return {}


def value_of(child: Child) -> float:
    return child.total if isinstance(child, HistogramChild) else getattr(child, "value", 0.0)


def shown(database: Database, execution: ExecutionRef) -> ShownSeries:
    """The series of a workflow as a service shows them once all are born."""
    key = (workspace_id("default"), execution.workflow_id)
    series = ShownSeries(SeriesRegistry(), MEASURES)
    for step, by_step in database.look(lambda c: rows.current_series(c, key)).items():
        for code, one in by_step.by_code.items():
            one.born = True
            series.show(SeriesKey(key, step, code), one, ("default", execution.workflow))
            if code == "started":
                series.show_started(SeriesKey(key, step, code), 0)
    return series


def children(families: Mapping[str, Any]) -> dict[tuple[str, ...], Child]:
    return {
        (name, *child.labels): child
        for name, family in families.items()
        for child in family.children()
        if isinstance(child, HistogramChild | CounterChild) and name not in NOT_COMPARED
    }


@given(st.lists(repetitions, max_size=8), st.integers(0, 8), st.integers(1, 2))
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
def test_the_same_events_make_the_same_series(
    database_url: str, calls: Sequence[Repetition], bound: int, runs: int
) -> None:
    database = Database(database_url)
    try:
        listener = MetricsListener(CollectorRegistry(), measures=MEASURES)
        writer = StoreWriter(database)
        workflow = f"w-{uuid.uuid4()}"
        for _ in range(runs):
            told, stored = run_of(workflow, calls, bound)
            for event in told:
                listener(event)
            # In two batches, as a queue may cut them.
            writer.apply(stored[: len(stored) // 2])
            writer.apply(stored[len(stored) // 2 :])
        due = children({**listener._histograms, **listener._counters})
        # Each value is rounded there: what large ones of both signs leave is as exact as they are.
        largest = max(
            (abs(value) for call in calls for attempt in call.attempts for _, _, value in attempt.measures), default=0.0
        )
        start = told[0]
        assert isinstance(start, ExecutionStarted)
        current = children(shown(database, start.execution).families)
        empty = {key: child for key, child in current.items() if key not in due}
        assert not any(value_of(child) or sum(getattr(child, "counts", ())) for child in empty.values()), empty.keys()
        assert due.keys() <= current.keys() | {key for key, child in due.items() if not value_of(child)}
        for key, child in due.items():
            if key in current:
                assert parts(current[key]) == parts(child), key
                abs_tol = max(1e-3, 1e-9 * largest) if "measure" in key[0] else 1e-3
                assert math.isclose(value_of(current[key]), value_of(child), rel_tol=1e-9, abs_tol=abs_tol), key
            else:
                assert not parts(child) or not sum(parts(child)["counts"]), key
    finally:
        database.close()
