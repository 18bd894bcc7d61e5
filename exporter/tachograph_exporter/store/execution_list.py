"""Lists of executions: filtered, sorted and paged, archived executions included."""

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
    text,
    tuple_,
    union_all,
)

from tachograph.events import ExecutionStatus
from tachograph_exporter.store import input_values
from tachograph_exporter.store.executions import EXECUTION_COLUMNS, open_counts
from tachograph_exporter.store.failure_groups.reading import in_group
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.schema import (
    HAS_ERROR,
    archived_executions,
    workflow_executions,
    workflow_step_executions,
)

_steps = workflow_step_executions.c


class Order(NamedTuple):
    """How executions are sorted; ties are broken by id."""

    by: str = "created"
    descending: bool = True


class ExecutionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects executions of a workspace. Times are unix nanoseconds and apply to the creation of an execution.

    Args:
        step: name or id of a step that the execution has.
        step_status: statuses, one of which a step of the execution (``step``, if given) has.
        error: text in the type or message of the execution's error.
        text: text in the id, the workflow's name, or the type or message of the error.
        input: ``name=value`` among the inputs, or text anywhere in them.
        id: the beginning or the end of the execution's id.
        failure: id of a failure group that something in the execution belongs to.
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
    text: str | None = None
    input: str | None = None
    id: str | None = None
    failure: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it selects by workflow and status only; the rollups have those counts."""
        others = (
            self.project, self.from_ns, self.to_ns, self.min_duration_ns, self.max_duration_ns,
            self.step, self.error, self.text, self.input, self.id, self.failure,
        )  # fmt: skip
        return all(value is None for value in others) and not self.step_status

    def ids(self, connection: Connection) -> list[str] | None:
        """The ids of all executions that may be selected, if there are few; otherwise None."""
        if self.input is None:
            return None
        return input_values.with_input(connection, self.workspace, self.input, self.from_ns, self.to_ns)

    def conditions(self, table: Table, ids: Sequence[str] | None = None) -> list[ColumnElement[bool]]:
        """The SQL conditions on a row of ``table``: executions, or archived executions. ``ids``: see `ids`."""
        row = table.c
        conditions: list[Any] = [row.workspace_id == self.workspace]
        if ids is not None:
            # An expression, or a database might read all of the workspace.
            conditions = [func.coalesce(row.workspace_id, "") == self.workspace, row.execution_id.in_(ids)]
        if self.workflow_id is not None:
            conditions.append(row.workflow_id == self.workflow_id)
        if self.project is not None:
            conditions.append(row.project == self.project)
        if self.status:
            conditions.append(row.status.in_([status.value for status in self.status]))
        if self.from_ns is not None:
            conditions.append(row.created_ns >= self.from_ns)
        if self.to_ns is not None:
            conditions.append(row.created_ns < self.to_ns)
        duration = row.finished_ns - row.started_ns
        if self.min_duration_ns is not None:
            conditions.append(duration >= self.min_duration_ns)
        if self.max_duration_ns is not None:
            conditions.append(duration <= self.max_duration_ns)
        if self.error is not None:
            pattern = f"%{_escaped(self.error)}%"
            # As the index has it.
            conditions.append(text(f"({HAS_ERROR})"))
            conditions.append(or_(row.error_message.ilike(pattern, "\\"), row.error_type.ilike(pattern, "\\")))
        if self.text is not None:
            pattern = f"%{_escaped(self.text.strip().removeprefix('…'))}%"
            columns = (row.execution_id, row.workflow, row.error_message, row.error_type)
            conditions.append(or_(*(column.ilike(pattern, "\\") for column in columns)))
        if self.input is not None:
            conditions.append(_input_matches(row.inputs, self.input))
        if self.id is not None:
            part = _escaped(self.id)
            conditions.append(
                or_(row.execution_id.like(f"{part}%", escape="\\"), row.execution_id.like(f"%{part}", escape="\\"))
            )
        if self.failure is not None:
            conditions.append(in_group(self.workspace, self.failure, row.execution_id))
        if self.step is not None or self.step_status:
            if table is not workflow_executions:
                # The steps of archived executions are in files, which a list does not read.
                conditions.append(false())
            else:
                step = select(literal(1)).where(_steps.execution_id == row.execution_id)
                if self.step is not None:
                    step = step.where(or_(_steps.name == self.step, _steps.step_id == self.step))
                if self.step_status:
                    step = step.where(_steps.status.in_(self.step_status))
                conditions.append(step.exists())
        return conditions


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _input_matches(column: Any, query: str) -> ColumnElement[bool]:
    name, equals, value = query.partition("=")
    if not equals:
        return cast("ColumnElement[bool]", column.ilike(f"%{_escaped(query)}%", "\\"))
    key = msgspec.json.encode(name).decode()
    # Inputs are compact JSON: a value is a bare number or word, or a string, and ends at a comma or a brace.
    values = {value, msgspec.json.encode(value).decode()}
    patterns = [f"%{_escaped(f'{key}:{text}')}{end}%" for text in sorted(values) for end in (",", "}")]
    return or_(*(column.like(pattern, "\\") for pattern in patterns))


_SORTS: Final[dict[str, Callable[[Any], Any]]] = {
    "created": lambda row: row.created_ns,
    "started": lambda row: func.coalesce(row.started_ns, 0),
    "finished": lambda row: func.coalesce(row.finished_ns, 0),
    "duration": lambda row: func.coalesce(row.finished_ns - row.started_ns, -1),
}
SORTS: Final = tuple(_SORTS)
"""Fields that executions can be sorted by."""

_ARCHIVED_COLUMNS: Final = [
    archived_executions.c[column.name].label(column.name)
    if column.name in archived_executions.c
    else null().label(column.name)
    for column in EXECUTION_COLUMNS
]


class Position(NamedTuple):
    """The end of a page: the sort value and the id of its last row."""

    value: int
    execution_id: str


def has_archived(connection: Connection, workspace: str) -> bool:
    """Whether any of a workspace's executions are archived."""
    statement = select(literal(1)).where(archived_executions.c.workspace_id == workspace).limit(1)
    return connection.execute(statement).first() is not None


