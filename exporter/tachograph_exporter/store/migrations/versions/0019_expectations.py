"""What is expected of workflows, and notices about what does not hold."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String, Text, UniqueConstraint, text

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "workflow_expectations",
        Column("workspace_id", String(36), primary_key=True),
        Column("workflow", String(200), primary_key=True),
        Column("source", String(16), primary_key=True),
        Column("document", Text, nullable=False),
        Column("since_ns", BigInteger, nullable=False),
        Column("updated_ns", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "notices",
        Column("id", String(36), primary_key=True),
        Column("workspace_id", String(36), nullable=False),
        Column("workflow", String(200), nullable=False),
        Column("kind", String(32), nullable=False),
        Column("key", String(200), nullable=False),
        Column("severity", String(16), nullable=False),
        Column("opened_ns", BigInteger, nullable=False),
        Column("told_ns", BigInteger, nullable=False),
        Column("resolved_ns", BigInteger),
        Column("text", Text, nullable=False),
        Column("recovery", Text, nullable=False, server_default=""),
        Column("execution_id", String(36)),
        UniqueConstraint("workspace_id", "workflow", "kind", "key"),
    )
    op.create_index("ix_notices_told", "notices", ["told_ns"])
    is_open = text("resolved_ns IS NULL")
    op.create_index("ix_notices_open", "notices", ["workspace_id"], sqlite_where=is_open, postgresql_where=is_open)
    op.create_table(
        "notice_deliveries",
        Column("notice_id", String(36), primary_key=True),
        Column("phase", String(16), primary_key=True),
        Column("target", String(100), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("tries", Integer, nullable=False),
        Column("next_ns", BigInteger, nullable=False),
        Column("created_ns", BigInteger, nullable=False),
        Column("changed_ns", BigInteger, nullable=False),
        Column("sender", String(300), nullable=False, server_default=""),
        Column("reason", Text, nullable=False, server_default=""),
        sqlite_with_rowid=False,
    )
    is_due = text("state IN ('pending', 'sending')")
    op.create_index(
        "ix_deliveries_due",
        "notice_deliveries",
        ["target", "next_ns"],
        sqlite_where=is_due,
        postgresql_where=is_due,
    )
    op.create_table(
        "notice_silences",
        Column("id", String(36), primary_key=True),
        Column("workspace_id", String(36)),
        Column("workflow", String(200)),
        Column("kind", String(32)),
        Column("until_ns", BigInteger, nullable=False),
        Column("created_ns", BigInteger, nullable=False),
        Column("reason", Text, nullable=False, server_default=""),
    )


def downgrade() -> None:
    """Back."""
    for table in ("notice_silences", "notice_deliveries", "notices", "workflow_expectations"):
        op.drop_table(table)
