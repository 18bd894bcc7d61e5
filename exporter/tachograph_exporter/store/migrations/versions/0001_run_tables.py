"""Workspaces, projects, definitions and the run tables."""

from alembic import op
from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, String, Text, UniqueConstraint, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "workspaces",
        Column("id", String(36), primary_key=True),
        Column("slug", String(200), nullable=False, unique=True),
        Column("name", String(200), nullable=False),
        Column("created_ns", BigInteger, nullable=False),
    )
    op.create_table(
        "projects",
        Column("id", String(36), primary_key=True),
        Column("workspace_id", String(36), ForeignKey("workspaces.id"), nullable=False),
        Column("slug", String(200), nullable=False),
        Column("name", String(200), nullable=False),
        Column("created_ns", BigInteger, nullable=False),
        UniqueConstraint("workspace_id", "slug"),
    )
    op.create_table(
        "workflow_definitions",
        Column("id", String(36), primary_key=True),
        Column("workspace_id", String(36), ForeignKey("workspaces.id"), nullable=False),
        Column("project", String(200), nullable=False, server_default="default"),
        Column("name", String(200), nullable=False),
        Column("description", Text, nullable=False, server_default=""),
        Column("version", String(200), nullable=False, server_default="1"),
        Column("document", Text),
        Column("created_ns", BigInteger, nullable=False),
        Column("updated_ns", BigInteger, nullable=False),
        UniqueConstraint("workspace_id", "name"),
    )
    op.create_table(
        "workflow_executions",
        Column("execution_id", String(36), primary_key=True),
        Column("workspace_id", String(36), nullable=False),
        Column("project", String(200), nullable=False),
        Column("workflow_id", String(36), nullable=False),
        Column("workflow", String(200), nullable=False),
        Column("version", String(200), nullable=False),
        Column("trace_id", String(32), nullable=False),
        Column("span_id", String(16), nullable=False),
        Column("parent_span_id", String(16)),
        Column("created_ns", BigInteger, nullable=False),
        Column("rank", Integer, nullable=False),
        Column("status", String(16), nullable=False),
        Column("queued_ns", BigInteger),
        Column("started_ns", BigInteger),
        Column("finished_ns", BigInteger),
        Column("last_seen_ns", BigInteger, nullable=False),
        Column("process", String(300)),
        Column("step_count", Integer, nullable=False),
        Column("completed_step_count", Integer, nullable=False),
        Column("failed_step_count", Integer, nullable=False),
        Column("skipped_step_count", Integer, nullable=False),
        Column("work_ns", BigInteger),
        Column("critical_path_ns", BigInteger),
        Column("error_type", String(300)),
        Column("error_message", Text),
        Column("error_stack", Text),
        Column("inputs", Text),
    )
    op.create_index(
        "ix_executions_workflow", "workflow_executions", ["workspace_id", "workflow_id", text("created_ns DESC")]
    )
    op.create_index("ix_executions_workspace", "workflow_executions", ["workspace_id", text("created_ns DESC")])
    op.create_index("ix_executions_trace", "workflow_executions", ["trace_id"])
    op.create_index(
        "ix_executions_open",
        "workflow_executions",
        ["last_seen_ns"],
        sqlite_where=text("status IN ('pending', 'running')"),
        postgresql_where=text("status IN ('pending', 'running')"),
    )
    op.create_table(
        "workflow_step_executions",
        Column("execution_id", String(36), primary_key=True),
        Column("step_id", String(36), primary_key=True),
        Column("name", String(200), nullable=False),
        Column("step_type", String(16), nullable=False),
        Column("step_order", Integer, nullable=False),
        Column("repetition", Integer, nullable=False),
        Column("parent_step_id", String(36)),
        Column("span_id", String(16), nullable=False),
        Column("parent_span_id", String(16), nullable=False),
        Column("depends_on", Text, nullable=False),
        Column("rank", BigInteger, nullable=False),
        Column("status", String(16), nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("ready_ns", BigInteger),
        Column("started_ns", BigInteger),
        Column("attempt_started_ns", BigInteger),
        Column("finished_ns", BigInteger),
        Column("dependency_ns", BigInteger),
        Column("queue_ns", BigInteger),
        Column("backoff_ns", BigInteger),
        Column("run_ns", BigInteger),
        Column("error_type", String(300)),
        Column("error_message", Text),
        Column("error_stack", Text),
        Column("skip_reason", String(32)),
        Column("inputs", Text),
        Column("output", Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "workflow_step_attempts",
        Column("execution_id", String(36), primary_key=True),
        Column("step_id", String(36), primary_key=True),
        Column("attempt", Integer, primary_key=True),
        Column("status", String(16), nullable=False),
        Column("started_ns", BigInteger, nullable=False),
        Column("finished_ns", BigInteger, nullable=False),
        Column("queue_ns", BigInteger, nullable=False),
        Column("backoff_ns", BigInteger, nullable=False),
        Column("error_type", String(300)),
        Column("error_message", Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "workflow_step_reports",
        Column("execution_id", String(36), primary_key=True),
        Column("step_id", String(36), primary_key=True),
        Column("sequence", Integer, primary_key=True),
        Column("attempt", Integer, nullable=False),
        Column("kind", String(16), nullable=False),
        Column("time_ns", BigInteger, nullable=False),
        Column("name", Text, nullable=False),
        Column("unit", String(50), nullable=False),
        Column("value", Double, nullable=False),
        Column("tokens_in", BigInteger, nullable=False),
        Column("tokens_out", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Back."""
    for table in (
        "workflow_step_reports",
        "workflow_step_attempts",
        "workflow_step_executions",
        "workflow_executions",
        "workflow_definitions",
        "projects",
        "workspaces",
    ):
        op.drop_table(table)
