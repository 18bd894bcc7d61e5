"""Numbers of executions: those of a workflow are counted from 1, in the order in which they are first stored.

A number is given in the transaction that stores an execution, under the writers' lock, so it is unique in its workflow
whatever process recorded the execution. It never changes, and none is given twice: not when executions are archived,
deleted or assembled from spans again. Only deleting the workflow starts again at 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update

from tachograph_exporter.store import locking
from tachograph_exporter.store.driver_select import IDS, DriverSelect
from tachograph_exporter.store.schema import EXECUTION_ROWS, execution_numbers, workflow_executions

_CHUNK: Final = 500
_WORKFLOW: Final = EXECUTION_ROWS.columns.index("workflow_id")
_CREATED: Final = EXECUTION_ROWS.columns.index("created_ns")
if EXECUTION_ROWS.columns[-1] != "number":
    raise AssertionError("the number of an execution is not the last column of its row")

_executions = workflow_executions.c
_numbers = execution_numbers.c
_STORED: Final = DriverSelect(
    select(_executions.execution_id, _executions.workflow_id, _executions.number).where(
        _executions.execution_id.in_(bindparam(IDS, expanding=True))
    )
)
_LAST: Final = select(_numbers.workflow_id, _numbers.last).where(
    _numbers.workflow_id.in_(bindparam("ids", expanding=True))
)
_SET_LAST: Final = (
    update(execution_numbers).where(_numbers.workflow_id == bindparam("id")).values(last=bindparam("highest"))
)


_UNNUMBERED: Final = (
    select(_executions.execution_id, _executions.workflow_id)
    .where(text("number IS NULL"))
    .order_by(_executions.created_ns, _executions.execution_id)
)
_SET_NUMBER: Final = (
    update(workflow_executions).where(_executions.execution_id == bindparam("id")).values(number=bindparam("given"))
)


class Numbered(NamedTuple):
    """The number that an execution has in its workflow (an id)."""

    workflow_id: str
    number: int


def of_stored(connection: Connection, execution_ids: Collection[str]) -> dict[str, Numbered]:
    """The numbers of those of the executions that are in the tables and have one, by execution id."""
    return _numbers_of(_rows(connection, execution_ids))


def _rows(connection: Connection, execution_ids: Collection[str]) -> list[Any]:
    ids = sorted(execution_ids)
    chunks = (ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK))
    return [row for chunk in chunks for row in _STORED.rows(connection, chunk)]


def _numbers_of(rows: Iterable[Any]) -> dict[str, Numbered]:
    return {row[0]: Numbered(row[1], row[2]) for row in rows if row[2] is not None}


def assign(
    connection: Connection, rows: dict[Any, tuple[Any, ...]], numbered: Mapping[str, Numbered] | None = None
) -> set[str]:
    """Fill in the numbers of ``rows`` (see `schema`), by execution id; new executions get the next of their workflow.

    ``numbered``: the numbers that executions have; None reads them. The caller has the writers' lock. Returns those of
    the executions that are not in the tables yet (where ``numbered`` is given: none).
    """
    new: set[str] = set()
    if numbered is None:
        stored = _rows(connection, rows)
        new = rows.keys() - {row[0] for row in stored}
        numbered = _numbers_of(stored)
    unnumbered: dict[str, list[str]] = {}
    for execution_id, row in rows.items():
        known = numbered.get(execution_id)
        if known is not None and known.workflow_id == row[_WORKFLOW]:
            rows[execution_id] = (*row[:-1], known.number)
        else:
            unnumbered.setdefault(row[_WORKFLOW], []).append(execution_id)
    for workflow_id, first in _take(connection, {key: len(ids) for key, ids in unnumbered.items()}).items():
        ids = sorted(unnumbered[workflow_id], key=lambda execution_id: (rows[execution_id][_CREATED], execution_id))
        for number, execution_id in enumerate(ids, first):
            rows[execution_id] = (*rows[execution_id][:-1], number)
    return new


def fill(connection: Connection) -> int:
    """Number stored executions that have no number, and return how many there were.

    A process of a version that knew no numbers stores such executions while the services are upgraded one by one.
    """
    locking.lock(connection)
    rows = connection.execute(_UNNUMBERED).all()
    following = _take(connection, Counter(row.workflow_id for row in rows))
    for row in rows:
        connection.execute(_SET_NUMBER, {"id": row.execution_id, "given": following[row.workflow_id]})
        following[row.workflow_id] += 1
    return len(rows)


def _take(connection: Connection, counts: Mapping[str, int]) -> dict[str, int]:
    """Take so many numbers of each workflow; returns the first of them."""
    workflow_ids = sorted(counts)
    last: dict[str, int] = {}
    for i in range(0, len(workflow_ids), _CHUNK):
        stored = connection.execute(_LAST, {"ids": workflow_ids[i : i + _CHUNK]})
        last.update((row.workflow_id, row.last) for row in stored)
    highest = {workflow_id: last.get(workflow_id, 0) + counts[workflow_id] for workflow_id in workflow_ids}
    if changed := [{"id": key, "highest": value} for key, value in highest.items() if key in last]:
        connection.execute(_SET_LAST, changed)
    if added := [{"workflow_id": key, "last": value} for key, value in highest.items() if key not in last]:
        connection.execute(insert(execution_numbers), added)
    return {workflow_id: last.get(workflow_id, 0) + 1 for workflow_id in workflow_ids}


def forget(connection: Connection, workflow_id: str) -> None:
    """Start again at 1 with the executions of a workflow, because it is deleted with all it has."""
    connection.execute(delete(execution_numbers).where(_numbers.workflow_id == workflow_id))
