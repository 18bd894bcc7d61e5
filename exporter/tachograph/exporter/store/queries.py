"""Reading the store: plain functions of a connection, each a statement or two on an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    bindparam,
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
from tachograph.exporter.store import rollups
from tachograph.exporter.store.schema import (
    archived_executions,
    projects,
    rollup_heads,
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
    workspaces,
)
from tachograph.exporter.store.steps import StoredStep, steps_of

_executions = workflow_executions.c
_steps = workflow_step_executions.c
_definitions = workflow_definitions.c

EXECUTION_COLUMNS: Final = [
    column for column in workflow_executions.columns if column.name not in ("rank", "workspace_id", "critical_path")
]


# Built once: making a statement costs as much as reading a hundred rows.
_ONE_EXECUTION: Final = select(*EXECUTION_COLUMNS).where(
    _executions.execution_id == bindparam("id"), _executions.workspace_id == bindparam("workspace")
)
_ATTEMPTS: Final = (
    select(*[column for column in workflow_step_attempts.columns if column.name != "execution_id"])
    .where(workflow_step_attempts.c.execution_id == bindparam("id"))
    .order_by(workflow_step_attempts.c.step_id, workflow_step_attempts.c.attempt)
)
_REPORTS: Final = (
    select(*[column for column in workflow_step_reports.columns if column.name != "execution_id"])
    .where(workflow_step_reports.c.execution_id == bindparam("id"))
    .order_by(workflow_step_reports.c.step_id, workflow_step_reports.c.sequence)
)


class StoredRun(NamedTuple):
    """Everything stored of one execution."""

    execution: Row[Any]
    steps: Sequence[StoredStep]
    attempts: Sequence[Row[Any]]
    reports: Sequence[Row[Any]]


def execution(connection: Connection, workspace: str, execution_id: str) -> Row[Any] | None:
    """The row of one execution of a workspace (by its id), or None."""
    return connection.execute(_ONE_EXECUTION, {"id": execution_id, "workspace": workspace}).first()


def run(connection: Connection, workspace: str, execution_id: str) -> StoredRun | None:
    """One execution with its steps, attempts and reports, or None: four ranges of four indexes."""
    found = execution(connection, workspace, execution_id)
    if found is None:
        return None
    key = {"id": execution_id}
    return StoredRun(
        found,
        steps_of(connection, execution_id),
        connection.execute(_ATTEMPTS, key).all(),
        connection.execute(_REPORTS, key).all(),
    )


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
        pack = rollups.read(connection, (wanted.workspace, wanted.workflow_id), steps=False)
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


def open_counts(
    connection: Connection, workspace: str, workflow_id: str | None = None, from_ns: int | None = None
) -> dict[str, int]:
    """How many executions of a workflow are pending and running, by status."""
    statement = (
        select(_executions.status, func.count())
        .where(_IS_OPEN, _executions.workspace_id.concat("") == workspace)
        .group_by(_executions.status)
    )
    if workflow_id is not None:
        statement = statement.where(_executions.workflow_id.concat("") == workflow_id)
    if from_ns is not None:
        statement = statement.where(_executions.created_ns + 0 >= from_ns)
    return {row[0]: row[1] for row in connection.execute(statement)}


def open_by_workflow(connection: Connection, workspace: str) -> list[tuple[str, str, str, int, int | None]]:
    """(workflow id, name, status, count, newest start ns) of a workspace's open executions."""
    statement = (
        select(
            _executions.workflow_id,
            func.max(_executions.workflow),
            _executions.status,
            func.count(),
            func.max(_executions.started_ns),
        )
        .where(_IS_OPEN, _executions.workspace_id.concat("") == workspace)
        .group_by(_executions.workflow_id, _executions.status)
    )
    return [tuple(row) for row in connection.execute(statement)]


# As text, so that the planner sees the condition of the partial index; and the rest as expressions that no other index
# has, for the few open executions are all in that one.
_IS_OPEN: Final = text("workflow_executions.status IN ('pending', 'running')")


def open_executions(connection: Connection) -> Sequence[Row[Any]]:
    """Executions not ended, of all workspaces, with their workspace's slug."""
    statement = (
        select(*EXECUTION_COLUMNS, workspaces.c.slug.label("workspace"))
        .join(workspaces, workspaces.c.id == _executions.workspace_id)
        .where(_IS_OPEN)
    )
    return cast("Sequence[Row[Any]]", connection.execute(statement).all())


