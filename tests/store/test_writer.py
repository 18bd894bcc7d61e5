"""Events give the same rows in any order, grouping and number of repetitions."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, inspect, select, text
from tests.conftest import make_execution, make_step

from tachograph.clock import NS
from tachograph.errors import BadDatabaseURL, CannotOpen, NewerSchema, StoreUnavailable
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    PathStep,
    SkipReason,
    StepCost,
    StepFinished,
    StepLogged,
    StepMeasured,
    StepReady,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import workspace_id
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import partitions
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.database import Database, prepare
from tachograph_exporter.store.merging import execution_rank, step_rank
from tachograph_exporter.store.migrations import downgrade, upgrade
from tachograph_exporter.store.schema import HEAD, metadata, workflow_rollups
from tachograph_exporter.store.steps import STEPS
from tachograph_exporter.store.writer import StoreWriter

TABLES = ("workflow_executions", "workflow_step_executions", "workflow_step_attempts", "workflow_step_reports")


def a_run() -> list[Event]:
    """A run with queueing, a retry, a skip, reports and a failure."""
    run = make_execution("w")
    a, b, c = make_step(run, "a"), make_step(run, "b"), make_step(run, "c")
    boom = Failure("ValueError", "boom", "stack")
    return [
        ExecutionQueued(execution=run, time_ns=5, inputs="{}", process="p"),
        ExecutionStarted(execution=run, time_ns=10, step_count=3, inputs="{}", process="p"),
        StepReady(step=a, time_ns=11),
        StepStarted(step=a, time_ns=12, dependency_ns=1, queue_ns=1, inputs='{"x":1}'),
        StepMeasured(step=a, time_ns=13, sequence=1, name="rows", value=5.0),
        StepLogged(step=a, time_ns=14, sequence=2, message="hello"),
        StepRetrying(step=a, time_ns=20, attempt=1, status=StepStatus.FAILED, started_ns=12, delay_ns=5, failure=boom,
                     dependency_ns=1, queue_ns=1),
        StepStarted(step=a, time_ns=30, attempt=2, queue_ns=2, backoff_ns=8, inputs='{"x":1}'),
        StepCost(step=a, time_ns=31, sequence=3, attempt=2, usd=0.5, tokens_in=1, model="m"),
        StepFinished(step=a, time_ns=40, status=StepStatus.COMPLETED, attempt=2, started_ns=12, attempt_started_ns=30,
                     dependency_ns=1, queue_ns=3, backoff_ns=8, run_ns=18, last_queue_ns=2, last_backoff_ns=8,
                     inputs='{"x":1}', output="7"),
        StepReady(step=b, time_ns=41),
        StepStarted(step=b, time_ns=42, dependency_ns=31, queue_ns=1),
        StepFinished(step=b, time_ns=50, status=StepStatus.FAILED, attempt=1, started_ns=42, attempt_started_ns=42,
                     dependency_ns=31, queue_ns=1, run_ns=8, last_queue_ns=1, failure=boom),
        StepSkipped(step=c, time_ns=51, reason=SkipReason.UPSTREAM_FAILED),
        Heartbeat(execution=run, time_ns=45),
        ExecutionFinished(execution=run, time_ns=60, status=ExecutionStatus.FAILED, started_ns=10, step_count=3,
                          completed_step_count=1, failed_step_count=1, skipped_step_count=1, work_ns=26, failure=boom,
                          critical_path=(PathStep(b.step_id, "b", 8),), inputs="{}"),
    ]  # fmt: skip


RUN = a_run()


def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: sorted(tuple(row) for row in database.look(lambda c, n=name: c.execute(select(metadata.tables[n])).all()))  # type: ignore[misc]
        for name in TABLES
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('db')}/x.db")
    StoreWriter(database).apply(RUN)
    rows_by_table = rows(database)
    database.close()
    return rows_by_table


def test_a_run_in_order_makes_these_rows(expected: dict[str, list[tuple[Any, ...]]]) -> None:
    assert [len(expected[name]) for name in TABLES] == [1, 3, 2, 3]
    steps = {row[2]: row for row in expected["workflow_step_executions"]}
    columns = [column.name for column in metadata.tables["workflow_step_executions"].columns]
    a = dict(zip(columns, steps["a"], strict=True))
    assert (a["status"], a["attempt"], a["ready_ns"], a["started_ns"], a["finished_ns"]) == ("completed", 2, 11, 12, 40)
    assert (a["dependency_ns"], a["queue_ns"], a["backoff_ns"], a["run_ns"]) == (1, 3, 8, 18)
    assert dict(zip(columns, steps["b"], strict=True))["ready_ns"] == 41


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_repetition_and_grouping_makes_the_same_rows(
    data: st.DataObject, tmp_path: Path, empty_database: Path, expected: dict[str, list[tuple[Any, ...]]]
) -> None:
    events = list(RUN) + data.draw(st.lists(st.sampled_from(RUN), max_size=8))
    data.draw(st.randoms(use_true_random=False)).shuffle(events)
    path = shutil.copy(empty_database, tmp_path / f"{random.getrandbits(64):x}.db")
    # Hypothesis leaves an example by an exception, so the end of the test is not reached every time.
    with closing(Database(f"sqlite:///{path}")) as database:
        writer = StoreWriter(database)
        while events:
            size = data.draw(st.integers(1, len(events)))
            writer.apply(events[:size])
            events = events[size:]
        assert rows(database) == expected


@settings(max_examples=100, deadline=None)
@given(st.permutations(RUN))
def test_folding_in_memory_merges_as_the_database_does(events: Sequence[Event]) -> None:
    whole, other = Batch(), Batch()
    for event in RUN:
        whole.add(event)
    for event in events:
        other.add(event)
    assert other.steps == whole.steps
    assert other.executions == whole.executions
    assert other.attempts == whole.attempts
    assert Batch(events).steps == whole.steps


def test_a_terminal_state_is_never_moved_back_and_lost_yields_to_the_truth() -> None:
    outcomes = [s for s in StepStatus if s.is_terminal and s is not StepStatus.LOST]
    for outcome in outcomes:
        assert step_rank(StepStatus.RUNNING, 10_000) < step_rank(StepStatus.LOST, 1) < step_rank(outcome, 1)
    assert step_rank(StepStatus.RUNNING, 2) > step_rank(StepStatus.RETRYING, 1) > step_rank(StepStatus.RUNNING, 1)
    assert execution_rank(ExecutionStatus.RUNNING) < execution_rank(ExecutionStatus.LOST)
    assert execution_rank(ExecutionStatus.LOST) < execution_rank(ExecutionStatus.COMPLETED)
    ranks = [execution_rank(s) for s in ExecutionStatus]
    assert len(set(ranks)) == len(ranks)


def test_a_locked_database_delays_events_and_loses_none(tmp_path: Path) -> None:
    from tachograph_exporter.store import database as module

    url = f"sqlite:///{tmp_path}/x.db"
    database = Database(url)
    writer = StoreWriter(database)
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUSY_SECONDS", 0.05)
        quick = Database(url)
        with pytest.raises(StoreUnavailable):
            StoreWriter(quick).apply(RUN)
        quick.close()
    timer = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    timer.start()
    writer.apply(RUN)
    timer.join()
    other.close()
    assert len(rows(database)["workflow_step_executions"]) == 3
    database.close()


def test_a_full_disk_is_reported_as_unavailable_and_committed_rows_stay(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    writer = StoreWriter(database)
    writer.apply(RUN)
    pages = database.run(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    assert database.engine is not None
    database.engine.dispose()
    # SQLite's own limit gives the same error as a full disk: "database or disk is full".
    from sqlalchemy import event

    @event.listens_for(database.engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    run = make_execution("big")
    big = [
        StepFinished(step=make_step(run, f"s{i}"), time_ns=9, status=StepStatus.COMPLETED, attempt=1, started_ns=1,
                     attempt_started_ns=1, output='"' + "x" * 4000 + '"')
        for i in range(200)
    ]  # fmt: skip
    with pytest.raises(StoreUnavailable, match="full"):
        writer.apply(big)
    assert len(rows(database)["workflow_step_executions"]) == 3
    database.close()


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("nonsense", BadDatabaseURL, "expected sqlite"),
        ("mysql://x/y", BadDatabaseURL, "no support"),
        ("sqlite://", BadDatabaseURL, "needs a file"),
        ("sqlite:///:memory:", BadDatabaseURL, "needs a file"),
        ("sqlite:////no/such/dir/x.db", CannotOpen, "no directory"),
    ],
)
def test_a_bad_url_says_what_is_expected(url: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Database(url)


def test_a_file_that_is_no_database_and_one_from_the_future_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is no database, " * 100)
    with pytest.raises(CannotOpen, match="not a database"):
        Database(f"sqlite:///{tmp_path}/x.db")
    database = Database(f"sqlite:///{tmp_path}/y.db")
    database.run(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(NewerSchema, match="upgrade Tachograph"):
        Database(f"sqlite:///{tmp_path}/y.db")


# Alembic cannot compare indexes of expressions.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_migrations_lead_to_the_schema_in_the_code_and_back_with_data_in_place(any_database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = Database(any_database_url)
    is_sqlite = database.is_sqlite
    assert database.look(lambda c: MigrationContext.configure(c).get_current_revision()) == HEAD
    differences = database.look(lambda c: compare_metadata(MigrationContext.configure(c), metadata))
    # Alembic cannot compare descending index columns, and partitions are not in the metadata.
    indexes = ("ix_executions", "ix_archived", "ix_spans", "ix_traces")
    ours = [d for d in differences if not any(name in str(d) for name in indexes)]
    assert [d for d in ours if d[0] != "remove_table" and "workflow_" not in str(d)] == []
    StoreWriter(database).apply(RUN)
    before, counted = rows(database), database.look(stored_rollups)
    assert counted
    database.run(lambda c: downgrade(c, "0001"))
    assert database.look(steps_as_text) == [repr(row[:-9]) for row in before["workflow_step_executions"]]
    assert not database.look(lambda c: inspect(c).has_table("workflow_rollups"))
    database.run(prepare)
    after = rows(database)
    # These did not exist in that version; everything else is as it was.
    new = {
        "workflow_executions": ("critical_path", "parent_execution_id", "parent_step_id", "number"),
        "workflow_step_executions": (
            "child_execution_id",
            "dependency_count",
            "unaccounted_ns",
            "folded",
            "folded_count",
            "map_index",
            "resources",
            "scheduled_ns",
            "asked_ns",
        ),
        "workflow_step_attempts": ("error_stack", "resources"),
    }  # fmt: skip
    for table, names in new.items():
        assert tuple(column.name for column in metadata.tables[table].columns)[-len(names) :] == names
        assert [row[: -len(names)] for row in after.pop(table)] == [row[: -len(names)] for row in before.pop(table)]
    assert after == before
    assert database.look(stored_rollups) == counted
    database.run(lambda c: downgrade(c, "base"))
    left = database.look(lambda c: inspect(c).get_table_names())
    assert left == ["alembic_version"]
    database.run(upgrade)
    StoreWriter(database).apply(RUN)
    assert len(rows(database)["workflow_executions"]) == 1
    assert is_sqlite or "workflow_executions_default" in database.look(lambda c: inspect(c).get_table_names())
    database.close()


def steps_as_text(connection: Connection) -> list[str]:
    return sorted(repr(tuple(row)) for row in connection.execute(text("SELECT * FROM workflow_step_executions")))


def stored_rollups(connection: Connection) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in connection.execute(select(workflow_rollups)))


def test_two_processes_may_create_the_same_database_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def create() -> None:
        try:
            Database(f"sqlite:///{tmp_path}/x.db").close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_timeline_reads_ranges_of_indexes_only(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    plans: list[str] = []
    statements = [execution_rows._EXECUTION_BY_ID, STEPS, execution_rows._ATTEMPTS, execution_rows._REPORTS]
    for statement in statements:
        text = str(statement.compile(dialect=database.dialect))
        parameters = tuple("x" for _ in range(text.count("?")))
        plan = database.look(lambda c, t=text, p=parameters: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {t}", p).all())  # type: ignore[misc]
        plans += [row[3] for row in plan]
    assert all("SEARCH" in plan and "SCAN" not in plan for plan in plans), plans
    database.close()


@pytest.mark.parametrize("are_together", [True, False])
def test_who_recorded_an_execution_owns_it_though_its_spans_came_first(
    any_database_url: str, *, are_together: bool
) -> None:
    """Or nobody would end a run of an engine's hooks: spans are waited for much longer."""
    database = Database(any_database_url)
    writer = StoreWriter(database)
    owners = ["otlp", "report/rq/30+604800", "otlp", None]
    try:
        for some in (owners, owners[::-1]):
            execution = make_execution("jobs")
            events = [
                ExecutionStarted(execution=execution, time_ns=NS + i, step_count=1, process=owner or "")
                for i, owner in enumerate(some)
            ]
            for batch in [events] if are_together else [[event] for event in events]:
                writer.apply(batch)
            key = execution.execution_id
            run = database.look(partial(execution_rows.run, workspace=workspace_id("default"), execution_id=key))
            assert run is not None
            assert run.execution.process == owners[1]
    finally:
        database.close()


def test_an_id_of_a_far_future_is_of_no_month() -> None:
    assert partitions.month_of_id("ffffffff-ffff-7fff-bfff-ffffffffffff") is None
    assert partitions.month_of_id("01a22cff-53zz-7a9e-a417-fdb1a04911a9") is None
    ends = {datetime(2026, 12, 1, tzinfo=UTC): (2026, 12), datetime(2026, 11, 30, 23, 59, 59, 999_000, UTC): (2026, 11)}
    for moment, month in ends.items():
        millis = f"{round(moment.timestamp() * 1000):012x}"
        assert partitions.month_of_id(f"{millis[:8]}-{millis[8:]}-7a9e-a417-fdb1a04911a9") == month
