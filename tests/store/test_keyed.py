"""What is looked up, changed or deleted by many keys of one prefix costs those rows, not all of the prefix.

PostgreSQL's planner has the statistics that a writer has it make, and one plan for all lists of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, select, text

from tachograph_exporter.ingest import announcements
from tachograph_exporter.ingest.announcements import Announced
from tachograph_exporter.ingest.span_rows import ends_of
from tachograph_exporter.store import lineage, planner_statistics, step_lines
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.inserting import insert_many, upsert
from tachograph_exporter.store.locking import lock
from tachograph_exporter.store.schema import spans, traces, workflow_step_lines

ROWS = 3_000
WORKSPACE = "w"
TRACE = "t"
SPAN = {"workspace_id": WORKSPACE, "trace_id": TRACE, "parent_span_id": "", "name": "n", "service": "s", "start_ns": 1,
        "end_ns": 2, "resource_id": "r", "payload": b"", "told": 1}  # fmt: skip


@pytest.fixture
def database(postgres: Callable[..., str]) -> Iterator[Database]:
    database = Database(postgres())
    database.run(_fill)
    for name in ("spans", "traces", "workflow_step_lines"):
        assert database.look(partial(planner_statistics.grown, name=name))
        database.run(partial(planner_statistics.written, name=name, count=ROWS))
        assert database.look(partial(planner_statistics.grown, name=name)) == {}
    yield database
    database.close()


def ids() -> list[str]:
    return [f"{i:016x}" for i in range(ROWS)]


def _fill(connection: Connection) -> None:
    connection.execute(insert(spans), [{**SPAN, "span_id": id_} for id_ in ids()])
    trace = {"workspace_id": WORKSPACE, "start_ns": 1, "end_ns": 2, "span_count": 1}
    needed = {
        column.name: "" if column.type.python_type is str else 0
        for column in traces.columns
        if not (column.nullable or column.server_default or column.default)
    }
    connection.execute(insert(traces), [{**needed, **trace, "trace_id": id_} for id_ in ids()])
    line = {
        "execution_id": "e",
        "step_id": "s",
        "attempt": 1,
        "writer": "w",
        "severity": 9,
        "logger": "l",
        "message": "m",
    }
    connection.execute(insert(workflow_step_lines), [{**line, "number": i, "time_ns": i} for i in range(ROWS)])


def rows_read(connection: Connection) -> int:
    """How many rows this transaction has looked at."""
    statement = text("SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) FROM pg_stat_xact_user_tables")
    return int(connection.execute(statement).scalar_one())


def _left(connection: Connection) -> tuple[int, int, int]:
    marked = select(func.count()).where(spans.c.told == Announced.START.value)
    return (
        connection.execute(select(func.count()).select_from(spans)).scalar_one(),
        connection.execute(marked).scalar_one(),
        connection.execute(select(func.count()).select_from(workflow_step_lines)).scalar_one(),
    )


_NOT_UNTOLD: dict[str, Any] = dict.fromkeys(ids(), SimpleNamespace(untold=None))
CHANGES: dict[str, tuple[Callable[[Connection], object], tuple[int, int, int]]] = {
    "what is announced of a trace": (
        lambda c: announcements.mark_announced(c, WORKSPACE, TRACE, dict.fromkeys(ids(), Announced.START)),
        (ROWS, ROWS, ROWS),
    ),
    "spans": (lambda c: lineage.delete_spans(c, WORKSPACE, TRACE, ids()), (0, 0, ROWS)),
    "traces that are due": (
        lambda c: announcements.mark_assembled(c, WORKSPACE, _NOT_UNTOLD, dict.fromkeys(ids(), 7)),
        (ROWS, 0, ROWS),
    ),
    "lines of an attempt": (
        lambda c: step_lines._prune_attempt(c, ("e", "s", 1)),
        (ROWS, 0, step_lines.MAX_LINES),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_many_keys_cost_what_they_change(database: Database, name: str) -> None:
    change, left = CHANGES[name]

    def counted(connection: Connection) -> int:
        lock(connection)
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        before = rows_read(connection)
        change(connection)
        return rows_read(connection) - before

    # A list of 500 keys that is compared with all rows, six times, would be six times as many.
    assert database.run(counted) <= 2.5 * ROWS
    assert database.look(_left) == left


def test_a_table_that_fills_in_one_transaction_is_planned_for_as_it_is(postgres: Callable[..., str]) -> None:
    database = Database(postgres())

    def counted(connection: Connection) -> int:
        lock(connection)
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        # Planned while the table is empty, when all its indexes are alike.
        assert ends_of(connection, WORKSPACE, TRACE, ids()) == {}
        put = str(upsert(connection.dialect, spans).compile(dialect=connection.dialect))
        rows = [{"kind": None, "status": None, **SPAN, "span_id": id_} for id_ in ids()]
        insert_many(connection, put, [tuple(row[column.name] for column in spans.columns) for row in rows])
        before = rows_read(connection)
        assert len(ends_of(connection, WORKSPACE, TRACE, ids())) == ROWS
        return rows_read(connection) - before

    assert database.run(counted) <= 2.5 * ROWS
    database.close()
