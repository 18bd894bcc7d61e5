"""Executions that a dead process left open end as lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.conftest import make_execution, make_step

from tachograph import process
from tachograph.clock import NS
from tachograph.events import ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepReady, StepStarted
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import recovery
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.steps import steps_of
from tachograph_exporter.store.writer import StoreWriter


def dead_identity() -> str:
    """The identity of a process that has ended."""
    code = "from tachograph.process import identity; print(identity())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_process_is_known_by_more_than_its_pid() -> None:
    mine = process.identity()
    assert process.is_alive(mine) is True
    assert process.is_alive(dead_identity()) is False
    host, boot, pid, start = mine.rsplit("/", 3)
    assert process.is_alive(f"{host}/{boot}/{pid}/{int(start) + 1}") is False
    assert process.is_alive(f"elsewhere/{boot}/{pid}/{start}") is None
    assert process.is_alive(f"{host}/otherboot/{pid}/{start}") is None
    assert process.is_alive("") is None
    assert host == socket.gethostname()
    assert int(pid) == os.getpid()


def test_lost_runs_are_found_by_their_process_or_their_lease_and_closed_where_they_were_last_seen(
    database_url: str,
) -> None:
    database = Database(database_url)
    writer = StoreWriter(database)
    now = 1_000 * NS
    runs = {}
    for name, owner, seen in (
        ("dead", dead_identity(), 990),
        ("mine", process.identity(), 1),
        ("expired", "elsewhere/b/1/2", 100),
        ("leased", "elsewhere/b/1/2", 990),
    ):
        run = runs[name] = make_execution(name)
        a, b = make_step(run, "a"), make_step(run, "b")
        writer.apply(
            [
                ExecutionStarted(execution=run, time_ns=seen * NS, step_count=2, process=owner),
                StepReady(step=b, time_ns=seen * NS),
                StepStarted(step=a, time_ns=seen * NS + 5, dependency_ns=5),
            ]
        )
    lost_runs = database.look(lambda c: recovery.find_lost(c, now, lease_seconds=30))
    assert {lost.execution.workflow for lost in lost_runs} == {"dead", "expired"}
    for found in lost_runs:
        row = found.execution
        events = list(recovery.lost_events(*found))
        writer.apply(events)
        end = events[-1]
        assert isinstance(end, ExecutionFinished)
        assert end.execution == runs[row.workflow]
        assert end.status is ExecutionStatus.LOST
        (lost,) = [e for e in events if isinstance(e, StepFinished)]
        assert lost.time_ns == end.time_ns >= row.last_seen_ns
    assert database.look(lambda c: recovery.find_lost(c, now, lease_seconds=30)) == []
    steps = database.look(lambda c: steps_of(c, runs["dead"].execution_id))
    assert {row.name: row.status for row in steps} == {"a": "lost", "b": "skipped"}
    database.close()


def test_a_run_declared_lost_too_early_takes_its_real_outcome(database_url: str) -> None:
    database = Database(database_url)
    writer = StoreWriter(database)
    run = make_execution("w")
    lost = ExecutionFinished(execution=run, time_ns=20, status=ExecutionStatus.LOST, started_ns=10, step_count=0)
    real = ExecutionFinished(execution=run, time_ns=90, status=ExecutionStatus.COMPLETED, started_ns=10, step_count=0)
    writer.apply([lost])
    writer.apply([real])
    writer.apply([lost])
    from tachograph.identity import workspace_id

    row = database.look(lambda c: execution_rows.execution(c, workspace_id("default"), run.execution_id))
    assert row is not None
    assert (row.status, row.finished_ns) == ("completed", 90)
    database.close()
