"""What an engine calls an instance of a mapped step."""

from alembic import op
from sqlalchemy import Column, String

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Forward."""
    op.add_column("workflow_step_executions", Column("map_index", String(200)))


def downgrade() -> None:
    """Back."""
    op.drop_column("workflow_step_executions", "map_index")
