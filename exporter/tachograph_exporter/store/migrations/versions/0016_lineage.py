"""OpenLineage events, and the traces that their runs are in."""

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, SmallInteger, String, text

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "lineage_events",
        Column("workspace_id", String(36), primary_key=True),
        Column("trace_id", String(32), primary_key=True),
        Column("event_id", String(32), primary_key=True),
        Column("time_ns", BigInteger, nullable=False),
        Column("is_read", SmallInteger, nullable=False),
        Column("summary", LargeBinary, nullable=False),
        Column("payload", LargeBinary, nullable=False),
    )
    is_unread = text("is_read = 0")
    op.create_index(
        "ix_lineage_unread",
        "lineage_events",
        ["workspace_id", "trace_id"],
        sqlite_where=is_unread,
        postgresql_where=is_unread,
    )
    op.create_table(
        "trace_keys",
        Column("workspace_id", String(36), primary_key=True),
        Column("key", String(64), primary_key=True),
        Column("trace_id", String(32), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_trace_keys_trace", "trace_keys", ["workspace_id", "trace_id"])


def downgrade() -> None:
    """Back."""
    op.drop_table("trace_keys")
    op.drop_table("lineage_events")
