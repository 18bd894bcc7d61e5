"""What a night costs: in proportion to its own runs, whatever is recorded beside it.

Counted in calls of functions and steps of SQLite's virtual machine, which are the same on every machine.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, event
from tools.night_of_runs import BUSY, HOUR, WORKFLOWS, write_night

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus
from tachograph.identity import workspace_id
from tachograph_exporter.expectations.night import read_night
from tachograph_exporter.store.writer import StoreWriter, open_writer
from tests.conftest import make_execution

DEFAULT = workspace_id("default")
NOW = 1_796_104_800 * 10**9
FEW, MANY = 100, 500
EVERY = 100
"""The handler is called after this many steps of the virtual machine."""


class Cost(NamedTuple):
    statements: int
    machine_steps: int
    calls: int
    size: int
    """Bytes of the answer."""


def cost_of(writer: StoreWriter) -> Cost:
    """What it takes to read the night, once everything has been read that is read once."""
    statements = steps = calls = 0

    def on_statement(*_: Any) -> None:
        nonlocal statements
        statements += 1

    def on_steps() -> int:
        nonlocal steps
        steps += EVERY
        return 0

    def on_call(_frame: FrameType, what: str, _argument: Any) -> None:
        nonlocal calls
        calls += what == "call"

    def counted(connection: Connection) -> int:
        driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        window = (NOW - 12 * HOUR, NOW)
        read_night(connection, DEFAULT, DEFAULT, window, NOW)
        event.listen(connection, "before_cursor_execute", on_statement)
        driver.set_progress_handler(on_steps, EVERY)
        before = sys.getprofile()
        sys.setprofile(on_call)
        try:
            night = read_night(connection, DEFAULT, DEFAULT, window, NOW)
        finally:
            sys.setprofile(before)
            driver.set_progress_handler(None, 0)
            event.remove(connection, "before_cursor_execute", on_statement)
        assert len(night.workflows) == len(WORKFLOWS)
        return len(msgspec.json.encode(night))

    size = writer.database.look(counted)
    return Cost(statements, steps, calls, size)


def older(count: int) -> list[Event]:
    """Runs of the same workflows in the days before."""
    events: list[Event] = []
    for number in range(count):
        execution = make_execution(BUSY[number % len(BUSY)])
        at = NOW - 24 * HOUR - number * HOUR // 10
        events.append(ExecutionStarted(execution=execution, time_ns=at))
        events.append(ExecutionFinished(execution=execution, time_ns=at + 10**9, status=ExecutionStatus.COMPLETED,
                                        started_ns=at, step_count=0))  # fmt: skip
    return events


def test_a_night_costs_what_its_own_runs_do(tmp_path: Path) -> None:
    costs = []
    for runs in (FEW, MANY):
        writer = open_writer(f"sqlite:///{tmp_path}/{runs}.db")
        write_night(writer, NOW, runs)
        costs.append(cost_of(writer))
        if runs == MANY:
            writer.apply(older(MANY))
            costs.append(cost_of(writer))
        writer.close()
    few, many, with_history = costs
    assert many.statements == few.statements
    # Five times as many runs.
    for part in ("machine_steps", "calls", "size"):
        assert getattr(many, part) < 5.5 * getattr(few, part), (part, costs)
    # So many calls and bytes a run: a look at each of them, not at each pair.
    assert many.calls < 100 * MANY, costs
    assert many.size < 300 * MANY, costs
    # The days before are not read, but for what is usual and the newest of each workflow.
    assert with_history.statements == many.statements
    assert with_history.machine_steps < 1.5 * many.machine_steps, costs
    assert with_history.calls < 1.5 * many.calls, costs
