"""What steps used of the machine is counted in rollups and series, of steps that end from now on."""

import time
from typing import Any

import msgspec
from alembic import op
from sqlalchemy import BigInteger, LargeBinary, String, bindparam, column, delete, insert, select, table, update

revision = "0028"
down_revision = "0025"

_SINCE = "resources_counted_since_ns"
_CODES = ("cpu", "memory")
_executions = table("workflow_executions", column("execution_id", String))
_state = table("store_state", column("name", String), column("value", String), column("updated_ns", BigInteger))
_deltas = table("series_deltas", column("id", BigInteger), column("delta", LargeBinary))
_series = table(
    "workflow_series",
    column("workspace_id", String),
    column("workflow_id", String),
    column("step", String),
    column("series", LargeBinary),
)


def upgrade() -> None:
    """Forward: what was counted before says nothing of it, and is not counted again."""
    connection = op.get_bind()
    now = time.time_ns()
    is_new = connection.execute(select(_executions.c.execution_id).limit(1)).first() is None
    connection.execute(insert(_state), {"name": _SINCE, "value": "0" if is_new else str(now), "updated_ns": now})


def downgrade() -> None:
    """Back: earlier versions cannot read these series."""
    connection = op.get_bind()
    connection.execute(delete(_state).where(_state.c.name == _SINCE))
    for number, delta in connection.execute(select(_deltas.c.id, _deltas.c.delta)).all():
        kept = _without(delta, lambda document: list(document[1].values()))
        if kept != delta:
            connection.execute(update(_deltas).where(_deltas.c.id == number).values(delta=kept))
    of = _series.c
    is_row = (
        (of.workspace_id == bindparam("w")) & (of.workflow_id == bindparam("f")) & (of.step == bindparam("s"))
    )  # fmt: skip
    change = update(_series).where(is_row).values(series=bindparam("kept"))
    rows = connection.execute(select(of.workspace_id, of.workflow_id, of.step, of.series)).all()
    for workspace, workflow, step, series in rows:
        kept = _without(series, lambda document: [document])
        if kept != series:
            connection.execute(change, {"w": workspace, "f": workflow, "s": step, "kept": kept})


def _without(encoded: bytes, parts: Any) -> bytes:
    try:
        document = msgspec.msgpack.decode(encoded, strict=False)
        dropped = [part.pop(code, part) is not part for part in parts(document) for code in _CODES]
    except (msgspec.MsgspecError, ValueError, TypeError, LookupError, AttributeError):
        return encoded  # Damaged before.
    return msgspec.msgpack.encode(document) if any(dropped) else encoded
