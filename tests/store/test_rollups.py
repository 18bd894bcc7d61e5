"""Rollups equal their executions, for any range of time and any order, repetition or lateness of events."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import make_execution, make_step

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    PathStep,
    SkipReason,
    StepCost,
    StepFinished,
    StepMeasured,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.exact_sum import ExactSum
from tachograph.histogram import ExponentialHistogram
from tachograph.identity import workflow_id, workspace_id
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import ranges, read, rows
from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
from tachograph_exporter.store.totals import Measure, Totals, WorkflowTotals
from tachograph_exporter.store.writer import StoreWriter

KEY = (workspace_id("default"), workflow_id("default", "etl"))
START = 1_790_812_800  # 2026-10-01T00:00:00Z
DAY = 86_400


def a_run(rng: random.Random, ended_s: float, status: ExecutionStatus = ExecutionStatus.COMPLETED) -> list[Event]:
    """An execution of two steps and a skipped one that ended at a time, with costs and measures."""
    end = round(ended_s * NS)
    first, second = (round(rng.lognormvariate(0, 2) * NS) for _ in range(2))
    started = end - first - second
    run = make_execution("etl")
    a, c = make_step(run, "a"), make_step(run, "c")
    b = make_step(run, "b", depends_on=(a.step_id,))
    good = status is ExecutionStatus.COMPLETED
    return [
        ExecutionStarted(execution=run, time_ns=started, step_count=3),
        StepStarted(step=a, time_ns=started),
        StepCost(step=a, time_ns=started, sequence=1, usd=rng.random(), tokens_in=rng.randrange(9), model="m"),
        StepMeasured(step=a, time_ns=started, sequence=2, name="rows", value=rng.random() * 10 ** rng.randrange(9)),
        StepFinished(step=a, time_ns=started + first, status=StepStatus.COMPLETED, attempt=rng.choice([1, 1, 3]),
                     started_ns=started, attempt_started_ns=started, run_ns=first, backoff_ns=rng.randrange(9),
                     unaccounted_ns=rng.choice([0, 7]), scheduled_ns=first % 3),
        StepFinished(step=b, time_ns=end, status=StepStatus.COMPLETED if good else StepStatus.FAILED, attempt=1,
                     started_ns=started + first, attempt_started_ns=started + first, run_ns=second,
                     dependency_ns=first),
        StepSkipped(step=c, time_ns=end, reason=SkipReason.CONDITION),
        ExecutionFinished(execution=run, time_ns=end, status=status, started_ns=started, step_count=3,
                          completed_step_count=2, skipped_step_count=1, work_ns=first + second,
                          critical_path=(PathStep(a.step_id, "a", first), PathStep(b.step_id, "b", second))),
    ]  # fmt: skip


def plain(events: Sequence[Event]) -> list[Event]:
    """The events without reports and retries, as those of most executions."""
    return [
        msgspec.structs.replace(event, attempt=1) if isinstance(event, StepFinished) else event
        for event in events
        if not isinstance(event, StepCost | StepMeasured)
    ]


def differing(database: Database) -> int:
    """How many rows a rebuild would change."""
    return sum(
        database.look(lambda c, k=key: rollup_rebuild.rebuild_one(c, k, write=False))  # type: ignore[misc]
        for key in database.look(rollup_rebuild.workflows_with_executions)
    )


def applied(database: Database, events: Sequence[Event], groups: Sequence[int]) -> None:
    writer, rest = StoreWriter(database), list(events)
    for size in groups:
        writer.apply(rest[:size])
        rest = rest[size:]
    writer.apply(rest)


SPANS = st.sampled_from([60, 3_600, DAY, 12 * DAY, 70 * DAY])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 2**32), span=SPANS)
def test_any_order_repetition_and_grouping_makes_the_rows_a_rebuild_makes(
    data: st.DataObject, seed: int, span: int, tmp_path: Path, empty_database: Path
) -> None:
    rng = random.Random(seed)
    runs = [a_run(rng, START + rng.random() * span, rng.choice(list(ExecutionStatus)[2:])) for _ in range(12)]
    events = [event for run in runs for event in (plain(run) if rng.random() < 0.5 else run)]
    if rng.random() < 0.7:
        # A run given up as lost that ended after all.
        last = runs[0][-1]
        assert isinstance(last, ExecutionFinished)
        fields = {name: getattr(last, name) for name in last.__struct_fields__}
        seen = last.started_ns + 1
        events.append(ExecutionFinished(**{**fields, "status": ExecutionStatus.LOST, "time_ns": seen}))
    events += rng.sample(events, 5)
    if rng.random() < 0.5:
        rng.shuffle(events)
    path = tmp_path / f"{rng.getrandbits(64):x}.db"
    path.write_bytes(empty_database.read_bytes())
    # Hypothesis leaves an example by an exception, so the end of the test is not reached every time.
    with closing(Database(f"sqlite:///{path}")) as database:
        applied(database, events, data.draw(st.lists(st.integers(1, 40), max_size=6)))
        assert differing(database) == 0
        whole = database.look(lambda c: read.read(c, KEY))
        assert sum(by_status.count for by_status in whole.executions.values()) == 12


def test_on_both_databases_rebuilding_finds_nothing_to_change(any_database_url: str) -> None:
    rng = random.Random(3)
    database = Database(any_database_url)
    runs = [a_run(rng, START + rng.random() * 40 * DAY) for _ in range(60)]
    late = [runs[7], runs[31]]
    applied(database, [event for run in runs for event in run if run not in late], [100, 7, 90])
    applied(database, [event for run in late for event in run], [3])
    assert differing(database) == 0
    before = database.look(lambda c: rollup_rebuild.stored(c, KEY))
    assert {kind for kind, _ in before} == {"5m", "1h", "1d", "1mo", "all"}
    database.run(lambda c: c.exec_driver_sql("DELETE FROM workflow_rollups WHERE period = '1d'"))
    assert database.run(lambda c: rollup_rebuild.rebuild_one(c, KEY)) > 10
    assert database.look(lambda c: rollup_rebuild.stored(c, KEY)) == before
    database.close()


class Recorded:
    """A database and its executions; a short repr when a test fails."""

    def __init__(self, database: Database, runs: list[list[Event]]) -> None:
        self.database = database
        self.ends = [run[-1].time_ns for run in runs]
        self.durations = [(run[-1].time_ns - run[0].time_ns) / NS for run in runs]


@pytest.fixture(scope="module")
def half_a_year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    rng = random.Random(5)
    times = sorted(START + rng.random() * 180 * DAY for _ in range(250))
    times += [START + 180 * DAY + rng.random() * 3 * DAY for _ in range(150)]
    times += [START, START + DAY, START + 31 * DAY, START + 183 * DAY, START + 183 * DAY + 300]
    runs = [a_run(rng, moment) for moment in times]
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('half')}/x.db")
    StoreWriter(database).apply([event for run in runs for event in run])
    yield Recorded(database, runs)
    database.close()


CACHE = read.SumCache()
MOMENTS = st.one_of(
    st.none(),
    st.integers(START - 5 * DAY, START + 190 * DAY).map(lambda s: s * NS),
    st.integers(-2, 190).map(lambda day: (START + day * DAY) * NS),
    st.integers(0, 190 * 24).map(lambda hour: (START + hour * 3600) * NS),
    st.integers(180 * 288, 185 * 288).map(lambda fine: (START + fine * 300) * NS + 1),
)


@settings(max_examples=300, deadline=None)
@given(low=MOMENTS, high=MOMENTS)
def test_any_range_is_what_its_executions_are(half_a_year: Recorded, low: int | None, high: int | None) -> None:
    database = half_a_year.database
    ends = [end for end in half_a_year.ends if (low is None or end >= low) and (high is None or end < high)]
    totals = database.look(lambda c: read.read(c, KEY, low, high))
    assert sum(by_status.count for by_status in totals.executions.values()) == len(ends)
    head = database.look(lambda c: rows.head_of(c, KEY))
    assert head is not None
    parts = ranges.split_range(head.start_s, low, high)
    # Cached sums are equal, whichever range cached them.
    again = database.look(lambda c: read.read_from(c, KEY, head, low, high, kept=CACHE))
    assert again.encode() == totals.encode()
    # Few rows, however many executions.
    assert len(parts.row_ranges) <= 9
    if low is None or high is None or high - low > 7200 * NS:
        assert all(b - a <= 3600 * NS for a, b in parts.edges)


@pytest.mark.parametrize("unit", [300, 3600, DAY])
def test_a_series_adds_up_to_the_whole(half_a_year: Recorded, unit: int) -> None:
    low, high = (START + 178 * DAY, START + 185 * DAY) if unit == 300 else (START, START + 200 * DAY)
    totals = half_a_year.database.look(lambda c: read.series(c, KEY, low, high, unit))
    counted: dict[int, int] = {}
    for ended_ns in half_a_year.ends:
        end = ended_ns // NS
        if low <= end < high:
            counted[end - end % unit] = counted.get(end - end % unit, 0) + 1
    assert {start: bucket_totals.executions["completed"].count for start, bucket_totals in totals.items()} == counted


def test_percentiles_of_a_range_are_within_the_stated_error(half_a_year: Recorded) -> None:
    part = half_a_year.database.look(lambda c: read.read(c, KEY)).executions["completed"]
    durations = sorted(half_a_year.durations)
    histogram = part.histogram()
    for q in (0.01, 0.5, 0.9, 0.95, 0.99):
        exact = durations[max(1, -(-int(q * 1000) * len(durations) // 1000)) - 1]
        assert histogram.quantile(q) == pytest.approx(exact, rel=histogram.relative_error * 1.001)


def test_totals_of_a_run(tmp_path: Path, database_url: str) -> None:
    database = Database(database_url)
    run = a_run(random.Random(1), START + 10)
    StoreWriter(database).apply(run)
    totals = database.look(lambda c: read.read(c, KEY))
    started, first_end = run[0].time_ns, run[4].time_ns
    a, b = totals.steps["a"].by_status["completed"], totals.steps["b"].by_status["completed"]
    assert (a.critical_ns, b.critical_ns) == (first_end - started, run[-1].time_ns - first_end)
    assert (b.dependency_ns, b.run_ns) == (first_end - started, run[-1].time_ns - first_end)
    assert totals.steps["c"].by_status["skipped"].count == 1
    assert totals.executions["completed"].cost_nano_usd == a.cost_nano_usd > 0
    (measure,) = totals.steps["a"].measures.values()
    assert (measure.count, measure.min, measure.max) == (1, measure.sum, measure.sum)
    database.close()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=30), st.randoms())
def test_a_measures_sum_is_exact_in_any_order(values: list[float], rng: random.Random) -> None:
    first, second = Measure(), Measure()
    for value in values:
        first.observe(value)
    shuffled = list(values)
    rng.shuffle(shuffled)
    for value in shuffled:
        second.observe(value)
    assert first == second
    if values and max(map(abs, values)) < 1e300:
        import math

        assert first.sum == math.fsum(values)
    assert all(ExactSum.of(value).value == value for value in values)


@given(st.lists(st.integers(0, 10**16), max_size=400), st.integers(1, 7))
def test_totals_add_up_like_their_histograms(durations: list[int], parts: int) -> None:
    whole, sum_of_parts = Totals(), Totals()
    for duration in durations:
        whole.observe(duration, 5)
    for offset in range(parts):
        part = Totals()
        for duration in durations[offset::parts]:
            part.observe(duration, 5)
        sum_of_parts.add(part)
    assert WorkflowTotals({"x": whole}).encode() == WorkflowTotals({"x": sum_of_parts}).encode()
    assert whole.histogram() == ExponentialHistogram.of(duration / NS for duration in durations)


def test_late_steps_are_counted_once(database_url: str) -> None:
    rng = random.Random(2)
    run: list[Any] = a_run(rng, START + 100)
    database = Database(database_url)
    writer = StoreWriter(database)
    writer.apply([run[0], *run[5:]])
    writer.apply(run[1:5])
    writer.apply(run)
    assert differing(database) == 0
    totals = database.look(lambda c: read.read(c, KEY))
    assert [totals.steps[name].by_status["completed"].count for name in "ab"] == [1, 1]
    database.close()


def test_totals_without_unaccounted_or_scheduled_time_are_stored_as_by_versions_that_did_not_know_it() -> None:
    totals = Totals()
    totals.observe(5, 9)
    old = totals.to_row()
    assert Totals.from_row(old).to_row() == old
    totals.unaccounted_ns = 3
    assert totals.to_row() == (*old, 3)
    assert Totals.from_row(totals.to_row()).unaccounted_ns == 3
    totals.scheduled_ns = 1 << 70
    again = Totals.from_row(totals.to_row())
    assert (again.unaccounted_ns, again.scheduled_ns) == (3, 1 << 70)
    again.add(totals)
    assert (again.unaccounted_ns, again.scheduled_ns) == (6, 1 << 71)
