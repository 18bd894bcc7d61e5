"""Executions that a dead process left open end as lost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, update
from tests import programs
from tests.conftest import make_execution, make_step, running

from tachograph import process
from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Heartbeat,
    StepFinished,
    StepReady,
    StepStarted,
)
from tachograph.identity import ExecutionRef, workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import recovery
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import workflow_step_executions
from tachograph_exporter.store.steps import steps_of
from tachograph_exporter.store.writer import StoreWriter


def dead_identity() -> str:
    """The identity of a process that has ended."""
    code = "from tachograph.process import identity; print(identity())"
    return str(programs.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout).strip()


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
    row = database.look(lambda c: execution_rows.execution(c, workspace_id("default"), run.execution_id))
    assert row is not None
    assert (row.status, row.finished_ns) == ("completed", 90)
    database.close()


@pytest.mark.parametrize("column", ["depends_on", "status", "refused"])
async def test_a_lost_run_whose_steps_cannot_be_closed_is_closed_without_them(
    any_database_url: str, handlers: HandlerRegistry, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Config(database=any_database_url, grace_seconds=0.2), handlers) as api:
        database, owner = api.service.database, dead_identity()
        runs = []
        for name in ("broken", "sound"):
            runs.append(run := make_execution(name))
            step = make_step(run, "a")
            api.service.writer.apply([
                ExecutionStarted(execution=run, time_ns=1, process=owner, step_count=1),
                StepReady(step=step, time_ns=2), StepStarted(step=step, time_ns=3),
            ])  # fmt: skip
        if column == "refused":
            put = StoreWriter.put

            def refusing(self: StoreWriter, connection: Connection, events: Sequence[Event]) -> Batch:
                if any(isinstance(e, StepFinished) and e.execution == runs[0] for e in events):
                    raise ValueError("cannot be stored")
                ended = [e for e in events if isinstance(e, ExecutionFinished) and e.execution == runs[0]]
                if any(e.work_ns or e.critical_path for e in ended):
                    raise ValueError("cannot be stored either")
                return put(self, connection, events)

            monkeypatch.setattr(StoreWriter, "put", refusing)
        else:
            broken = update(workflow_step_executions).where(
                workflow_step_executions.c.execution_id == runs[0].execution_id
            )
            database.run(lambda c: c.execute(broken.values({column: "no such thing"})))
        for _ in range(2):
            await api.service.upkeep.sweep()
        for run in runs:
            find = partial(execution_rows.execution, workspace=workspace_id("default"), execution_id=run.execution_id)
            row = database.look(find)
            assert row is not None
            assert row.status == "lost"
        assert await api.service.upkeep.sweep() == 0


def open_run(writer: StoreWriter, name: str, seen_ns: int, owner: str = "elsewhere/b/1/2") -> ExecutionRef:
    run = make_execution(name)
    writer.apply([ExecutionStarted(execution=run, time_ns=seen_ns, process=owner)])
    return run


def test_silence_is_measured_on_the_clock_of_whoever_looks(any_database_url: str) -> None:
    database = Database(any_database_url)
    writer = StoreWriter(database)
    now, clock = time.time_ns(), [1000.0]
    silences = recovery.Silences(lambda: clock[0])

    def lost() -> set[str]:
        found = database.look(lambda c: recovery.find_lost(c, now, lease_seconds=30, silences=silences))
        return {run.execution.workflow for run in found}

    hour = 3600 * NS
    living = {name: open_run(writer, name, now + shift) for name, shift in (("behind", -hour), ("ahead", hour))}
    open_run(writer, "silent behind", now - hour)
    open_run(writer, "silent ahead", now + hour)
    for beat in range(1, 8):
        assert lost() == (set() if beat < 5 else {"silent behind", "silent ahead"}), beat
        clock[0] += 8
        for name, shift in (("behind", -hour), ("ahead", hour)):
            writer.apply([Heartbeat(execution=living[name], time_ns=now + shift + beat * NS)])
    database.close()


def test_time_in_which_nobody_could_be_heard_is_no_silence(database_url: str) -> None:
    database = Database(database_url)
    writer = StoreWriter(database)
    now, clock = time.time_ns(), [0.0]
    silences = recovery.Silences(lambda: clock[0])
    run = open_run(writer, "w", now)

    def lost() -> int:
        return len(database.look(lambda c: recovery.find_lost(c, now, lease_seconds=30, silences=silences)))

    assert lost() == 0
    clock[0] += 10_000  # The database was away, or the machine slept.
    assert lost() == 0
    clock[0] += 10
    writer.apply([Heartbeat(execution=run, time_ns=now + NS)])
    assert lost() == 0
    for _ in range(3):
        clock[0] += 10
        silent = lost()
    assert silent == 1
    database.close()


@pytest.mark.e2e
def test_a_live_script_with_a_clock_that_is_behind_is_not_lost(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process on another host name and with a clock two minutes behind."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("needs faketime (apt-get install faketime)")
    program = (
        "import socket, time, sys; socket.gethostname = lambda: 'elsewhere'\n"
        "import tachograph\n"
        "@tachograph.workflow\n"
        "def slow():\n"
        "    print('running', flush=True); sys.stdin.read()\n"
        "slow()\n"
    )
    environment = {**os.environ, "TACHOGRAPH_DATABASE_URL": database_url, "TACHOGRAPH_SPOOL_DIR": str(tmp_path),
                   "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    database = Database(database_url)
    silences = recovery.Silences()
    command = [faketime, "-f", "-120s", sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "running\n"

        def lost() -> int:
            found = database.look(lambda c: recovery.find_lost(c, time.time_ns(), lease_seconds=5, silences=silences))
            return len(found)

        until = time.monotonic() + 20
        while not database.look(execution_rows.open_executions):
            assert time.monotonic() < until
            time.sleep(0.05)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            assert lost() == 0
            time.sleep(0.2)
        assert len(database.look(execution_rows.open_executions)) == 1
        script.communicate("", timeout=60)
    assert script.returncode == 0
    database.close()
