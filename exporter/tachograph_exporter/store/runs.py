"""One execution with everything stored of it, wherever it is: in the tables or in the archive."""

from __future__ import annotations

from sqlalchemy import Connection

from tachograph.errors import ArchiveError, ExecutionNotFound
from tachograph_exporter.store import archive, executions
from tachograph_exporter.store.executions import StoredRun


def find_run(connection: Connection, workspace_id: str, execution_id: str) -> StoredRun:
    """An execution of a workspace, from the tables, else from the archive.

    Raises `ExecutionNotFound`; `ArchiveError` when it is archived and its file cannot be read.
    """
    try:
        run = executions.run(connection, workspace_id, execution_id) or archive.run(
            connection, workspace_id, execution_id
        )
    except ArchiveError as error:
        raise ArchiveError(f'execution "{execution_id}" is archived: {error}') from None
    if run is None:
        raise ExecutionNotFound(execution_id)
    return run
