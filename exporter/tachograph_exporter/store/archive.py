"""Reading the archive: executions that were moved from the tables to Parquet files (see `archiving`).

A file holds executions that ended on one UTC day, a row each, with their steps, attempts, reports and lines as lists of
structs; any Parquet reader can query it. ``archived_executions`` lists them and names each one's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
from sqlalchemy import Connection, Row, Table, delete, select

from tachograph.errors import ArchiveError
from tachograph.events import OUTPUT_WRITER
from tachograph_exporter.store.executions import StoredRun, reports_of_output
from tachograph_exporter.store.failure_groups.reading import groups_in
from tachograph_exporter.store.schema import (
    archived_executions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_lines,
    workflow_step_reports,
)
from tachograph_exporter.store.step_lines import archived_line
from tachograph_exporter.store.steps import StoredStep, position
from tachograph_exporter.store.totals import decode_folded

PART_TABLES: Final = {
    "steps": workflow_step_executions,
    "attempts": workflow_step_attempts,
    "reports": workflow_step_reports,
    "lines": workflow_step_lines,
}
"""The tables whose rows are lists in an archived execution, by column name."""

_NO_EXECUTION: Final = dict.fromkeys(column.name for column in workflow_executions.columns)
_NO_STEP: Final = {**dict.fromkeys(StoredStep.__struct_fields__), "dependency_count": 0}
_archived = archived_executions.c
_decode_ids: Final = msgspec.json.Decoder(list[str]).decode


def run(connection: Connection, workspace: str, execution_id: str) -> StoredRun | None:
    """An archived execution of a workspace, or None. Raises `ArchiveError` if its file cannot be read."""
    row = connection.execute(
        select(_archived.archive, _archived.number).where(
            _archived.execution_id == execution_id, _archived.workspace_id == workspace
        )
    ).first()
    if row is None:
        return None
    record = read_records(Path(row.archive), [execution_id]).get(execution_id)
    if record is None:
        raise ArchiveError(f"{row.archive} does not hold it")
    # Files of earlier versions have no lines.
    parts = {name: record.pop(name, None) or [] for name in PART_TABLES}
    steps = []
    for part in parts["steps"]:
        # Files of earlier versions lack newer columns.
        fields = {name: part[name] for name in StoredStep.__struct_fields__ if part.get(name) is not None}
        fields = {**_NO_STEP, **fields}
        if fields["folded"] is not None:
            fields["folded"] = decode_folded(fields["folded"])
        steps.append(StoredStep(**{**fields, "depends_on": _decode_ids(part["depends_on"])}))
    steps.sort(key=position)
    lines = [archived_line(part) for part in parts["lines"]]
    # Files of earlier versions lack the number.
    execution = SimpleNamespace(**{**_NO_EXECUTION, **record, "number": row.number}, archive=row.archive)
    return StoredRun(
        cast("Row[Any]", execution),
        steps,
        cast("Sequence[Row[Any]]", [SimpleNamespace(**part) for part in parts["attempts"]]),
        [
            *cast("Sequence[Row[Any]]", [SimpleNamespace(**part) for part in parts["reports"]]),
            *reports_of_output([line for line in lines if line.writer == OUTPUT_WRITER]),
        ],
        groups_in(connection, [execution_id]).get(execution_id, {}),
        lines,
    )


def among(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Which of these executions are archived."""
    statement = select(_archived.execution_id).where(_archived.execution_id.in_(ids))
    return set(connection.execute(statement).scalars())


def forget_workflow(connection: Connection, workspace: str, workflow_id: str) -> None:
    """Delete a workflow's executions from the archive's index; the files stay as they are."""
    connection.execute(
        delete(archived_executions).where(_archived.workspace_id == workspace, _archived.workflow_id == workflow_id)
    )


def read_records(path: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Those of the executions that a file holds, with their parts, by id. Raises `ArchiveError`."""
    _, pq = load_pyarrow()
    try:
        # Rows are in order of id, so only the row groups that can hold these are read.
        table = pq.read_table(path, filters=[("execution_id", "in", list(ids))])
    except FileNotFoundError:
        raise ArchiveError(f"its file {path} is not there") from None
    except (OSError, ValueError) as error:
        raise ArchiveError(f"its file {path} cannot be read: {error}") from None
    return {record["execution_id"]: record for record in table.to_pylist()}


def load_pyarrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``. Raises `ArchiveError` if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ArchiveError("the archive needs pyarrow: pip install 'tachograph[archive]'") from None
    return pyarrow, pyarrow.parquet


def parquet_schema(pa: Any) -> Any:
    """The schema of an archive file; ``pa`` is ``pyarrow``."""
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}

    def fields(table: Table) -> list[Any]:
        return [pa.field(column.name, types[column.type.python_type]) for column in table.columns]

    parts = [pa.field(name, pa.list_(pa.struct(fields(table)[1:]))) for name, table in PART_TABLES.items()]
    return pa.schema([*fields(workflow_executions), *parts])
