"""The series of ``/metrics``: exact sums that never shrink before Prometheus' eyes, however they are stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from tests.conftest import make_execution, make_run, make_step

from tachograph.clock import NS
from tachograph.distribution import DURATION_BUCKETS, Distribution
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    SkipReason,
    StepCost,
    StepFinished,
    StepMeasured,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, workspace_id
from tachograph_exporter.store import archiving
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.failure_groups.fingerprint import fingerprint
from tachograph_exporter.store.migrations import downgrade
from tachograph_exporter.store.rollups import rebuild
from tachograph_exporter.store.running import running
from tachograph_exporter.store.schema import series_deltas, workflow_series
from tachograph_exporter.store.series import rows
from tachograph_exporter.store.series.checking import check_series
from tachograph_exporter.store.series.recount import differing, recount_one, recounted
from tachograph_exporter.store.series.values import Series, StepSeries, Value
from tachograph_exporter.store.writer import StoreWriter

times_ns = st.one_of(st.integers(0, 10**9), st.integers(10**9, 10**15), st.just(0), st.integers(1, 10**24))


def distribution(values: Sequence[int]) -> Distribution:
    values_seen = Distribution()
    for value in values:
        values_seen.observe_ns(value)
    return values_seen


def parts(values: Distribution) -> tuple[object, ...]:
    native = values.native
    return (
        values.count,
        values.total,
        native.schema,
        native.zero_count,
        native.positive,
        native.negative,
        values.classic,
    )


@given(st.lists(times_ns), st.lists(times_ns))
@settings(max_examples=200, deadline=None)
def test_distributions_add_up_and_come_apart_exactly(a: list[int], b: list[int]) -> None:
    whole = distribution([*a, *b])
    added = distribution(a)
    added.add(distribution(b))
    assert parts(added) == parts(whole)
    assert parts(Distribution.from_row(whole.to_row())) == parts(whole)
    assert whole.count == sum(whole.classic.values()) == len(a) + len(b)
    assert whole.total == sum(a) + sum(b)
    for index, count in whole.classic.items():
        low = DURATION_BUCKETS[index - 1] if index else -1
        high = DURATION_BUCKETS[index] if index < len(DURATION_BUCKETS) else float("inf")
        assert count == sum(low < value / NS <= high for value in (*a, *b))
    added.add(distribution(b), -1)
    assert (added.count, added.total, added.classic) == (len(a), sum(a), distribution(a).classic)
    assert all(count > 0 for count in added.native.positive.values())


@st.composite
def corrections(draw: Any) -> list[tuple[int, list[int]]]:
    """Values that come, and some of them that are taken back later: (sign, values)."""
    present: list[int] = []
    changes: list[tuple[int, list[int]]] = []
    for _ in range(draw(st.integers(1, 8))):
        if present and draw(st.booleans()):
            taken = draw(st.lists(st.sampled_from(present), min_size=1, max_size=3, unique=True))
            for value in taken:
                present.remove(value)
            changes.append((-1, taken))
        else:
            more = draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
            present += more
            changes.append((1, more))
    return changes


@given(corrections(), st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_what_was_shown_never_shrinks_and_the_count_is_right_once_it_has_caught_up(
    changes: list[tuple[int, list[int]]], stored_after: int
) -> None:
    series = Series("duration\x1fcompleted", 0.0)
    series.born = True
    true: list[int] = []
    shown_counts: list[int] = []
    for number, (sign, values) in enumerate(changes):
        before = series.value
        assert isinstance(before, Distribution)
        before = before.copy()
        amount = Distribution()
        amount.add(distribution(values), sign)
        series.add(amount)
        if number == stored_after:
            series = Series.from_row(series.to_row())
        if sign > 0:
            true += values
        else:
            for value in values:
                true.remove(value)
        now = series.value
        assert isinstance(now, Distribution)
        by = before.native.schema - now.native.schema
        for index, count in before.native.positive.items():
            assert now.native.positive[-(-index >> by)] >= count
        for index, count in before.classic.items():
            assert now.classic[index] >= count
        assert now.count >= before.count
        assert now.sum >= before.sum
        assert now.count == sum(now.classic.values())
        assert now.count == now.native.zero_count + sum(now.native.positive.values())
        shown_counts.append(len(true))
        # Never more than there have ever been at once, and never less than there are.
        assert now.count == max(shown_counts)
        stored = series.value if series.true is None else series.true
        assert isinstance(stored, Distribution)
        assert (stored.count, stored.total) == (len(true), sum(true))


@given(st.lists(st.integers(-5, 5), max_size=12))
def test_a_counter_is_the_highest_that_it_ever_was_and_an_unborn_one_what_it_is(steps: list[int]) -> None:
    born, unborn = Series("retries", 0.0), Series("retries", 0.0)
    born.born = True
    highest = now = 0
    for step in steps:
        step = max(step, -now)
        now += step
        highest = max(highest, now)
        born.add(step)
        unborn.add(step)
        assert born.value == highest
        assert (born.true if born.true is not None else born.value) == now
        assert (unborn.value, unborn.true) == (now, None)
        born = Series.from_row(born.to_row())


def execution_of(events: list[Event]) -> ExecutionRef:
    start = events[0]
    assert isinstance(start, ExecutionStarted)
    return start.execution


def everything(name: str, at: int) -> list[Event]:
    """A run with a step that is retried, one that fails, one that is skipped, a measure and a cost."""
    run = make_execution(name)
    a, b, c = make_step(run, "a"), make_step(run, "b"), make_step(run, "c")
    failure = Failure("ValueError", "no")
    return [
        ExecutionStarted(execution=run, time_ns=at, step_count=3),
        StepStarted(step=a, time_ns=at + 10, dependency_ns=10),
        StepRetrying(step=a, time_ns=at + 20, attempt=1, status=StepStatus.FAILED, started_ns=at + 10, delay_ns=5,
                     failure=failure, dependency_ns=10),
        StepStarted(step=a, time_ns=at + 30, attempt=2, queue_ns=5, backoff_ns=5),
        StepMeasured(step=a, time_ns=at + 31, sequence=1, name="rows", value=7.5, unit="1"),
        StepCost(step=a, time_ns=at + 32, sequence=2, usd=0.25, tokens_in=10, tokens_out=20, model="m"),
        StepFinished(step=a, time_ns=at + 50, status=StepStatus.COMPLETED, attempt=2, started_ns=at + 10,
                     attempt_started_ns=at + 30, dependency_ns=10, queue_ns=5, backoff_ns=5, run_ns=30,
                     last_queue_ns=5, last_backoff_ns=5),
        StepStarted(step=b, time_ns=at + 60, dependency_ns=60),
        StepFinished(step=b, time_ns=at + 90, status=StepStatus.FAILED, attempt=1, started_ns=at + 60,
                     attempt_started_ns=at + 60, dependency_ns=60, run_ns=30, failure=failure),
        StepSkipped(step=c, time_ns=at + 90, reason=SkipReason.UPSTREAM_FAILED),
        ExecutionFinished(execution=run, time_ns=at + 100, status=ExecutionStatus.FAILED, started_ns=at, step_count=3,
                          completed_step_count=1, failed_step_count=1, skipped_step_count=1, failure=failure),
    ]  # fmt: skip


def given_up(events: list[Event]) -> list[Event]:
    """The same run, but for its end: it was lost."""
    end = events[-1]
    assert isinstance(end, ExecutionFinished)
    lost = ExecutionFinished(
        execution=end.execution, time_ns=end.time_ns, status=ExecutionStatus.LOST, started_ns=end.started_ns,
        step_count=3,
    )  # fmt: skip
    return [*events[:-1], lost]


def key_of(events: list[Event]) -> tuple[str, str]:
    return workspace_id("default"), execution_of(events).workflow_id


def values_of(by_step: dict[str, StepSeries]) -> dict[tuple[str, str], Value]:
    return {
        (step, code): series.value if series.true is None else series.true
        for step, step_series in by_step.items()
        for code, series in step_series.by_code.items()
    }


def summary(by_step: dict[str, StepSeries]) -> dict[tuple[str, str], object]:
    values = values_of(by_step)
    return {
        key: (value.count, value.total) if isinstance(value, Distribution) else value for key, value in values.items()
    }


def test_what_a_run_adds_to_each_series(any_database_url: str) -> None:
    database = Database(any_database_url)
    events = everything("etl", at := time.time_ns())
    StoreWriter(database).apply(events)
    series = {k: v for k, v in summary(database.look(lambda c: rows.current_series(c, key_of(events)))).items() if v}
    sep = "\x1f"
    rows_measure = series.pop(("a", sep.join(("measure", "rows", "1"))))
    assert rows_measure[0] == 1  # type: ignore[index]
    assert {key: value for key, value in series.items() if value != (0, 0)} == {
        ("", f"execution{sep}failed"): (1, 100),
        ("", "failure"): events[-1].time_ns,
        ("", f"failures{sep}{fingerprint('ValueError', 'no', None).id}"): 2,
        ("", "started"): 1,
        ("a", f"duration{sep}completed"): (1, 40),
        ("a", f"wait{sep}dependency"): (1, 10),
        ("a", f"wait{sep}queue"): (2, 5),
        ("a", f"wait{sep}backoff"): (1, 5),
        ("a", f"attempts{sep}failed"): 1,
        ("a", f"attempts{sep}completed"): 1,
        ("a", "retries"): 1,
        ("a", f"cost{sep}m"): 250_000_000,
        ("a", f"tokens{sep}m{sep}input"): 10,
        ("a", f"tokens{sep}m{sep}output"): 20,
        ("b", f"duration{sep}failed"): (1, 30),
        ("b", f"wait{sep}dependency"): (1, 60),
        ("b", f"wait{sep}queue"): (1, 0),
        ("b", f"attempts{sep}failed"): 1,
        ("c", f"skipped{sep}upstream_failed"): 1,
    }
    exemplars = (
        database.look(lambda c: rows.current_series(c, key_of(events)))["b"].by_code[f"duration{sep}failed"].exemplars
    )
    execution = execution_of(events)
    assert exemplars == {0: (30, execution.trace_id, events[7].step.span_id, at + 90)}  # type: ignore[union-attr]
    database.close()


@pytest.mark.parametrize("absorb_every", [1, 2, 5])
def test_absorbing_changes_nothing_and_a_rebuild_finds_nothing_to_change(
    any_database_url: str, absorb_every: int
) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    key = key_of(everything("etl", 1))
    for number in range(7):
        events = everything("etl", time.time_ns() - number * NS)
        writer.apply(events)
        writer.apply(events)  # Delivered twice.
        if number % absorb_every == 0:
            before = database.look(lambda c: rows.current_series(c, key))
            database.run(lambda c: rows.absorb(c))
            assert database.look(rows.waiting_deltas) == 0
            after = database.look(lambda c: rows.current_series(c, key))
            assert {s: v.encode() for s, v in after.items()} == {s: v.encode() for s, v in before.items()}
    assert database.look(lambda c: recounted(c, key)) is not None
    due = database.look(lambda c: recounted(c, key))
    assert differing(database.look(lambda c: rows.current_series(c, key)), due or {}) == []
    before = database.look(lambda c: rows.current_series(c, key))
    assert database.run(lambda c: recount_one(c, key)) == 0
    assert database.run(lambda c: rebuild.rebuild_one(c, key)) == 0
    after = database.look(lambda c: rows.current_series(c, key))
    assert {s: v.encode() for s, v in after.items()} == {s: v.encode() for s, v in before.items()}
    database.close()


def test_a_recount_corrects_what_was_damaged_without_showing_less(database_url: str) -> None:
    database = Database(database_url)
    writer = StoreWriter(database)
    for _ in range(3):
        writer.apply(everything("etl", time.time_ns()))
    key = key_of(everything("etl", 1))
    database.run(lambda c: rows.absorb(c, births={key: {"b": ["attempts\x1ffailed"], "": ["started"]}}))

    def damage(amount: int) -> None:
        by_step = {step: series for _, step, series in database.look(lambda c: list(rows.stored_series(c, key)))}
        by_step["b"].by_code["attempts\x1ffailed"].value = 3 + amount
        by_step[""].by_code["started"].value = 3 - amount
        encoded = {step: series.encode() for step, series in by_step.items()}
        for step, data in encoded.items():
            database.run(
                lambda c, step=step, data=data: c.execute(  # type: ignore[misc]
                    update(workflow_series).where(workflow_series.c.step == step).values(series=data)
                )
            )

    damage(2)
    assert database.run(lambda c: recount_one(c, key, write=False)) == 2
    assert database.run(lambda c: recount_one(c, key)) == 2
    current = database.look(lambda c: rows.current_series(c, key))
    failed, started = current["b"].by_code["attempts\x1ffailed"], current[""].by_code["started"]
    assert (failed.value, failed.true) == (5, 3)
    assert (started.value, started.true) == (3, None)
    assert database.run(lambda c: recount_one(c, key)) == 0
    database.close()


def test_a_lost_run_that_ends_after_all_moves_over_and_the_next_lost_one_catches_up(database_url: str) -> None:
    database = Database(database_url)
    writer = StoreWriter(database)
    key = key_of(everything("etl", 1))

    def lost_first() -> None:
        *_, end = events = everything("etl", time.time_ns())
        writer.apply(given_up(events))

        def born(c: object) -> None:
            rows.absorb(c, births={key: {"": ["execution\x1flost", "execution\x1ffailed"]}})  # type: ignore[arg-type]

        database.run(born)
        writer.apply([end])

    def counts() -> dict[str, tuple[int, int]]:
        by_code = database.look(lambda c: rows.current_series(c, key))[""].by_code
        counted = {}
        for status in ("lost", "failed"):
            series = by_code[f"execution\x1f{status}"]
            true = series.value if series.true is None else series.true
            assert isinstance(series.value, Distribution)
            assert isinstance(true, Distribution)
            counted[status] = (series.value.count, true.count)
        return counted

    lost_first()
    assert counts() == {"lost": (1, 0), "failed": (1, 1)}
    # Another one that stays lost: as many have been shown as there are.
    writer.apply(given_up(everything("etl", time.time_ns())))
    assert counts() == {"lost": (1, 1), "failed": (1, 1)}
    assert database.look(lambda c: differing(rows.current_series(c, key), recounted(c, key) or {})) == []
    database.close()


def ended(workflow: str, status: ExecutionStatus, at_ns: int) -> list[Event]:
    """A run without steps that ended so, then."""
    run = make_execution(workflow)
    return [
        ExecutionStarted(execution=run, time_ns=at_ns - 10, step_count=0),
        ExecutionFinished(execution=run, time_ns=at_ns, status=status, started_ns=at_ns - 10, step_count=0),
    ]


def latest(database: Database, key: tuple[str, str]) -> tuple[Value | None, Value | None]:
    """When the workflow last succeeded and last failed, as the series say, which agree with the rows."""
    current = database.look(lambda c: rows.current_series(c, key))
    assert database.look(lambda c: differing(current, recounted(c, key) or {})) == []
    values = values_of(current)
    return values.get(("", "success")), values.get(("", "failure"))


def test_when_a_workflow_last_succeeded_and_last_failed(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    status = ExecutionStatus
    now = time.time_ns()
    key = key_of(ended("etl", status.COMPLETED, now))
    writer.apply(ended("etl", status.COMPLETED, now))
    assert latest(database, key) == (now, None)
    for number, outcome in enumerate((status.FAILED, status.TIMEOUT, status.LOST), 1):
        writer.apply(ended("etl", outcome, now + number))
        assert latest(database, key) == (now, now + number)
    writer.apply(ended("etl", status.CANCELLED, now + 5))
    # What ended earlier may be told later.
    writer.apply([*ended("etl", status.FAILED, now - 5), *ended("etl", status.COMPLETED, now - 5)])
    assert latest(database, key) == (now, now + 3)
    database.close()


@pytest.mark.parametrize("absorbs", [False, True])
def test_a_failure_that_is_taken_back_leaves_the_one_before_it(any_database_url: str, absorbs: bool) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    status = ExecutionStatus
    now = time.time_ns()
    key = key_of(ended("etl", status.COMPLETED, now))

    def told(*events: Event) -> tuple[Value | None, Value | None]:
        writer.apply(events)
        if absorbs:
            database.run(lambda c: rows.absorb(c))
        return latest(database, key)

    first = ended("etl", status.COMPLETED, now + 10)
    assert told(*given_up(first)) == (None, now + 10)
    # It had ended before anyone gave it up.
    assert told(first[1]) == (now + 10, 0)
    assert told(*ended("etl", status.FAILED, now + 20)) == (now + 10, now + 20)
    second = ended("etl", status.CANCELLED, now + 30)
    assert told(*given_up(second)) == (now + 10, now + 30)
    assert told(second[1]) == (now + 10, now + 20)
    # And a failure that stays one, in the same commit as another.
    third = ended("etl", status.FAILED, now + 40)
    told(*given_up(third))
    assert told(third[1], *ended("etl", status.TIMEOUT, now + 35)) == (now + 10, now + 40)
    database.close()


def test_a_success_that_turns_out_to_have_failed_is_the_last_failure(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    now = time.time_ns()
    writer.apply(ended("etl", ExecutionStatus.COMPLETED, now))
    good = ended("etl", ExecutionStatus.COMPLETED, now + 10)
    writer.apply(good)
    key, ids = key_of(good), [execution_of(good).execution_id]
    end = good[1]
    assert isinstance(end, ExecutionFinished)
    # As an assembly of spans replaces one, when a late span says that it failed.
    bad = msgspec.structs.replace(end, status=ExecutionStatus.FAILED)
    writer.run(lambda c: writer.replace(c, [good[0], bad], known=ids))
    assert latest(database, key) == (now, now + 10)
    database.close()


def test_an_upgrade_knows_what_failed_before_it(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    now = time.time_ns()
    for workflow, outcome in (("bad", "failed"), ("good", "completed"), ("absorbed", "lost")):
        writer.apply(ended(workflow, ExecutionStatus(outcome), now))
        if workflow == "absorbed":
            database.run(lambda c: rows.absorb(c))
    writer.apply(ended("absorbed", ExecutionStatus.FAILED, now + 1))
    keys = {name: key_of(ended(name, ExecutionStatus.FAILED, now)) for name in ("bad", "good", "absorbed")}
    before = {name: latest(database, key) for name, key in keys.items()}
    assert before == {"bad": (None, now), "good": (now, None), "absorbed": (None, now + 1)}
    database.run(lambda c: downgrade(c, "0017"))
    for key in keys.values():
        assert ("", "failure") not in values_of(database.look(lambda c, key=key: rows.current_series(c, key)))  # type: ignore[misc]
    database.close()
    database = Database(any_database_url)
    assert {name: latest(database, key) for name, key in keys.items()} == before
    database.close()


def test_deltas_that_nobody_absorbs_do_not_pile_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_DELTAS", 10)
    database = Database(database_url)
    writer = StoreWriter(database)
    for _ in range(40):
        writer.apply(make_run(make_execution("etl")))
    assert database.look(rows.waiting_deltas) <= 12
    by_code = database.look(lambda c: rows.current_series(c, key_of(everything("etl", 1))))[""].by_code
    assert by_code["started"].value == 40
    database.close()


def test_an_older_database_counts_what_it_has(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    for _ in range(3):
        writer.apply(events := everything("etl", time.time_ns()))
    key = key_of(events)
    before = summary(database.look(lambda c: rows.current_series(c, key)))
    # What had failed before there were failure groups is none of their failures.
    before = {key: value for key, value in before.items() if not key[1].startswith("failures")}
    database.run(lambda c: downgrade(c, "0007"))
    database.close()
    database = Database(any_database_url)
    current = database.look(lambda c: rows.current_series(c, key))
    after = summary(current)
    assert after == before
    # They were shown before the upgrade, or nobody waits for their zeros.
    assert all(series.born for step in current.values() for series in step.by_code.values() if series.value)
    assert database.look(lambda c: c.execute(select(series_deltas.c.id)).all()) != []  # Every workflow is announced.
    upgrade_is_whole = database.look(lambda c: differing(current, recounted(c, key) or {}))
    assert upgrade_is_whole == []
    database.close()


def test_an_execution_of_spans_that_ended_and_runs_again_is_counted_once(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    events = everything("etl", time.time_ns())
    key, ids = key_of(events), {execution_of(events).execution_id}

    def replaced(events: list[Event], *, is_settled: bool) -> object:
        unsettled = frozenset[str]() if is_settled else frozenset(ids)
        writer.run(lambda c: writer.replace(c, events, known=ids, unsettled=unsettled))
        return summary(database.look(lambda c: rows.current_series(c, key))).get(("", "started"), 0)

    # Its root had ended, then a step came that still runs; then both ended, and a late span comes.
    assert replaced(events, is_settled=False) == 0
    assert replaced(events[:-1], is_settled=False) == 0
    assert database.look(running)[key] == (1, 0, events[0].time_ns, 0)
    assert replaced(events, is_settled=True) == 1
    assert replaced(events, is_settled=True) == 1
    current = database.look(lambda c: rows.current_series(c, key))
    assert database.look(lambda c: differing(current, recounted(c, key) or {})) == []
    database.close()


def test_an_upgrade_after_archiving_counts_what_is_left_and_is_no_difference_for_ever(
    database_url: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    database = Database(database_url)
    writer = StoreWriter(database)
    for _ in range(2):
        writer.apply(everything("etl", time.time_ns()))
    archiving.archive(database, time.time_ns() + 2 * 86_400 * NS, tmp_path / "archive")
    writer.apply(events := everything("etl", time.time_ns()))
    writer.apply(given_up(lost := everything("etl", time.time_ns())))
    key = key_of(events)
    database.run(lambda c: downgrade(c, "0007"))
    database.close()
    database = Database(database_url)
    writer = StoreWriter(database)

    def check() -> dict[tuple[str, str], object]:
        checked = database.look(lambda c: check_series(c, key, execution_of(events).execution_id))
        assert checked.wrong == []
        assert "archived" in checked.reason
        assert checked.steps == 3
        return summary(checked.current)

    before = check()
    assert before["", "execution\x1ffailed"] == (1, 100)
    assert before["", "execution\x1flost"] == (1, 100)
    # What is counted can be taken back, and later ones are added.
    writer.apply([lost[-1]])
    writer.apply(everything("etl", time.time_ns()))
    after = check()
    assert after["", "execution\x1ffailed"] == (3, 300)
    assert after["", "execution\x1flost"] == (0, 0)
    assert after["", "started"] == 3
    database.close()


def test_sums_are_exact_beyond_any_integer_of_the_database(database_url: str) -> None:
    values = distribution([2**63, 2**63, 2**64 + 1])
    assert values.total == 2**65 + 1
    again = Distribution.from_row(values.to_row())
    assert again.total == 2**65 + 1
    series = StepSeries()
    list(series.add({"critical": str(2**70), "retries": 1}, 0.0))
    list(series.add({"critical": 5}, 0.0))
    assert StepSeries.decode(series.encode()).by_code["critical"].value == 2**70 + 5


def test_a_damaged_row_stops_nothing_else_and_is_counted_again(database_url: str) -> None:
    database = Database(database_url)
    writer = StoreWriter(database)
    for name in ("etl", "other"):
        for _ in range(2):
            writer.apply(everything(name, time.time_ns()))
    database.run(lambda c: rows.absorb(c))
    key, other = key_of(everything("etl", 1)), key_of(everything("other", 1))
    is_b = (workflow_series.c.workflow_id == key[1]) & (workflow_series.c.step == "b")
    database.run(lambda c: c.execute(update(workflow_series).where(is_b).values(series=b"no")))
    seen = {(workflow, step) for workflow, step, _ in database.look(lambda c: list(rows.stored_series(c)))}
    assert (key, "a") in seen
    assert (key, "b") not in seen
    assert (other, "b") in seen
    with pytest.raises(ValueError, match="'b' are damaged"):
        database.look(lambda c: rows.current_series(c, key))
    assert database.run(lambda c: recount_one(c, key)) > 0
    current = database.look(lambda c: rows.current_series(c, key))
    assert current["b"].by_code["attempts\x1ffailed"].value == 2
    assert current["b"].by_code["attempts\x1ffailed"].born
    assert database.run(lambda c: recount_one(c, other)) == 0
    database.close()
