"""When an execution of each workflow last failed, as a series of ``/metrics``."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
from alembic import op
from sqlalchemy import BigInteger, LargeBinary, String, bindparam, column, func, insert, select, table, update

revision = "0021"
down_revision = "0019"

_FAILURE = "failure"
_executions = table(
    "workflow_executions",
    column("workspace_id", String),
    column("workflow_id", String),
    column("status", String),
    column("finished_ns", BigInteger),
)
_state = table("store_state", column("name", String), column("value", String))
_deltas = table(
    "series_deltas",
    column("id", BigInteger),
    column("workspace_id", String),
    column("workflow_id", String),
    column("delta", LargeBinary),
)
_series = table(
    "workflow_series",
    column("workspace_id", String),
    column("workflow_id", String),
    column("step", String),
    column("series", LargeBinary),
)


def upgrade() -> None:
    """Forward: count what failed before, so that an upgrade in the morning alerts about the night."""
    connection = op.get_bind()
    is_stale = (_state.c.name == "series") & (_state.c.value == "stale")
    if connection.execute(select(_state.c.name).where(is_stale)).first() is not None:
        return  # All series are counted from the executions in any case.
    columns = _executions.c
    last = (
        select(columns.workspace_id, columns.workflow_id, func.max(columns.finished_ns))
        .where(columns.status.in_(("failed", "timeout", "lost")), columns.finished_ns > 0)
        .group_by(columns.workspace_id, columns.workflow_id)
    )
    deltas = [
        {
            "workspace_id": workspace,
            "workflow_id": workflow,
            "delta": msgspec.msgpack.encode([time.time(), {"": {_FAILURE: failed_ns}}]),
        }
        for workspace, workflow, failed_ns in connection.execute(last).all()
    ]
    if deltas:
        connection.execute(insert(_deltas), deltas)


def downgrade() -> None:
    """Back: earlier versions cannot read this series."""
    connection = op.get_bind()

    def without_it(encoded: bytes, forget: Callable[[Any], None]) -> bytes:
        try:
            document = msgspec.msgpack.decode(encoded, strict=False)
            forget(document)
        except (msgspec.MsgspecError, ValueError, TypeError, LookupError, AttributeError):
            return encoded  # Damaged before.
        return msgspec.msgpack.encode(document)

    def forget_in_delta(document: Any) -> None:
        document[1].get("", {}).pop(_FAILURE, None)

    def forget_in_row(document: Any) -> None:
        document.pop(_FAILURE, None)

    for number, delta in connection.execute(select(_deltas.c.id, _deltas.c.delta)).all():
        kept = without_it(delta, forget_in_delta)
        if kept != delta:
            connection.execute(update(_deltas).where(_deltas.c.id == number).values(delta=kept))
    of_executions = select(_series.c.workspace_id, _series.c.workflow_id, _series.c.series).where(_series.c.step == "")
    change = (
        update(_series)
        .where(
            _series.c.workspace_id == bindparam("of_workspace"),
            _series.c.workflow_id == bindparam("of_workflow"),
            _series.c.step == "",
        )
        .values(series=bindparam("kept"))
    )
    for workspace, workflow, series in connection.execute(of_executions).all():
        kept = without_it(series, forget_in_row)
        if kept != series:
            connection.execute(change, {"of_workspace": workspace, "of_workflow": workflow, "kept": kept})
