"""Failures by cause. What has failed before is grouped later, by the service, so that this is quick."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0023"

_executions = sa.table("workflow_executions", sa.column("execution_id", sa.String))
_state = sa.table(
    "store_state",
    sa.column("name", sa.String),
    sa.column("value", sa.String),
    sa.column("updated_ns", sa.BigInteger),
)
_deltas = sa.table("series_deltas", sa.column("id", sa.BigInteger), sa.column("delta", sa.LargeBinary))
_series = sa.table(
    "workflow_series",
    sa.column("workspace_id", sa.String),
    sa.column("workflow_id", sa.String),
    sa.column("step", sa.String),
    sa.column("series", sa.LargeBinary),
)
_CODE = "failures"
_UNGROUPED, _COUNTED_SINCE = "failures_ungrouped", "failures_counted_since_ns"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "failure_groups",
        sa.Column("workspace_id", sa.String(36), primary_key=True),
        sa.Column("group_id", sa.String(16), primary_key=True),
        sa.Column("version", sa.SmallInteger, nullable=False),
        sa.Column("error_type", sa.String(300), nullable=False),
        sa.Column("template", sa.Text, nullable=False),
        sa.Column("frames", sa.Text, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("first_ns", sa.BigInteger),
        sa.Column("last_ns", sa.BigInteger),
        sa.Column("state", sa.String(16), nullable=False, server_default="open"),
        sa.Column("state_ns", sa.BigInteger),
        sa.Column("state_by", sa.String(200), nullable=False, server_default=""),
        sa.Column("note", sa.Text, nullable=False, server_default=""),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "failure_occurrences",
        sa.Column("execution_id", sa.String(36), primary_key=True),
        sa.Column("step_id", sa.String(36), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("group_id", sa.String(16), nullable=False),
        sa.Column("workflow_id", sa.String(36), nullable=False),
        sa.Column("workflow_version", sa.String(200), nullable=False),
        sa.Column("step", sa.String(200), nullable=False),
        sa.Column("parent_step_id", sa.String(36)),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("is_origin", sa.SmallInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    columns = ["workspace_id", "time_ns", "group_id", "workflow_id", "kind", "is_origin", "count"]
    op.create_index("ix_failures_time", "failure_occurrences", columns)
    op.create_index("ix_failures_group", "failure_occurrences", ["workspace_id", "group_id", "time_ns"])
    op.create_index("ix_failures_workflow", "failure_occurrences", ["workspace_id", "workflow_id"])
    connection = op.get_bind()
    if connection.execute(sa.select(_executions.c.execution_id).limit(1)).first() is not None:
        now_ns = time.time_ns()
        rows = [(_UNGROUPED, ""), (_COUNTED_SINCE, str(now_ns))]
        connection.execute(
            sa.insert(_state), [{"name": name, "value": value, "updated_ns": now_ns} for name, value in rows]
        )


def downgrade() -> None:
    """Back: earlier versions cannot read the series of groups."""
    op.drop_table("failure_occurrences")
    op.drop_table("failure_groups")
    connection = op.get_bind()
    connection.execute(sa.delete(_state).where(_state.c.name.in_((_UNGROUPED, _COUNTED_SINCE))))

    def without_them(encoded: bytes, read: Callable[[Any], Any]) -> bytes:
        try:
            document = msgspec.msgpack.decode(encoded, strict=False)
            by_code = read(document)
            for code in [code for code in by_code if code.partition("\x1f")[0] == _CODE]:
                del by_code[code]
        except (msgspec.MsgspecError, ValueError, TypeError, LookupError, AttributeError):
            return encoded  # Damaged before.
        return msgspec.msgpack.encode(document)

    for number, delta in connection.execute(sa.select(_deltas.c.id, _deltas.c.delta)).all():
        kept = without_them(delta, lambda document: document[1].get("", {}))
        if kept != delta:
            connection.execute(sa.update(_deltas).where(_deltas.c.id == number).values(delta=kept))
    of_executions = sa.select(_series.c.workspace_id, _series.c.workflow_id, _series.c.series)
    for workspace, workflow, series in connection.execute(of_executions.where(_series.c.step == "")).all():
        kept = without_them(series, lambda document: document)
        if kept != series:
            of_workflow = (_series.c.workspace_id == workspace) & (_series.c.workflow_id == workflow)
            connection.execute(sa.update(_series).where(of_workflow, _series.c.step == "").values(series=kept))
