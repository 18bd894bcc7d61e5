"""Spans received by OTLP."""

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, String, Text, text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "spans",
        Column("workspace_id", String(36), primary_key=True),
        Column("trace_id", String(32), primary_key=True),
        Column("span_id", String(16), primary_key=True),
        Column("parent_span_id", String(16), nullable=False),
        Column("name", Text, nullable=False),
        Column("service", String(200), nullable=False),
        Column("start_ns", BigInteger, nullable=False),
        Column("end_ns", BigInteger, nullable=False),
        Column("resource_id", String(32), nullable=False),
        Column("payload", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_spans_service", "spans", ["workspace_id", "service", text("start_ns DESC")])
    op.create_index("ix_spans_start", "spans", ["start_ns"])
    op.create_table(
        "span_resources",
        Column("id", String(32), primary_key=True),
        Column("payload", LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Back."""
    op.drop_table("span_resources")
    op.drop_table("spans")
