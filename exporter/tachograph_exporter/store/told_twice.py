"""Executions that an engine reports, and that were read from its spans before it did.

Spans of a run that is reported make no execution of their own. But they may be there first: of an engine that is
followed from outside, its own spans may come seconds before. Then their trace is read again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from tachograph_exporter.store import locking
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.schema import EXECUTION_ROWS, traces, workflow_executions
from tachograph_exporter.store.trace_groups import traces_beside

_CHUNK: Final = 500
_traces = traces.c
_executions = workflow_executions.c
_WORKSPACE: Final = EXECUTION_ROWS.columns.index("workspace_id")
_TRACE: Final = EXECUTION_ROWS.columns.index("trace_id")
_WITH_SPANS: Final = keyed(
    select(_traces.trace_id).where(_traces.workspace_id == bindparam("workspace")), traces.c.trace_id
)
_OF_SPANS: Final = select(_executions.execution_id).where(
    _executions.trace_id.in_(bindparam("traces", expanding=True)),
    _executions.workspace_id == bindparam("workspace"),
    _executions.process == INGESTED_PROCESS,
).limit(1)  # fmt: skip
_READ_AGAIN: Final = (
    update(traces)
    .where(_traces.workspace_id == bindparam("workspace"), _traces.trace_id == bindparam("trace"))
    .values(due_ns=bindparam("now"))
)


def read_again(
    connection: Connection, rows: Mapping[str, tuple[Any, ...]], reported: Collection[str], now_ns: int
) -> None:
    """Make the traces due of which spans made executions. ``rows``: executions by id; of these the reported ones."""
    by_workspace: dict[str, set[str]] = {}
    for execution_id, row in rows.items():
        if execution_id in reported:
            by_workspace.setdefault(row[_WORKSPACE], set()).add(row[_TRACE])
    for workspace_id, ids in by_workspace.items():
        ordered = sorted(ids)
        for i in range(0, len(ordered), _CHUNK):
            parameters = {"workspace": workspace_id, KEYS: ordered[i : i + _CHUNK]}
            with_spans = connection.execute(_WITH_SPANS.of(connection.dialect), parameters).scalars().all()
            for trace_id in with_spans:
                told_by = [*traces_beside(connection, workspace_id, trace_id)]
                if connection.execute(_OF_SPANS, {"workspace": workspace_id, "traces": told_by}).first() is not None:
                    # Whoever reads a trace again changes its row too, and then wants what this transaction has.
                    locking.lock(connection)
                    connection.execute(_READ_AGAIN, {"workspace": workspace_id, "trace": trace_id, "now": now_ns})
