"""Runs inside runs, dependencies that are counted, not named, and time that nothing accounts for."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Forward."""
    for table in ("workflow_executions", "archived_executions"):
        op.add_column(table, Column("parent_execution_id", String(36)))
        op.add_column(table, Column("parent_step_id", String(36)))
    op.add_column("workflow_step_executions", Column("child_execution_id", String(36)))
    op.add_column("workflow_step_executions", Column("dependency_count", Integer, nullable=False, server_default="0"))
    op.add_column("workflow_step_executions", Column("unaccounted_ns", BigInteger))


def downgrade() -> None:
    """Back."""
    for name in ("unaccounted_ns", "dependency_count", "child_execution_id"):
        op.drop_column("workflow_step_executions", name)
    for table in ("workflow_executions", "archived_executions"):
        op.drop_column(table, "parent_step_id")
        op.drop_column(table, "parent_execution_id")
