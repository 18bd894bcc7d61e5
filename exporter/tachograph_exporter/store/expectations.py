"""Rows of what is expected of workflows, by the place that says so (see `expectations.limits.SOURCES`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, delete, select

from tachograph.expectation import Expectation, merged
from tachograph.names import clean_name
from tachograph_exporter.store import locking
from tachograph_exporter.store.inserting import upsert
from tachograph_exporter.store.schema import workflow_expectations

ANY: Final = ""
"""The workspace of what counts in all workspaces, and the workflow of what counts for all."""
ENGINE: Final = "engine"
ENGINES: Final = ("airflow", "apscheduler", "celery beat")
"""Engines whose own schedules are taken over. `ENGINE` stands for any other."""
TAKEN_OVER: Final = (ENGINE, *ENGINES)
CODE: Final = "code"
FILE: Final = "file"
DEFAULT: Final = "default"
API: Final = "api"

_rows = workflow_expectations.c


class Said(NamedTuple):
    """What a place says of a workflow (a name), and since when (unix ns) it says so of the schedule."""

    workspace_id: str
    workflow: str
    source: str
    expectation: Expectation
    since_ns: int


def said(connection: Connection, workspace_id: str | None = None, workflow: str | None = None) -> list[Said]:
    """What places say, in all workspaces or in one (and what counts in all), of all workflows or one."""
    statement = select(_rows.workspace_id, _rows.workflow, _rows.source, _rows.document, _rows.since_ns)
    if workspace_id is not None:
        statement = statement.where(_rows.workspace_id.in_([ANY, workspace_id]))
    if workflow is not None:
        statement = statement.where(_rows.workflow.in_([ANY, workflow]))
    return [
        Said(workspace, name, source, expectation, since)
        for workspace, name, source, document, since in connection.execute(statement)
        if (expectation := decoded(document)) is not None
    ]


def decoded(document: str) -> Expectation | None:
    """A stored document; None if a newer version wrote something else."""
    try:
        return msgspec.json.decode(document, type=Expectation)
    except msgspec.DecodeError:
        return None


def say(
    connection: Connection, workspace_id: str, workflow: str, source: str, expectation: Expectation, now_ns: int
) -> bool:
    """Store what a place says of a workflow. Returns whether that is news."""
    workflow = clean_name(workflow) if workflow else ANY
    document = msgspec.json.encode(expectation).decode()
    where = (_rows.workspace_id == workspace_id) & (_rows.workflow == workflow) & (_rows.source == source)
    row = connection.execute(select(_rows.document, _rows.since_ns).where(where)).first()
    if row is not None and row.document == document:
        return False
    before = decoded(row.document) if row is not None else None
    # Another deadline does not excuse a start that is missing.
    is_same = before is not None and (before.schedule, before.timezone) == (expectation.schedule, expectation.timezone)
    values = {
        "workspace_id": workspace_id, "workflow": workflow, "source": source, "document": document,
        "since_ns": row.since_ns if row is not None and is_same else now_ns, "updated_ns": now_ns,
    }  # fmt: skip
    connection.execute(upsert(connection.dialect, workflow_expectations), values)
    return True


def say_more(
    connection: Connection, workspace_id: str, workflow: str, source: str, expectation: Expectation, now_ns: int
) -> bool:
    """Store what code says of a workflow or of some of its steps, beside what it said of others before."""
    where = (_rows.workspace_id == workspace_id) & (_rows.workflow == clean_name(workflow)) & (_rows.source == source)
    document = connection.execute(select(_rows.document).where(where)).scalar()
    before = decoded(document) if document is not None else None
    return say(connection, workspace_id, workflow, source, merged(before, expectation), now_ns)


def forget(connection: Connection, workspace_id: str, workflow: str, sources: Iterable[str]) -> bool:
    """Delete what these places say of a workflow. Returns whether they said anything."""
    where = (_rows.workspace_id == workspace_id) & (_rows.workflow == workflow) & _rows.source.in_(list(sources))
    return connection.execute(delete(workflow_expectations).where(where)).rowcount > 0


def replace_file(
    connection: Connection, default: Expectation, workflows: Mapping[tuple[str, str], Expectation], now_ns: int
) -> None:
    """Store what a file says, and delete what it no longer says; by (workspace id, workflow)."""
    locking.lock(connection)
    say(connection, ANY, ANY, DEFAULT, default, now_ns)
    statement = select(_rows.workspace_id, _rows.workflow).where(_rows.source == FILE)
    for workspace_id, workflow in connection.execute(statement).all():
        if (workspace_id, workflow) not in workflows:
            forget(connection, workspace_id, workflow, (FILE,))
    for (workspace_id, workflow), expectation in workflows.items():
        say(connection, workspace_id, workflow, FILE, expectation, now_ns)
