"""Occurrences of failures follow from the rows of their execution alone, and each failure is counted where it began."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from tests.conftest import make_execution, make_step

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepFinished,
    StepRetrying,
    StepStarted,
    StepStatus,
)
from tachograph.identity import ExecutionRef, StepRef, workspace_id
from tachograph_exporter.store import archiving
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.failure_groups import backfill, groups
from tachograph_exporter.store.failure_groups.failing import ATTEMPT, EXECUTION, STEP
from tachograph_exporter.store.migrations import downgrade
from tachograph_exporter.store.removal import remove_workflow
from tachograph_exporter.store.schema import failure_groups, failure_occurrences
from tachograph_exporter.store.series import rows as series_rows
from tachograph_exporter.store.series.recount import differing, recounted
from tachograph_exporter.store.writer import StoreWriter

DAY_NS = 86_400 * 10**9
STACK = 'Traceback (most recent call last):\n  File "/srv/app/etl.py", line {}, in {}\n    x\nValueError: no'


def boom(cause: int, noise: object = 17) -> Failure:
    """A failure of one of several causes, which differ in type, message or stack alone."""
    kind = "ValueError" if cause % 2 else "KeyError"
    return Failure(
        kind, f"record {noise} of source {'abcdefg'[cause // 4]} is bad", STACK.format(cause, "fg"[cause // 2 % 2])
    )


def failed_run(run: ExecutionRef, failure: Failure, at: int, *, retried: Failure | None = None) -> list[Event]:
    """A run as the executor records it: its step fails, after an attempt that also did if there is ``retried``."""
    step = make_step(run, "load")
    events: list[Event] = [ExecutionStarted(execution=run, time_ns=at, step_count=1, process="h1/b.n/1/2")]
    attempt = 1
    if retried is not None:
        attempt = 2
        events.append(
            StepRetrying(step=step, time_ns=at + 5, attempt=1, status=StepStatus.FAILED, started_ns=at + 1, delay_ns=1,
                         failure=retried)
        )  # fmt: skip
    return [
        *events,
        StepStarted(step=step, time_ns=at + 6, attempt=attempt),
        StepFinished(step=step, time_ns=at + 9, status=StepStatus.FAILED, attempt=attempt, started_ns=at + 1,
                     attempt_started_ns=at + 6, failure=failure),
        ExecutionFinished(execution=run, time_ns=at + 10, status=ExecutionStatus.FAILED, started_ns=at, step_count=1,
                          failed_step_count=1, failure=Failure(failure.type, f'step "load": {failure.message}')),
    ]  # fmt: skip


def nested_run(run: ExecutionRef, at: int, failure: Failure, outer: Failure) -> list[Event]:
    """A run as decorators record it: an exception goes from a step through the one around it, and ends the run."""
    around = make_step(run, "around")
    inner = make_step(run, "inner", parent_step_id=around.step_id)
    return [
        ExecutionStarted(execution=run, time_ns=at, step_count=2),
        StepFinished(step=inner, time_ns=at + 3, status=StepStatus.FAILED, attempt=1, started_ns=at + 1,
                     attempt_started_ns=at + 1, failure=failure),
        StepFinished(step=around, time_ns=at + 4, status=StepStatus.FAILED, attempt=1, started_ns=at + 1,
                     attempt_started_ns=at + 1, failure=outer),
        ExecutionFinished(execution=run, time_ns=at + 5, status=ExecutionStatus.FAILED, started_ns=at, step_count=2,
                          failed_step_count=2, failure=outer),
    ]  # fmt: skip


def given_up(step: StepRef, at: int) -> list[Event]:
    lost = Failure("Lost", "its process died: no sign of life since")
    run = step.execution
    return [
        StepFinished(step=step, time_ns=at, status=StepStatus.LOST, attempt=1, started_ns=at - 1,
                     attempt_started_ns=at - 1, failure=lost),
        ExecutionFinished(execution=run, time_ns=at, status=ExecutionStatus.LOST, started_ns=at - 1, step_count=1,
                          failure=lost),
    ]  # fmt: skip


def ended_well(step: StepRef, at: int) -> list[Event]:
    return [
        StepFinished(step=step, time_ns=at, status=StepStatus.COMPLETED, attempt=1, started_ns=at - 9,
                     attempt_started_ns=at - 9),
        ExecutionFinished(execution=step.execution, time_ns=at, status=ExecutionStatus.COMPLETED, started_ns=at - 9,
                          step_count=1),
    ]  # fmt: skip


def stored(database: Database) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in database.look(lambda c: c.execute(select(failure_occurrences)).all()))


def kept_groups(database: Database) -> dict[str, Any]:
    rows = database.look(lambda c: c.execute(select(failure_groups)).all())
    return {row.group_id: row for row in rows}


def of_series(database: Database, workflow_id: str) -> dict[str, int]:
    """The counters of groups as ``/metrics`` shows them, by group."""
    by_step = database.look(lambda c: series_rows.current_series(c, (workspace_id("default"), workflow_id)))
    by_code = by_step[""].by_code if "" in by_step else {}
    values = {
        code.partition("\x1f")[2]: series.value if series.true is None else series.true
        for code, series in by_code.items()
        if code.startswith("failures\x1f")
    }
    return {group: int(str(value)) for group, value in values.items() if value}


def assert_series_are_right(database: Database, workflow_id: str) -> None:
    key = (workspace_id("default"), workflow_id)
    assert database.look(lambda c: differing(series_rows.current_series(c, key), recounted(c, key) or {})) == []
    began: Counter[str] = Counter()
    columns = [column.name for column in failure_occurrences.columns]
    for row in stored(database):
        values = dict(zip(columns, row, strict=True))
        if values["is_origin"] and values["workflow_id"] == workflow_id:
            began[values["group_id"]] += values["count"]
    assert of_series(database, workflow_id) == began


def test_a_thousand_failures_of_seven_causes_make_seven_groups(any_database_url: str) -> None:
    now, runs = time.time_ns(), [make_execution("etl") for _ in range(1_000)]
    causes = [(1, None), (2, None), (3, None), (4, None), (5, None), (6, None), (8, None)]
    with closing(Database(any_database_url)) as database:
        writer = StoreWriter(database)
        for i in range(0, 1_000, 50):
            writer.apply(
                [e for j in range(i, i + 50) for e in failed_run(runs[j], boom(causes[j % 7][0], j * 7919), now + j)]
            )
        rows = database.look(lambda c: c.execute(select(failure_occurrences)).all())
        steps = Counter(row.group_id for row in rows if row.kind == STEP)
        assert sorted(steps.values()) == [142] + [143] * 6
        assert len(kept_groups(database)) == 7
        # The run failed because of its step, so it is in the same group, and it is no further failure.
        assert Counter(row.group_id for row in rows if row.kind == EXECUTION) == steps
        assert not any(row.is_origin for row in rows if row.kind == EXECUTION)
        assert of_series(database, runs[0].workflow_id) == steps


RUN = make_execution("etl")
LOST = make_step(make_execution("etl"), "load")
NESTED = make_execution("etl")
EVENTS: list[Event] = [
    *failed_run(RUN, boom(1), 10**18, retried=boom(2)),
    *nested_run(NESTED, 10**18, boom(3), Failure(boom(3).type, boom(3).message, STACK.format(9, "around"))),
    ExecutionStarted(execution=LOST.execution, time_ns=10**18),
    *given_up(LOST, 10**18 + 50),
    *ended_well(LOST, 10**18 + 60),
]


def summary(database: Database) -> set[tuple[str, str, int, int, int, str]]:
    rows = database.look(lambda c: c.execute(select(failure_occurrences)).all())
    templates = {group: row.template for group, row in kept_groups(database).items()}
    return {(row.execution_id, row.step, row.attempt, row.kind, row.is_origin, templates[row.group_id]) for row in rows}


def test_a_failure_counts_where_it_began(any_database_url: str) -> None:
    bad = "record <*> of source a is bad"
    with closing(Database(any_database_url)) as database:
        StoreWriter(database).apply(EVENTS)
        assert summary(database) == {
            (RUN.execution_id, "load", 1, ATTEMPT, 1, bad),
            (RUN.execution_id, "load", 2, STEP, 1, bad),
            (RUN.execution_id, "", 0, EXECUTION, 0, bad),
            (NESTED.execution_id, "inner", 1, STEP, 1, bad),
            (NESTED.execution_id, "around", 1, STEP, 0, bad),
            (NESTED.execution_id, "", 0, EXECUTION, 0, bad),
        }
        rows = database.look(lambda c: c.execute(select(failure_occurrences)).all())
        # The step around it and the run are in the group of the step inside, though their stacks are longer.
        assert len({row.group_id for row in rows if row.execution_id == NESTED.execution_id}) == 1
        assert len({row.group_id for row in rows if row.execution_id == RUN.execution_id}) == 2
        assert_series_are_right(database, RUN.workflow_id)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_repetition_and_grouping_of_events_makes_the_same_occurrences(
    data: st.DataObject, tmp_path: Path, empty_database: Path
) -> None:
    events = EVENTS + data.draw(st.lists(st.sampled_from(EVENTS), max_size=6))
    data.draw(st.randoms(use_true_random=False)).shuffle(events)
    path = tmp_path / f"{random.getrandbits(64):x}.db"
    path.write_bytes(empty_database.read_bytes())
    with closing(Database(f"sqlite:///{path}")) as database:
        writer = StoreWriter(database)
        while events:
            size = data.draw(st.integers(1, len(events)))
            writer.apply(events[:size])
            events = events[size:]
        expected = expected_rows(tmp_path, empty_database)
        assert stored(database) == expected
        assert_series_are_right(database, RUN.workflow_id)


_EXPECTED: list[list[tuple[Any, ...]]] = []


def expected_rows(tmp_path: Path, empty_database: Path) -> list[tuple[Any, ...]]:
    if not _EXPECTED:
        path = tmp_path / "expected.db"
        path.write_bytes(empty_database.read_bytes())
        with closing(Database(f"sqlite:///{path}")) as database:
            StoreWriter(database).apply(EVENTS)
            _EXPECTED.append(stored(database))
    return _EXPECTED[0]


def test_what_is_assembled_again_replaces_its_failures(any_database_url: str) -> None:
    """A trace whose later spans change a status, or say more of an error."""
    run, now = make_execution("etl"), time.time_ns()
    with closing(Database(any_database_url)) as database:
        writer = StoreWriter(database)

        def replaced(events: Sequence[Event], known: set[str]) -> None:
            writer.run(lambda c: writer.replace(c, events, known=known))

        replaced(failed_run(run, Failure("Error", "the span gives no reason"), now), set())
        (first,) = {row[5] for row in stored(database)}
        replaced(failed_run(run, boom(1), now), {run.execution_id})
        (second,) = {row[5] for row in stored(database)}
        assert first != second
        assert_series_are_right(database, run.workflow_id)
        step = make_step(run, "load")
        replaced([ExecutionStarted(execution=run, time_ns=now), *ended_well(step, now + 9)], {run.execution_id})
        assert stored(database) == []
        assert of_series(database, run.workflow_id) == {}
        # Groups that nothing belongs to any more are removed, after a while.
        assert len(kept_groups(database)) == 2
        database.run(lambda c: groups.prune(c, now + 2 * 3_600 * 10**9))
        assert kept_groups(database) == {}


def test_two_writers_count_exactly(any_database_url: str) -> None:
    now = time.time_ns()
    with closing(Database(any_database_url)) as database, closing(Database(any_database_url)) as other:
        runs = [make_execution("etl") for _ in range(40)]

        def write(side: Database, part: Sequence[ExecutionRef]) -> None:
            writer = StoreWriter(side)
            for run in part:
                events = failed_run(run, boom(1, run.execution_id), now, retried=boom(2))
                writer.apply(events[:2])
                writer.apply(events[2:])

        # Both have some of the same runs: what was sent twice counts once.
        threads = [threading.Thread(target=write, args=args) for args in ((database, runs[:30]), (other, runs[10:]))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(row[3] for row in stored(database)) == {ATTEMPT: 40, STEP: 40, EXECUTION: 40}
        assert_series_are_right(database, runs[0].workflow_id)
        assert sorted(of_series(database, runs[0].workflow_id).values()) == [40, 40]


def test_deleting_runs_and_workflows_takes_their_failures_along(any_database_url: str, tmp_path: Path) -> None:
    now = time.time_ns()
    old, new, other = (make_execution(name) for name in ("etl", "etl", "other"))
    with closing(Database(any_database_url)) as database:
        writer = StoreWriter(database)
        writer.apply(failed_run(old, boom(1), now - 40 * DAY_NS))
        writer.apply(failed_run(new, boom(1), now))
        writer.apply(failed_run(other, boom(2), now))
        archiving.archive(database, now - 30 * DAY_NS, None)
        assert {row[0] for row in stored(database)} == {new.execution_id, other.execution_id}
        seen = {row.first_ns for row in kept_groups(database).values()}
        assert seen == {now - 40 * DAY_NS + 9, None}  # Its group remembers since when there is this failure.
        database.run(lambda c: remove_workflow(c, workspace_id("default"), other.workflow_id))
        assert {row[0] for row in stored(database)} == {new.execution_id}
        assert len(kept_groups(database)) == 1
        # What is archived stays readable, and so do its failures, for a while.
        archiving.archive(database, now + 2 * DAY_NS, tmp_path / "archive")
        assert {row[0] for row in stored(database)} == {new.execution_id}
        database.run(lambda c: groups.prune(c, now + 91 * DAY_NS))
        assert stored(database) == []


def test_an_upgrade_groups_what_failed_before(any_database_url: str) -> None:
    now = time.time_ns()
    runs = [make_execution("etl") for _ in range(5)]
    with closing(Database(any_database_url)) as database:
        writer = StoreWriter(database)
        for run in runs:
            writer.apply(failed_run(run, boom(1), now, retried=boom(2)))
        before = stored(database)
        database.run(lambda c: downgrade(c, "0021"))
    with closing(Database(any_database_url)) as database:
        writer = StoreWriter(database)
        assert stored(database) == []
        assert not database.look(backfill.is_complete)
        writer.apply(failed_run(later := make_execution("etl"), boom(1), time.time_ns()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backfill, "_EXECUTIONS", 2)
            for _ in range(3):
                assert database.run(backfill.group_some)
            assert not database.run(backfill.group_some)
        assert database.look(backfill.is_complete)
        assert [row for row in stored(database) if row[0] != later.execution_id] == before
        # Nothing that failed before the upgrade looks as if it failed now.
        assert list(of_series(database, later.workflow_id).values()) == [1]
        key = (workspace_id("default"), later.workflow_id)
        assert database.look(lambda c: differing(series_rows.current_series(c, key), recounted(c, key) or {})) == []


def test_a_new_database_has_nothing_to_group(database_url: str) -> None:
    with closing(Database(database_url)) as database:
        assert database.look(backfill.is_complete)


def test_causes_beyond_the_limit_share_a_group(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MAX_GROUPS", 3)
    with closing(Database(database_url)) as database:
        writer = StoreWriter(database)
        for cause in range(6):
            writer.apply(failed_run(run := make_execution("etl"), boom(cause), time.time_ns()))
        assert len(kept_groups(database)) == 4
        counts = of_series(database, run.workflow_id)
        assert counts.pop(groups.OTHER) == 3
        assert list(counts.values()) == [1, 1, 1]


def test_what_differs_from_the_rows_is_put_right_when_the_run_ends(database_url: str) -> None:
    run, now = make_execution("etl"), time.time_ns()
    events = failed_run(run, boom(1), now, retried=boom(2))
    with closing(Database(database_url)) as database:
        writer = StoreWriter(database)
        writer.apply(events)
        due = stored(database)
        database.run(lambda c: c.execute(delete(failure_occurrences)))
        # As if they had been written by a version without groups; a repeated event is enough.
        writer.apply(events[-1:])
        assert stored(database) == due
        database.run(lambda c: c.execute(update(failure_occurrences).values(is_origin=0)))
        writer.apply(events[-1:])
        assert stored(database) == due
