"""Executions are found by their inputs, as if all of them were read."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, delete, func, select

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, Failure
from tachograph.identity import new_execution_ref, workflow_id, workspace_id
from tachograph_exporter.store import archiving, input_values, span_values, state
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.execution_list import ExecutionFilter, count_executions, executions
from tachograph_exporter.store.schema import input_values as values_table
from tachograph_exporter.store.schema import store_state
from tachograph_exporter.store.writer import StoreWriter

INPUTS = [
    '{"order":77,"mode":"nightly"}', '{"order":"77","mode":"nightly"}', '{"order":770,"mode":"Nightly"}',
    '{"a":{"order":77},"list":[{"deep":true}],"mode":"nightly"}', '{"text":"a,b}","none":null,"f":1.5}',
    '{"order":[1,2],"mode":"nightly"}', '{"name":"größe \\"x\\"","mode":"nightly"}', "{}", None,
    '{"cut":"off', '{"big":[' + ",".join(["1"] * 300) + '],"order":5}',
]  # fmt: skip
QUERIES = [
    "order=77", 'order="77"', "order=770", "order=7", "deep=true", "text=a,b}", "none=null", "f=1.5", "order=[1,2]",
    "mode=nightly", "mode=Nightly", 'name=größe "x"', "nothing=1", "order=", "=77", "cut=off", "order=5", "nightly",
]  # fmt: skip


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    opened = Database(any_database_url)
    yield opened
    opened.close()


def listed(connection: Connection, query: str) -> tuple[list[str], int]:
    selection = ExecutionFilter(workspace=workspace_id("default"), input=query)
    rows = executions(connection, selection, 0, 100)
    return [row.execution_id for row in rows], count_executions(connection, selection)


def test_inputs_are_found_without_reading_all_executions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StoreWriter(database)
    at = time.time_ns() - 3 * 86_400 * 10**9
    for number, inputs in enumerate(INPUTS):
        run = new_execution_ref(workspace="default", workflow="w", workflow_id=workflow_id("default", "w"))
        failure = Failure("OSError", f"disk {number} is full") if number % 2 else None
        events: list[Event] = [
            ExecutionStarted(execution=run, time_ns=at + number, step_count=0, inputs=inputs),
            ExecutionFinished(
                execution=run, time_ns=at + number + 5, started_ns=at + number, step_count=0, inputs=inputs,
                failure=failure,
                status=ExecutionStatus.FAILED if failure else ExecutionStatus.COMPLETED,
            ),
        ]  # fmt: skip
        writer.apply(events)
        # Told twice, noted once.
        writer.apply(events)
    by_index = {query: database.look(lambda c, q=query: listed(c, q)) for query in QUERIES}  # type: ignore[misc]
    database.run(lambda c: state.set_state(c, span_values.INPUTS.since, str(time.time_ns())))
    by_reading = {query: database.look(lambda c, q=query: listed(c, q)) for query in QUERIES}  # type: ignore[misc]
    assert by_index == by_reading
    assert [len(by_index[query][0]) for query in ("order=77", "mode=nightly", "nothing=1")] == [3, 5, 0] or (
        database.is_sqlite
    )
    database.run(lambda c: c.execute(delete(store_state).where(store_state.c.name == span_values.INPUTS.since)))

    def ids(connection: Connection, query: str) -> list[str] | None:
        return input_values.with_input(connection, workspace_id("default"), query, None, None)

    # Those whose inputs cannot be read, or have more than is noted, are looked at by every list.
    assert len(database.look(lambda c: ids(c, "order=770")) or ()) == 3
    assert database.look(lambda c: ids(c, "nightly")) is None
    monkeypatch.setattr(input_values, "MAX_EXECUTIONS", 2)
    assert database.look(lambda c: ids(c, "order=77")) is None
    assert database.look(lambda c: listed(c, "order=77")) == by_reading["order=77"]

    # Errors, by an index of those that failed.
    def failed(connection: Connection) -> tuple[int, int]:
        selection = ExecutionFilter(workspace=workspace_id("default"), error="DISK 3 is")
        return len(executions(connection, selection, 0, 100)), count_executions(connection, selection)

    assert database.look(failed) == (1, 1)
    # Deleted executions take with them what is noted of their days.
    archiving.archive(database, time.time_ns() - 86_400 * 10**9, None)
    assert database.look(lambda c: c.execute(select(func.count()).select_from(values_table)).scalar_one()) == 0
