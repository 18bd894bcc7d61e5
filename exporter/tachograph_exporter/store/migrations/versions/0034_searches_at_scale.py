"""Long traces and executions, failed ones, and executions by the values of their inputs, each found by an index."""

import time
from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String, text

revision = "0034"
down_revision = "0033"

TABLE = "input_values"
_SINCE = "input_values_since"
_UPGRADE_NS = 3_600 * 10**9
"""How long services of earlier versions, which note no values, may still store executions."""
_HAS_ERROR = text("error_type IS NOT NULL OR error_message IS NOT NULL")
_HAS_FAILED = text("error_type IS NOT NULL OR attempt > 1")
_INDEXES: tuple[tuple[str, str, list[Any], Any], ...] = (
    ("ix_executions_failed", "workflow_executions", ["workspace_id", text("created_ns DESC")], _HAS_ERROR),
    (
        "ix_executions_length",
        "workflow_executions",
        [
            "workspace_id",
            text("(created_ns >> 40)"),
            text("(coalesce(finished_ns, 9223372036854775807) - created_ns)"),
        ],
        None,
    ),
    ("ix_archived_failed", "archived_executions", ["workspace_id", text("created_ns DESC")], _HAS_ERROR),
    ("ix_steps_failed", "workflow_step_executions", ["execution_id"], _HAS_FAILED),
    ("ix_traces_length", "traces", ["workspace_id", text("(start_ns >> 40)"), text("(end_ns - start_ns)")], None),
)


def upgrade() -> None:
    """Forward. Of executions that are there, no values are noted."""
    collation = "C" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        TABLE,
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("token", BigInteger, primary_key=True, autoincrement=False),
        Column("created_ns", BigInteger, primary_key=True, autoincrement=False),
        Column("execution_id", String(36, collation=collation), primary_key=True),
        **({} if collation else {"sqlite_with_rowid": False}),
    )
    for name, table, columns, where in _INDEXES:
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
    now_ns = time.time_ns()
    op.execute(
        text(
            "INSERT INTO store_state (name, value, updated_ns) "
            "SELECT :name, :since, :now WHERE EXISTS (SELECT 1 FROM workflow_executions) "
            "OR EXISTS (SELECT 1 FROM archived_executions)"
        ).bindparams(name=_SINCE, since=str(now_ns + _UPGRADE_NS), now=now_ns)
    )


def downgrade() -> None:
    """Back. Searches read the newest again."""
    for name, table, _, _ in reversed(_INDEXES):
        op.drop_index(name, table)
    op.drop_table(TABLE)
    op.execute(text("DELETE FROM store_state WHERE name = :name").bindparams(name=_SINCE))
