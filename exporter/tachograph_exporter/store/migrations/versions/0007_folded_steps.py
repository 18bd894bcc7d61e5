"""Repetitions of a step that share a row."""

from alembic import op
from sqlalchemy import BigInteger, Column, Text

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Forward."""
    op.add_column("workflow_step_executions", Column("folded", Text))
    op.add_column("workflow_step_executions", Column("folded_count", BigInteger))


def downgrade() -> None:
    """Back."""
    op.drop_column("workflow_step_executions", "folded_count")
    op.drop_column("workflow_step_executions", "folded")
