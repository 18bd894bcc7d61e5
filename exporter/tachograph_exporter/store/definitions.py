"""Rows of workflow definitions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    and_,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.identity import ExecutionRef, new_id, workspace_id
from tachograph.workflow.definition import Workflow
from tachograph.workflow.document import read, to_json
from tachograph_exporter.store import expectations, locking
from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.schema import (
    projects,
    rollup_heads,
    workflow_definitions,
    workflow_executions,
)
from tachograph_exporter.store.series import rows as series_rows
from tachograph_exporter.store.workspaces import add_project, add_workspace

_executions = workflow_executions.c
_definitions = workflow_definitions.c
DEFINITION: Final = "definition"
"""The place (see `store.expectations`) whose word a registered definition is."""


def definition(
    connection: Connection, workspace_id: str, *, identifier: str | None = None, name: str | None = None
) -> Row[Any] | None:
    """A workflow of a workspace by id or by name, or None."""
    matches = _definitions.id == identifier if identifier is not None else _definitions.name == name
    statement = select(workflow_definitions).where(_definitions.workspace_id == workspace_id, matches)
    return connection.execute(statement).first()


def find_definition(connection: Connection, workspace_id: str, id_or_name: str) -> Row[Any] | None:
    """A workflow of a workspace by id, else by name, or None."""
    row = definition(connection, workspace_id, identifier=id_or_name)
    return row if row is not None else definition(connection, workspace_id, name=id_or_name)


_OVERVIEW: Final = (
    select(
        workflow_definitions,
        rollup_heads.c.head_s,
        rollup_heads.c.revision,
        rollup_heads.c.closed_revision,
        select(func.count())
        .select_from(workflow_executions)
        .where(
            IS_OPEN,
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
_OVERVIEW_BY_ID: Final = _OVERVIEW.where(_definitions.id == bindparam("id_or_name"))
_OVERVIEW_BY_NAME: Final = _OVERVIEW.where(_definitions.name == bindparam("id_or_name"))


def overview(connection: Connection, workspace_id: str, id_or_name: str, from_ns: int = 0) -> Row[Any] | None:
    """A workflow by id, else by name, or None: its definition, rollup head, and ``open_count``.

    ``open_count`` is the number of open executions created since ``from_ns``.
    """
    parameters = {"workspace": workspace_id, "id_or_name": id_or_name, "low": from_ns}
    row = connection.execute(_OVERVIEW_BY_ID, parameters).first()
    return row if row is not None else connection.execute(_OVERVIEW_BY_NAME, parameters).first()


def definitions(
    connection: Connection,
    workspace_id: str,
    project: str | None,
    skip: int,
    limit: int,
    *,
    is_active: bool | None = None,
) -> tuple[Sequence[Row[Any]], int]:
    """(a page of a workspace's workflows by name, the number of all of them)."""
    conditions = [_definitions.workspace_id == workspace_id]
    if is_active is not None:
        conditions.append(_definitions.is_active == is_active)
    if project is not None:
        conditions.append(_definitions.project == project)
    total = connection.execute(select(func.count()).select_from(workflow_definitions).where(*conditions)).scalar_one()
    page = select(workflow_definitions).where(*conditions).order_by(_definitions.name).offset(skip).limit(limit)
    return connection.execute(page).all(), total


def names(connection: Connection, workspace_id: str, limit: int) -> Sequence[Row[Any]]:
    """``id``, ``name`` and ``is_runnable`` of a workspace's workflows, by name."""
    statement = (
        select(_definitions.id, _definitions.name, _definitions.document.is_not(None).label("is_runnable"))
        .where(_definitions.workspace_id == workspace_id)
        .order_by(_definitions.name)
        .limit(limit)
    )
    return connection.execute(statement).all()


def definition_values(workflow: Workflow, now_ns: int) -> dict[str, Any]:
    """The columns of a definition's row that its document determines."""
    return {
        "name": workflow.name,
        "description": workflow.description,
        "version": workflow.version,
        "document": to_json(workflow).decode(),
        "updated_ns": now_ns,
    }


def register(
    connection: Connection,
    workspace_id: str,
    project: str,
    workflow: Workflow,
    now_ns: int,
    *,
    is_active: bool | None = None,
) -> Row[Any] | None:
    """Store a new definition. Returns its row, or None if the workspace has a definition of this name.

    A workflow known only from recorded runs keeps its id and gets this definition. It is active unless it says that it
    is not.
    """
    # Of two that find the workflow without a definition at the same time, one would replace the other's.
    locking.lock(connection)
    values = {"workspace_id": workspace_id, "project": project, **definition_values(workflow, now_ns)}
    values["is_active"] = is_active is not False
    row = definition(connection, workspace_id, name=workflow.name)
    if row is None:
        # As parameters: a statement is kept with the values that are in it.
        connection.execute(insert(workflow_definitions), {"id": new_id(now_ns), "created_ns": now_ns, **values})
    elif row.document is None:
        connection.execute(update(workflow_definitions).where(_definitions.id == row.id), values)
    else:
        return None
    row = definition(connection, workspace_id, name=workflow.name)
    if row is not None:
        _announce(connection, row, workflow, now_ns)
    return row


def _announce(connection: Connection, row: Row[Any], workflow: Workflow, now_ns: int) -> None:
    """Let the series of a workflow exist before anything has happened, and what its definition expects."""
    series_rows.announce(connection, (row.workspace_id, row.id), [step.name for step in workflow.steps], now_ns)
    if workflow.expectation is not None:
        expectations.say(connection, row.workspace_id, row.name, DEFINITION, workflow.expectation, now_ns)
    else:
        expectations.forget(connection, row.workspace_id, row.name, (DEFINITION,))


def change(
    connection: Connection, definition_id: str, workflow: Workflow, now_ns: int, *, is_active: bool | None = None
) -> None:
    """Replace a stored definition; its id, project and creation time stay, and whether it is active if it is None."""
    locking.lock(connection)
    values = definition_values(workflow, now_ns)
    if is_active is not None:
        values["is_active"] = is_active
    before = connection.execute(select(workflow_definitions).where(_definitions.id == definition_id)).first()
    if before is not None and before.name != workflow.name:
        expectations.forget(connection, before.workspace_id, before.name, (DEFINITION,))
    connection.execute(update(workflow_definitions).where(_definitions.id == definition_id), values)
    row = connection.execute(select(workflow_definitions).where(_definitions.id == definition_id)).first()
    if row is not None:
        _announce(connection, row, workflow, now_ns)


def set_active(connection: Connection, definition_id: str, *, is_active: bool, now_ns: int) -> None:
    """Say whether the API may execute a workflow."""
    values = {"is_active": is_active, "updated_ns": now_ns}
    connection.execute(update(workflow_definitions).where(_definitions.id == definition_id).values(values))


_EXISTING: Final = select(_definitions.id).where(_definitions.id.in_(bindparam("ids", expanding=True)))


def existing(connection: Connection, ids: Collection[str]) -> set[str]:
    """Which of these workflows have a row."""
    return set(connection.execute(_EXISTING, {"ids": sorted(ids)}).scalars())


def has_project(connection: Connection, ref: ExecutionRef) -> bool:
    """Whether the project of a recorded execution has a row."""
    is_its = (projects.c.workspace_id == workspace_id(ref.workspace)) & (projects.c.slug == ref.project)
    return connection.execute(select(projects.c.id).where(is_its)).first() is not None


def register_recorded(connection: Connection, ref: ExecutionRef, now_ns: int) -> str:
    """Ensure that the workspace, project and workflow of a recorded execution have rows.

    Returns the id of the workflow that it belongs to: its own, or that of the workspace's workflow of the same name. A
    program that only knows a name derives an id from it, and a deleted workflow may be back under a new id.
    """
    locking.lock(connection)
    workspace = workspace_id(ref.workspace)
    add_workspace(connection, ref.workspace, now_ns)
    add_project(connection, ref.workspace, ref.project, now_ns)
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(workflow_definitions).values(
        id=ref.workflow_id,
        workspace_id=workspace,
        project=ref.project,
        name=ref.workflow,
        version=ref.version,
        created_ns=now_ns,
        updated_ns=now_ns,
    )
    if connection.execute(statement.on_conflict_do_nothing()).rowcount == 1:
        series_rows.announce(connection, (workspace, ref.workflow_id), (), now_ns)
        return ref.workflow_id
    if existing(connection, [ref.workflow_id]):
        return ref.workflow_id
    row = definition(connection, workspace, name=ref.workflow)
    return str(row.id) if row is not None else ref.workflow_id


def register_or_change(
    connection: Connection,
    workspace_id: str,
    project: str,
    workflow: Workflow,
    now_ns: int,
    *,
    skip_existing: bool,
    is_active: bool | None = None,
) -> str:
    """Store a definition, replacing the one of its name. Returns the outcome: created, changed, unchanged or skipped.

    With ``skip_existing`` a definition that exists is not replaced. ``is_active``: see `register` and `change`.
    """
    locking.lock(connection)
    row = definition(connection, workspace_id, name=workflow.name)
    if row is None:
        register(connection, workspace_id, project, workflow, now_ns, is_active=is_active)
        return "created"
    if row.document is not None and skip_existing:
        return "skipped, already registered"
    # Compared as definitions: an earlier version wrote fewer fields.
    is_same = row.document is not None and read(row.document)[0] == workflow
    if is_same and is_active in (None, row.is_active):
        return "unchanged"
    change(connection, row.id, workflow, now_ns, is_active=is_active)
    return "changed"
