"""When a step was asked for that was not due yet."""

from alembic import op
from sqlalchemy import BigInteger, Column

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    """Forward."""
    op.add_column("workflow_step_executions", Column("asked_ns", BigInteger))


def downgrade() -> None:
    """Back."""
    op.drop_column("workflow_step_executions", "asked_ns")
