"""Silences say how severe and by whom; a notice says what silenced it; archived executions are found by their time."""

from alembic import op
from sqlalchemy import Column, String, text

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Forward."""
    op.add_column("notice_silences", Column("severity", String(16)))
    op.add_column("notice_silences", Column("created_by", String(200), nullable=False, server_default=""))
    op.add_column("notices", Column("silence_id", String(36)))
    op.create_index("ix_archived_workspace", "archived_executions", ["workspace_id", text("created_ns DESC")])


def downgrade() -> None:
    """Back."""
    op.drop_index("ix_archived_workspace", "archived_executions")
    op.drop_column("notices", "silence_id")
    op.drop_column("notice_silences", "created_by")
    op.drop_column("notice_silences", "severity")