def executions(
    connection: Connection,
    selection: ExecutionFilter,
    skip: int,
    limit: int,
    order: Order = Order(),  # noqa: B008 - immutable
    after: Position | None = None,
) -> Sequence[Row[Any]]:
    """A page of executions. Each row has ``sorted_by``, and ``archive``: its archive file, or null.

    ``after`` continues after a position at a constant cost; ``skip`` reads the rows it skips.
    """
    sort = _SORTS[order.by]
    parts = []
    ids = selection.ids(connection)
    tables = [(workflow_executions, [*EXECUTION_COLUMNS, null().label("archive")])]
    if has_archived(connection, selection.workspace):
        tables.append((archived_executions, [*_ARCHIVED_COLUMNS, archived_executions.c.archive.label("archive")]))
    for table, columns in tables:
        value, key = sort(table.c), table.c.execution_id
        part = select(*columns, value.label("sorted_by")).where(*selection.conditions(table, ids))
        if after is not None:
            less = tuple_(value, key) < tuple_(literal(after.value), literal(after.execution_id))
            more = tuple_(value, key) > tuple_(literal(after.value), literal(after.execution_id))
            part = part.where(less if order.descending else more)
        directed = (value.desc(), key.desc()) if order.descending else (value.asc(), key.asc())
        # The page may need this many rows of each table; each is read by its own index.
        parts.append(part.order_by(*directed).limit(skip + limit))
    if len(parts) == 1:
        return cast("Sequence[Row[Any]]", connection.execute(parts[0].limit(limit).offset(skip)).all())
    union = union_all(*(select(part.subquery()) for part in parts)).subquery()
    directed = (
        (union.c.sorted_by.desc(), union.c.execution_id.desc())
        if order.descending
        else (union.c.sorted_by.asc(), union.c.execution_id.asc())
    )
    return connection.execute(select(union).order_by(*directed).limit(limit).offset(skip)).all()


def count_executions(connection: Connection, selection: ExecutionFilter) -> int:
    """The number of selected executions, archived ones included."""
    if selection.is_plain and selection.workflow_id is not None:
        # The rollups count those that ended, archived or not.
        totals = read.read(connection, (selection.workspace, selection.workflow_id), steps=False)
        statuses = {status.value for status in selection.status}
        ended = sum(t.count for status, t in totals.executions.items() if not statuses or status in statuses)
        return ended + sum(
            count
            for status, count in open_counts(connection, selection.workspace, selection.workflow_id).items()
            if not statuses or status in statuses
        )
    tables = [workflow_executions]
    if has_archived(connection, selection.workspace):
        tables.append(archived_executions)
    ids = selection.ids(connection)
    return sum(
        connection.execute(
            select(func.count()).select_from(table).where(*selection.conditions(table, ids))
        ).scalar_one()
        for table in tables
    )
