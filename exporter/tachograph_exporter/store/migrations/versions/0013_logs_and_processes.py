"""Log records with their spans, and what processes measured of themselves."""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, SmallInteger, String, Text, text

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "span_logs",
        Column("workspace_id", String(36), primary_key=True),
        Column("trace_id", String(32), primary_key=True),
        Column("span_id", String(16), primary_key=True),
        Column("time_ns", BigInteger, primary_key=True, autoincrement=False),
        Column("id", String(16), primary_key=True),
        Column("severity", SmallInteger, nullable=False),
        Column("service", String(200), nullable=False),
        Column("event_name", String(200), nullable=False),
        Column("body", Text, nullable=False),
        Column("attributes", Text),
        Column("error_type", String(300)),
        Column("error_message", Text),
        Column("error_stack", Text),
        sqlite_with_rowid=False,
    )
    is_error, is_unknown = text("error_type IS NOT NULL"), text("NOT is_known")
    op.create_index(
        "ix_span_logs_error",
        "span_logs",
        ["workspace_id", "trace_id", "span_id"],
        sqlite_where=is_error,
        postgresql_where=is_error,
    )
    op.create_table(
        "log_traces",
        Column("workspace_id", String(36), primary_key=True),
        Column("trace_id", String(32), primary_key=True),
        Column("record_count", Integer, nullable=False),
        Column("dropped_count", BigInteger, nullable=False),
        Column("changed_ns", BigInteger, nullable=False),
        Column("is_known", Boolean, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_log_traces_changed", "log_traces", ["changed_ns"])
    op.create_index(
        "ix_log_traces_unknown", "log_traces", ["changed_ns"], sqlite_where=is_unknown, postgresql_where=is_unknown
    )
    op.create_table(
        "processes",
        Column("workspace_id", String(36), primary_key=True),
        Column("process_id", String(32), primary_key=True),
        Column("service", String(200), nullable=False),
        Column("instance_id", String(200), nullable=False),
        Column("host", String(200), nullable=False),
        Column("pid", BigInteger),
        Column("seen_ns", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_processes_seen", "processes", ["workspace_id", "seen_ns"])
    op.create_index("ix_processes_host", "processes", ["workspace_id", "host", "pid"])
    op.create_table(
        "process_metrics",
        Column("workspace_id", String(36), primary_key=True),
        Column("process_id", String(32), primary_key=True),
        Column("name", String(200), primary_key=True),
        Column("attributes", String(500), primary_key=True),
        Column("window_s", BigInteger, primary_key=True, autoincrement=False),
        Column("unit", String(50), nullable=False),
        Column("kind", String(10), nullable=False),
        Column("latest", Double, nullable=False),
        Column("low", Double, nullable=False),
        Column("high", Double, nullable=False),
        Column("latest_ns", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_process_metrics_window", "process_metrics", ["window_s"])


def downgrade() -> None:
    """Back."""
    for table in ("process_metrics", "processes", "log_traces", "span_logs"):
        op.drop_table(table)
