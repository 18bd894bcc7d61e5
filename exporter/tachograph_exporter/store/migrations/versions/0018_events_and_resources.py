"""Who sends events over HTTP, and what attempts used of the machine."""

from alembic import op
from sqlalchemy import BigInteger, Column, String, Text

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "event_senders",
        Column("workspace_id", String(36), primary_key=True),
        Column("sender", String(64), primary_key=True),
        Column("sequence", BigInteger, nullable=False),
        Column("seen_ns", BigInteger, nullable=False),
    )
    op.create_index("ix_event_senders_seen", "event_senders", ["seen_ns"])
    op.add_column("workflow_step_executions", Column("resources", Text))
    op.add_column("workflow_step_attempts", Column("resources", Text))


def downgrade() -> None:
    """Back."""
    op.drop_column("workflow_step_attempts", "resources")
    op.drop_column("workflow_step_executions", "resources")
    op.drop_table("event_senders")
