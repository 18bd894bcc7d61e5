"""Lists of executions: filtered, sorted, page by page, archived ones among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    false,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    union_all,
)

from tachograph.events import ExecutionStatus
from tachograph_exporter.store.executions import EXECUTION_COLUMNS, open_counts
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.schema import (
    archived_executions,
    workflow_executions,
    workflow_step_executions,
)

_steps = workflow_step_executions.c


class Order(NamedTuple):
    """How executions are sorted; ties by id."""

    by: str = "created"
    descending: bool = True


class ExecutionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which executions of a workspace: of one workflow, by status, start and end (unix ns), duration (ns), text.

    ``step``: that have a step of this name (``step_status``: in this state); ``error``: with this in the type or
    message of their error; ``input``: with this name and value among their inputs, or with this text in them.
    """

    workspace: str
    workflow_id: str | None = None
    project: str | None = None
    status: tuple[ExecutionStatus, ...] = ()
    from_ns: int | None = None
    to_ns: int | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    step: str | None = None
    step_status: tuple[str, ...] = ()
    error: str | None = None
    input: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether only workflow and status are asked for; those are counted already."""
        asked = (self.project, self.from_ns, self.to_ns, self.min_duration_ns, self.max_duration_ns)
        return all(one is None for one in (*asked, self.step, self.error, self.input)) and not self.step_status

    def conditions(self, table: Table) -> list[ColumnElement[bool]]:
        """What must hold of a row of ``table`` (executions, or the archived ones)."""
        row = table.c
        found: list[ColumnElement[bool]] = [row.workspace_id == self.workspace]
        if self.workflow_id is not None:
            found.append(row.workflow_id == self.workflow_id)
        if self.project is not None:
            found.append(row.project == self.project)
        if self.status:
            found.append(row.status.in_([status.value for status in self.status]))
        if self.from_ns is not None:
            found.append(row.created_ns >= self.from_ns)
        if self.to_ns is not None:
            found.append(row.created_ns < self.to_ns)
        duration = row.finished_ns - row.started_ns
        if self.min_duration_ns is not None:
            found.append(duration >= self.min_duration_ns)
        if self.max_duration_ns is not None:
            found.append(duration <= self.max_duration_ns)
        if self.error is not None:
            wanted = f"%{_escaped(self.error)}%"
            found.append(or_(row.error_message.ilike(wanted, "\\"), row.error_type.ilike(wanted, "\\")))
        if self.input is not None:
            found.append(_input_matches(row.inputs, self.input))
        if self.step is not None or self.step_status:
            if table is not workflow_executions:
                # Steps of archived executions are in files; who asks for them asks the archive.
                found.append(false())
            else:
                step = select(literal(1)).where(_steps.execution_id == row.execution_id)
                if self.step is not None:
                    step = step.where(or_(_steps.name == self.step, _steps.step_id == self.step))
                if self.step_status:
                    step = step.where(_steps.status.in_(self.step_status))
                found.append(step.exists())
        return found


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _input_matches(column: Any, wanted: str) -> ColumnElement[bool]:
    name, equals, value = wanted.partition("=")
    if not equals:
        return cast("ColumnElement[bool]", column.ilike(f"%{_escaped(wanted)}%", "\\"))
    key = msgspec.json.encode(name).decode()
    # Inputs are kept as compact JSON: a value ends at a comma or a brace, and is a number or word as it is, or a text.
    values = {value, msgspec.json.encode(value).decode()}
    patterns = [f"%{_escaped(f'{key}:{one}')}{end}%" for one in sorted(values) for end in (",", "}")]
    return or_(*(column.like(pattern, "\\") for pattern in patterns))


_SORTS: Final[dict[str, Callable[[Any], Any]]] = {
    "created": lambda row: row.created_ns,
    "started": lambda row: func.coalesce(row.started_ns, 0),
    "finished": lambda row: func.coalesce(row.finished_ns, 0),
    "duration": lambda row: func.coalesce(row.finished_ns - row.started_ns, -1),
}
SORTS: Final = tuple(_SORTS)
"""What executions can be sorted by."""

_ARCHIVED_COLUMNS: Final = [
    archived_executions.c[column.name].label(column.name)
    if column.name in archived_executions.c
    else null().label(column.name)
    for column in EXECUTION_COLUMNS
]


class Position(NamedTuple):
    """Where a page ended: the sorted value and the id of its last row."""

    value: int
    execution_id: str


def has_archived(connection: Connection, workspace: str) -> bool:
    """Whether any of a workspace's executions are archived."""
    wanted = select(literal(1)).where(archived_executions.c.workspace_id == workspace).limit(1)
    return connection.execute(wanted).first() is not None


def executions(
    connection: Connection,
    wanted: ExecutionFilter,
    skip: int,
    limit: int,
    order: Order = Order(),  # noqa: B008 - immutable
    after: Position | None = None,
) -> Sequence[Row[Any]]:
    """A page of executions, archived ones included; each row with ``sorted_by``, and ``archive`` (null: not archived).

    ``after``: those behind this position, at the same cost however far behind; ``skip`` costs what it skips.
    """
    sort = _SORTS[order.by]
    parts = []
    tables = [(workflow_executions, [*EXECUTION_COLUMNS, null().label("archive")])]
    if has_archived(connection, wanted.workspace):
        tables.append((archived_executions, [*_ARCHIVED_COLUMNS, archived_executions.c.archive.label("archive")]))
    for table, columns in tables:
        value, key = sort(table.c), table.c.execution_id
        part = select(*columns, value.label("sorted_by")).where(*wanted.conditions(table))
        if after is not None:
            less = tuple_(value, key) < tuple_(literal(after.value), literal(after.execution_id))
            more = tuple_(value, key) > tuple_(literal(after.value), literal(after.execution_id))
            part = part.where(less if order.descending else more)
        directed = (value.desc(), key.desc()) if order.descending else (value.asc(), key.asc())
        # Each part brings as many as the page can need of it, by its own index.
        parts.append(part.order_by(*directed).limit(skip + limit))
    if len(parts) == 1:
        return cast("Sequence[Row[Any]]", connection.execute(parts[0].limit(limit).offset(skip)).all())
    both = union_all(*(select(part.subquery()) for part in parts)).subquery()
    directed = (
        (both.c.sorted_by.desc(), both.c.execution_id.desc())
        if order.descending
        else (both.c.sorted_by.asc(), both.c.execution_id.asc())
    )
    return connection.execute(select(both).order_by(*directed).limit(limit).offset(skip)).all()


def count_executions(connection: Connection, wanted: ExecutionFilter) -> int:
    """How many executions there are in all, archived ones included."""
    if wanted.is_plain and wanted.workflow_id is not None:
        # Those that ended are counted already, whether archived or not.
        pack = read.read(connection, (wanted.workspace, wanted.workflow_id), steps=False)
        statuses = {status.value for status in wanted.status}
        ended = sum(t.count for status, t in pack.executions.items() if not statuses or status in statuses)
        return ended + sum(
            count
            for status, count in open_counts(connection, wanted.workspace, wanted.workflow_id).items()
            if not statuses or status in statuses
        )
    tables = [workflow_executions]
    if has_archived(connection, wanted.workspace):
        tables.append(archived_executions)
    return sum(
        connection.execute(select(func.count()).select_from(table).where(*wanted.conditions(table))).scalar_one()
        for table in tables
    )
