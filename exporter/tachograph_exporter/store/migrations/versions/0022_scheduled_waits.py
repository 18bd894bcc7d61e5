"""How long a step that was asked for a later time waited for that time."""

from alembic import op
from sqlalchemy import BigInteger, Column

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Forward."""
    op.add_column("workflow_step_executions", Column("scheduled_ns", BigInteger))


def downgrade() -> None:
    """Back."""
    op.drop_column("workflow_step_executions", "scheduled_ns")