def last_successes(connection: Connection) -> list[tuple[str, str, int]]:
    """(workspace slug, workflow, unix ns) of each workflow's last completed execution."""
    names = select(_definitions.workspace_id, _definitions.id, _definitions.name, workspaces.c.slug).join(
        workspaces, workspaces.c.id == _definitions.workspace_id
    )
    by_workspace: dict[str, list[Any]] = {}
    for found_row in connection.execute(names):
        by_workspace.setdefault(found_row.workspace_id, []).append(found_row)
    found = []
    for workspace_id, rows in by_workspace.items():
        packs = rollups.totals(connection, workspace_id)
        for row in rows:
            tally = packs[row.id].executions.get("completed") if row.id in packs else None
            if tally is not None and tally.count:
                found.append((row.slug, row.name, tally.last_ns))
    return found


# --- definitions, workspaces, projects ------------------------------------------------------------------------------


def workspace(connection: Connection, *, identifier: str | None = None, slug: str | None = None) -> Row[Any] | None:
    """A workspace by id or by slug, or None."""
    wanted = workspaces.c.id == identifier if identifier is not None else workspaces.c.slug == slug
    return connection.execute(select(workspaces).where(wanted)).first()


def find_workspace(connection: Connection, wanted: str) -> Row[Any] | None:
    """A workspace by slug, else by id, or None."""
    return workspace(connection, slug=wanted) or workspace(connection, identifier=wanted)


def project(connection: Connection, workspace_id: str, wanted: str) -> Row[Any] | None:
    """A workspace's project by id or slug, or None."""
    statement = select(projects).where(
        projects.c.workspace_id == workspace_id, (projects.c.id == wanted) | (projects.c.slug == wanted)
    )
    return connection.execute(statement).first()


def definition(
    connection: Connection, workspace_id: str, *, identifier: str | None = None, name: str | None = None
) -> Row[Any] | None:
    """A workflow of a workspace by id or by name, or None."""
    wanted = _definitions.id == identifier if identifier is not None else _definitions.name == name
    statement = select(workflow_definitions).where(and_(_definitions.workspace_id == workspace_id, wanted))
    return connection.execute(statement).first()


def find_definition(connection: Connection, workspace_id: str, wanted: str) -> Row[Any] | None:
    """A workflow of a workspace by id, else by name, or None."""
    found = definition(connection, workspace_id, identifier=wanted)
    return found if found is not None else definition(connection, workspace_id, name=wanted)


_OVERVIEW: Final = (
    select(
        workflow_definitions,
        rollup_heads.c.head_s,
        rollup_heads.c.revision,
        rollup_heads.c.closed_revision,
        select(func.count())
        .select_from(workflow_executions)
        .where(
            _IS_OPEN,
            _executions.workspace_id.concat("") == _definitions.workspace_id,
            _executions.workflow_id.concat("") == _definitions.id,
            _executions.created_ns + 0 >= bindparam("low"),
        )
        .scalar_subquery()
        .label("open_count"),
    )
    .select_from(
        workflow_definitions.outerjoin(
            rollup_heads,
            and_(
                rollup_heads.c.workspace_id == _definitions.workspace_id, rollup_heads.c.workflow_id == _definitions.id
            ),
        )
    )
    .where(_definitions.workspace_id == bindparam("workspace"))
)
_OVERVIEW_BY_ID: Final = _OVERVIEW.where(_definitions.id == bindparam("wanted"))
_OVERVIEW_BY_NAME: Final = _OVERVIEW.where(_definitions.name == bindparam("wanted"))


def overview(connection: Connection, workspace_id: str, wanted: str, from_ns: int = 0) -> Row[Any] | None:
    """A workflow by id, else by name, with its head (see `rollups`) and ``open_count``, since a time."""
    parameters = {"workspace": workspace_id, "wanted": wanted, "low": from_ns}
    found = connection.execute(_OVERVIEW_BY_ID, parameters).first()
    return found if found is not None else connection.execute(_OVERVIEW_BY_NAME, parameters).first()


def definitions(
    connection: Connection, workspace_id: str, project: str | None, skip: int, limit: int
) -> tuple[Sequence[Row[Any]], int]:
    """A page of a workspace's workflows by name, and how many there are in all."""
    wanted = [_definitions.workspace_id == workspace_id]
    if project is not None:
        wanted.append(_definitions.project == project)
    total = connection.execute(select(func.count()).select_from(workflow_definitions).where(*wanted)).scalar_one()
    page = select(workflow_definitions).where(*wanted).order_by(_definitions.name).offset(skip).limit(limit)
    return connection.execute(page).all(), total
