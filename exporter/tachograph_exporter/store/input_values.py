"""Which executions have an input with a value: for lists by ``name=value`` (see `span_values`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select
from sqlalchemy.engine import Dialect

from tachograph_exporter.store.schema import EXECUTION_ROWS, archived_executions, workflow_executions, workspaces
from tachograph_exporter.store.span_values import INPUTS, MORE, Noted, SpanValues, Value, places

MAX_EXECUTIONS: Final = 2_000
"""Executions that are looked up by their ids; of more, the newest are read."""
_MAX_TEXT: Final = 200
_COLUMNS: Final = [column.name for column in EXECUTION_ROWS.table.columns]
_WORKSPACE, _CREATED, _INPUTS = (_COLUMNS.index(name) for name in ("workspace_id", "created_ns", "inputs"))
_NO_INPUTS: Final = (None, "", "{}", "null")


class InputValues:
    """Notes the inputs of executions that are stored. Used by one transaction at a time."""

    def __init__(self, dialect: Dialect) -> None:
        self._values = SpanValues(dialect, INPUTS)

    def note(
        self, connection: Connection, executions: Mapping[str, tuple[Any, ...]], new: Collection[str] = ()
    ) -> list[Noted]:
        """Note the inputs of these rows, by execution id, in the transaction that stores them.

        ``new``: those that were not stored before.
        """
        by_workspace: dict[str, dict[str, list[tuple[int, list[dict[str, str]]]]]] = {}
        for execution_id, row in executions.items():
            if row[_INPUTS] not in _NO_INPUTS:
                values = [{name: text} for name, text in _values(row[_INPUTS])]
                by_workspace.setdefault(row[_WORKSPACE], {})[execution_id] = [(row[_CREATED], values)]
        return [self._values.note(connection, workspace, own, new) for workspace, own in sorted(by_workspace.items())]

    def remember(self, noted: Iterable[Noted]) -> None:
        """What was noted is committed."""
        for each in noted:
            self._values.remember(each)


def _values(inputs: str) -> Iterator[Value]:
    """The names and values in JSON, at any depth, in lower case: SQLite compares texts so."""
    try:
        decoded = msgspec.json.decode(inputs)
    except (msgspec.DecodeError, RecursionError):
        # Cut off, perhaps.
        yield MORE, ""
        return
    pending = [decoded]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
            for name, inner in value.items():
                text = inner if isinstance(inner, str) else msgspec.json.encode(inner).decode()
                if isinstance(inner, list | dict) and len(text) > _MAX_TEXT:
                    yield MORE, ""
                else:
                    yield name.lower(), text.lower()


def with_input(
    connection: Connection, workspace_id: str, query: str, from_ns: int | None, to_ns: int | None
) -> list[str] | None:
    """The ids of all executions that may have an input ``name=value`` and were created in a range; None: not known, or
    too many.
    """
    name, equals, text = query.partition("=")
    if not equals:
        return None
    texts = [text]
    if text.startswith('"'):
        try:
            texts.append(msgspec.json.decode(text, type=str))
        except msgspec.DecodeError:
            return None
    alternatives = [[(name.lower(), each.lower())] for each in texts]
    rows = places(
        connection, workspace_id, alternatives, from_ns or 0, (1 << 63) - 1 if to_ns is None else to_ns, INPUTS
    )
    if rows is None:
        return None
    ids: set[str] = set()
    for _, execution_id in rows:
        ids.add(execution_id)
        if len(ids) > MAX_EXECUTIONS:
            rows.close()
            return None
    return sorted(ids)


def drop_days(connection: Connection, before_ns: int) -> None:
    """Forget the inputs of the days before a moment from which no execution is there, archived or not."""
    for table in (workflow_executions, archived_executions):
        for workspace_id in connection.execute(select(workspaces.c.id)).scalars().all():
            own = table.c.workspace_id == workspace_id
            oldest = connection.execute(select(func.min(table.c.created_ns)).where(own)).scalar()
            before_ns = before_ns if oldest is None else min(before_ns, oldest)
    INPUTS.drop_days(connection, before_ns)
