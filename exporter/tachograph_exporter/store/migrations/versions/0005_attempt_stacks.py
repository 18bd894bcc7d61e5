"""The stack of every failed attempt, as its exported span has it."""

from alembic import op
from sqlalchemy import Column, Text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Forward."""
    op.add_column("workflow_step_attempts", Column("error_stack", Text))


def downgrade() -> None:
    """Back."""
    op.drop_column("workflow_step_attempts", "error_stack")
