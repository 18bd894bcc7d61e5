"""Reading the store: plain functions of a connection, each a statement or two on an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, Row, Select, and_, bindparam, case, func, select

from tachograph.events import ExecutionStatus
from tachograph.exporter.store.schema import (
    projects,
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
    workspaces,
)

_executions = workflow_executions.c
_steps = workflow_step_executions.c

EXECUTION_COLUMNS: Final = [
    column for column in workflow_executions.columns if column.name not in ("rank", "workspace_id", "critical_path")
]


class StoredStep(msgspec.Struct, gc=False):
    """A step's row. Fields are columns, in the order they are read; ``depends_on`` is decoded."""

    step_id: str
    name: str
    step_type: str
    step_order: int
    repetition: int
    parent_step_id: str | None
    span_id: str
    parent_span_id: str
    depends_on: Sequence[str]
    status: str
    attempt: int
    ready_ns: int | None
    started_ns: int | None
    attempt_started_ns: int | None
    finished_ns: int | None
    dependency_ns: int | None
    queue_ns: int | None
    backoff_ns: int | None
    run_ns: int | None
    error_type: str | None
    error_message: str | None
    error_stack: str | None
    skip_reason: str | None
    inputs: str | None
    output: str | None


STEP_COLUMNS: Final = [workflow_step_executions.c[name] for name in StoredStep.__struct_fields__]
_decode_ids: Final = msgspec.json.Decoder(list[str]).decode

# Built once: making a statement costs as much as reading a hundred rows.
_ONE_EXECUTION: Final = select(*EXECUTION_COLUMNS).where(
    _executions.execution_id == bindparam("id"), _executions.workspace_id == bindparam("workspace")
)
_STEPS: Final = select(*STEP_COLUMNS).where(_steps.execution_id == bindparam("id"))
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


class ExecutionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which executions: of one workflow or of the workspace; by status, start (unix ns) and duration (ns)."""

    workspace: str
    workflow_id: str | None = None
    status: tuple[ExecutionStatus, ...] = ()
    from_ns: int | None = None
    to_ns: int | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None

    def apply(self, statement: Select[Any]) -> Select[Any]:
        """The statement, restricted."""
        statement = statement.where(_executions.workspace_id == self.workspace)
        if self.workflow_id is not None:
            statement = statement.where(_executions.workflow_id == self.workflow_id)
        if self.status:
            statement = statement.where(_executions.status.in_([status.value for status in self.status]))
        if self.from_ns is not None:
            statement = statement.where(_executions.created_ns >= self.from_ns)
        if self.to_ns is not None:
            statement = statement.where(_executions.created_ns < self.to_ns)
        duration = _executions.finished_ns - _executions.started_ns
        if self.min_duration_ns is not None:
            statement = statement.where(duration >= self.min_duration_ns)
        if self.max_duration_ns is not None:
            statement = statement.where(duration <= self.max_duration_ns)
        return statement


def executions(
    connection: Connection, wanted: ExecutionFilter, skip: int, limit: int
) -> tuple[Sequence[Row[Any]], int]:
    """A page of executions, newest first, and how many there are in all."""
    total = connection.execute(wanted.apply(select(func.count()).select_from(workflow_executions))).scalar_one()
    page = wanted.apply(select(*EXECUTION_COLUMNS))
    page = page.order_by(_executions.created_ns.desc(), _executions.execution_id.desc()).offset(skip).limit(limit)
    return connection.execute(page).all(), total


class DurationSummary(NamedTuple):
    """Figures over the finished executions of a workflow; durations in ns, None where nothing ran."""

    total: int
    successful: int
    failed: int
    timed: int
    sum_ns: int | None
    min_ns: int | None
    max_ns: int | None
    by_status: dict[str, int]


def summary(connection: Connection, wanted: ExecutionFilter) -> DurationSummary:
    """Counts and durations of the executions, grouped once by status; durations are those of executions that ended."""
    duration = case(
        (_executions.finished_ns.is_not(None), _executions.finished_ns - _executions.started_ns), else_=None
    )
    statement = wanted.apply(
        select(
            _executions.status,
            func.count(),
            func.sum(duration),
            func.min(duration),
            func.max(duration),
            func.count(duration),
        )
    ).group_by(_executions.status)
    rows = connection.execute(statement).all()
    by_status = {row[0]: row[1] for row in rows}
    timed = [row for row in rows if row[2] is not None]
    return DurationSummary(
        total=sum(by_status.values()),
        successful=by_status.get(ExecutionStatus.COMPLETED, 0),
        failed=sum(by_status.get(status, 0) for status in _UNSUCCESSFUL),
        timed=sum(row[5] for row in rows),
        sum_ns=sum(int(row[2]) for row in timed) if timed else None,
        min_ns=min((row[3] for row in timed), default=None),
        max_ns=max((row[4] for row in timed), default=None),
        by_status=by_status,
    )


_UNSUCCESSFUL: Final = (ExecutionStatus.FAILED, ExecutionStatus.TIMEOUT, ExecutionStatus.LOST)


def stats(connection: Connection, workspace: str) -> list[tuple[str, str, str, int, int | None]]:
    """(workflow id, name, status, count, newest start ns) over all executions of a workspace."""
    statement = (
        select(
            _executions.workflow_id,
            func.max(_executions.workflow),
            _executions.status,
            func.count(),
            func.max(_executions.started_ns),
        )
        .where(_executions.workspace_id == workspace)
        .group_by(_executions.workflow_id, _executions.status)
    )
    return [tuple(row) for row in connection.execute(statement)]


def open_executions(connection: Connection) -> Sequence[Row[Any]]:
    """Executions not ended, of all workspaces, with their workspace's slug."""
    statement = (
        select(*EXECUTION_COLUMNS, workspaces.c.slug.label("workspace"))
        .join(workspaces, workspaces.c.id == _executions.workspace_id)
        .where(_executions.status.in_([ExecutionStatus.PENDING.value, ExecutionStatus.RUNNING.value]))
    )
    return cast("Sequence[Row[Any]]", connection.execute(statement).all())


def steps_of(connection: Connection, execution_id: str) -> list[StoredStep]:
    """The steps of one execution, in the order of the definition, then by when they were due."""
    result = connection.execute(_STEPS, {"id": execution_id})
    # The driver's own tuples: a timeline of ten thousand steps is read in half the time.
    steps = [StoredStep(*row) for row in cast(Any, result.cursor).fetchall()]
    result.close()
    for step in steps:
        text = cast(str, step.depends_on)
        step.depends_on = () if text == "[]" else _decode_ids(text)
    steps.sort(key=_position)
    return steps


def _position(step: StoredStep) -> tuple[int, int, str]:
    return (step.step_order, step.started_ns or step.ready_ns or step.finished_ns or 0, step.step_id)


def last_successes(connection: Connection) -> list[tuple[str, str, int]]:
    """(workspace slug, workflow, unix ns) of each workflow's last completed execution."""
    statement = (
        select(workspaces.c.slug, _executions.workflow, func.max(_executions.finished_ns))
        .join(workspaces, workspaces.c.id == _executions.workspace_id)
        .where(_executions.status == ExecutionStatus.COMPLETED.value, _executions.finished_ns.is_not(None))
        .group_by(workspaces.c.slug, _executions.workflow)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(statement)]


# --- definitions, workspaces, projects ------------------------------------------------------------------------------

_definitions = workflow_definitions.c


def workspace(connection: Connection, *, identifier: str | None = None, slug: str | None = None) -> Row[Any] | None:
    """A workspace by id or by slug, or None."""
    wanted = workspaces.c.id == identifier if identifier is not None else workspaces.c.slug == slug
    return connection.execute(select(workspaces).where(wanted)).first()


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
