"""What steps used of the machine, from their rows to totals, views and back through an upgrade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import update
from tests.conftest import make_execution, make_step

from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    StepStatus,
)
from tachograph.identity import ExecutionRef, workspace_id
from tachograph.resources import Resources, UseTotals
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.store import executions
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import read, rebuild
from tachograph_exporter.store.schema import store_state
from tachograph_exporter.store.series.recount import differing, recounted
from tachograph_exporter.store.series.rows import current_series
from tachograph_exporter.store.state import RESOURCES_SINCE
from tachograph_exporter.store.totals import StepTotals, Totals, WorkflowTotals
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.comparison import compare_with_baseline
from tachograph_exporter.views.metrics import metrics_summary
from tachograph_exporter.views.timeline import build_timeline

MIB = 1 << 20
START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
FIRST = Resources(1.0, 50 * MIB, 1, 2, gc_seconds=0.25)
SECOND_USE = Resources(2.0, 70 * MIB, 10, 20, voluntary_switches=3)
SHARED = Resources(0.5, 900 * MIB, gc_seconds=9.0, is_shared=True)
INNER = Resources(0.25, 80 * MIB)


def events_of(execution: ExecutionRef, start_ns: int = START) -> Sequence[Event]:
    """A run: a step with two attempts and a step inside it, one that shared its process, one that nothing measured."""
    twice, shared = (
        StepAttempts(make_step(execution, "twice"), start_ns),
        StepAttempts(make_step(execution, "shared"), start_ns),
    )
    inner = StepAttempts(make_step(execution, "inner", parent_step_id=twice.step.step_id), start_ns)
    unknown = StepAttempts(make_step(execution, "unknown"), start_ns)
    end_ns = start_ns + 10 * SECOND
    failure = Failure("ValueError", "no")
    return [
        ExecutionStarted(execution=execution, time_ns=start_ns),
        twice.started(start_ns),
        shared.started(start_ns),
        inner.started(start_ns),
        unknown.started(start_ns),
        twice.retrying(start_ns + 2 * SECOND, StepStatus.FAILED, 0, failure, FIRST),
        twice.started(start_ns + 2 * SECOND),
        inner.finished(start_ns + 3 * SECOND, StepStatus.COMPLETED, resources=INNER),
        shared.finished(start_ns + 3 * SECOND, StepStatus.COMPLETED, resources=SHARED),
        unknown.finished(start_ns + 3 * SECOND, StepStatus.COMPLETED),
        twice.finished(start_ns + 6 * SECOND, StepStatus.COMPLETED, resources=SECOND_USE),
        ExecutionFinished(
            execution=execution, time_ns=end_ns, status=ExecutionStatus.COMPLETED, started_ns=start_ns, step_count=4
        ),
    ]  # fmt: skip


def key_of(execution: ExecutionRef) -> tuple[str, str]:
    return workspace_id("default"), execution.workflow_id


def totals_of(database: Database, execution: ExecutionRef) -> WorkflowTotals:
    return database.look(lambda c: read.read(c, key_of(execution), START - SECOND, START + 3600 * SECOND))


def run_of(database: Database, execution: ExecutionRef) -> Any:
    return database.look(lambda c: executions.run(c, workspace_id("default"), execution.execution_id))


def test_every_view_says_the_same_of_what_steps_used(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer, execution = StoreWriter(database), make_execution()
    writer.apply(events_of(execution))
    totals = totals_of(database, execution)
    use = totals.steps["twice"].uses["completed"]
    assert (use.cpu_count, use.cpu_ns, use.run_ns) == (1, 3 * SECOND, 6 * SECOND)
    assert (use.memory_count, use.memory_max, use.read_bytes, use.written_bytes) == (1, 70 * MIB, 11, 22)
    assert use.gc_ns == SECOND // 4
    shared = totals.steps["shared"].uses["completed"]
    assert (shared.cpu_ns, shared.memory_count, shared.gc_ns) == (SECOND // 2, 0, 0)
    assert not totals.steps["unknown"].uses
    # The row of the rollup is, to the byte, what counting again gives; so are the series.
    assert database.run(lambda c: rebuild.rebuild_one(c, key_of(execution), write=False)) == 0
    due = database.look(lambda c: recounted(c, key_of(execution)))
    assert due is not None
    assert differing(database.look(lambda c: current_series(c, key_of(execution))), due) == []
    assert due["twice"]["cpu"].count == 2  # type: ignore[union-attr]
    assert "memory" not in due["shared"]

    run = run_of(database, execution)
    timeline = build_timeline(run, now_ns=START + 20 * SECOND)
    entries = {entry.step_name: entry for entry in timeline.step_timeline}
    twice = entries["twice"].resources
    assert twice is not None
    assert (twice.cpu_seconds, twice.busy_seconds, twice.waiting_seconds) == (3.0, 3.0, 3.0)
    assert (twice.peak_memory_bytes, twice.read_bytes, twice.written_bytes) == (70 * MIB, 11, 22)
    assert [a.resources.cpu_seconds for a in entries["twice"].attempts if a.resources] == [1.0, 2.0]
    assert entries["unknown"].resources is None
    assert timeline.resources is not None
    # The step inside is part of the one around it; the memory of the shared process was there, whoever needed it.
    assert (timeline.resources.cpu_seconds, timeline.resources.is_partial) == (3.5, True)
    assert timeline.resources.peak_memory_bytes == 900 * MIB

    (summary,) = [s for s in metrics_summary("id", "etl", totals, 0).steps if s.step_name == "twice"]
    assert summary.resources is not None
    assert (summary.resources.cpu_seconds, summary.resources.busy_share) == (3.0, 0.5)
    compared = {s.step_name: s for s in compare_with_baseline(run, totals, START, START + SECOND).steps}
    assert (compared["twice"].cpu_seconds, compared["twice"].reference_cpu_seconds) == (3.0, 3.0)
    assert (compared["twice"].peak_memory_bytes, compared["twice"].reference_peak_memory_bytes) == (70 * MIB, 70 * MIB)
    twice_compared = compared["twice"]
    assert (twice_compared.read_bytes, twice_compared.written_bytes) == (11, 22)
    assert (twice_compared.reference_read_bytes, twice_compared.reference_written_bytes) == (11, 22)
    assert (compared["shared"].peak_memory_bytes, compared["shared"].cpu_seconds) == (None, 0.5)
    assert compared["unknown"].cpu_seconds is compared["unknown"].reference_cpu_seconds is None
    database.close()


def test_what_ended_before_the_upgrade_is_not_counted_and_not_missed(any_database_url: str) -> None:
    database = Database(any_database_url)
    since = str(START + 20 * SECOND)
    database.run(
        lambda c: c.execute(update(store_state).where(store_state.c.name == RESOURCES_SINCE).values(value=since))
    )
    writer, before, after = StoreWriter(database), make_execution(), make_execution()
    writer.apply(events_of(before))
    assert not any(step.uses for step in totals_of(database, before).steps.values())
    writer.apply(events_of(after, START + 30 * SECOND))
    assert totals_of(database, after).steps["twice"].uses["completed"].cpu_count == 1
    assert database.run(lambda c: rebuild.rebuild_one(c, key_of(before), write=False)) == 0
    due = database.look(lambda c: recounted(c, key_of(before)))
    assert due is not None
    assert differing(database.look(lambda c: current_series(c, key_of(before))), due) == []
    database.close()


def test_rows_of_earlier_versions_are_read_and_nothing_is_added_to_those_without() -> None:
    totals = WorkflowTotals({}, {"a": StepTotals({"completed": Totals()}, {})})
    encoded = totals.encode()[1]
    (row,) = msgspec.msgpack.decode(encoded).values()
    assert len(row) == 2
    assert WorkflowTotals.decode(totals.encode()[0], encoded).steps["a"].uses == {}
    totals.steps["a"].use("failed").add(UseTotals(1, 5))
    again = WorkflowTotals.decode(*totals.encode())
    assert again.steps["a"].uses == {"failed": UseTotals(1, 5)}
    assert again.encode() == totals.encode()
