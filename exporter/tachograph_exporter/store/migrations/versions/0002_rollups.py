"""Rollups, access tokens, the archive's index, the event log; on PostgreSQL the run tables partitioned by month."""

import time
from datetime import UTC, datetime

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, String, Text, text

revision = "0002"
down_revision = "0001"

RUN_TABLES = {
    "workflow_executions": "execution_id",
    "workflow_step_executions": "execution_id, step_id",
    "workflow_step_attempts": "execution_id, step_id, attempt",
    "workflow_step_reports": "execution_id, step_id, sequence",
}


def upgrade() -> None:
    """Forward."""
    connection = op.get_bind()
    op.add_column("workflow_executions", Column("critical_path", Text))
    if connection.dialect.name == "postgresql":
        _partition()
    op.create_index("ix_executions_finished", "workflow_executions", ["workspace_id", "workflow_id", "finished_ns"])
    op.create_table(
        "workflow_rollups",
        Column("workspace_id", String(36), primary_key=True),
        Column("workflow_id", String(36), primary_key=True),
        Column("period", String(4), primary_key=True),
        Column("start_s", BigInteger, primary_key=True),
        Column("executions", LargeBinary, nullable=False),
        Column("steps", LargeBinary, nullable=False),
    )
    op.create_table(
        "rollup_heads",
        Column("workspace_id", String(36), primary_key=True),
        Column("workflow_id", String(36), primary_key=True),
        Column("head_s", BigInteger, nullable=False),
        Column("revision", BigInteger, nullable=False),
        Column("closed_revision", BigInteger, nullable=False),
    )
    op.create_table(
        "access_tokens",
        Column("id", String(36), primary_key=True),
        Column("digest", String(64), nullable=False, unique=True),
        Column("name", String(200), nullable=False),
        Column("scopes", String(200), nullable=False),
        Column("workspace_id", String(36), ForeignKey("workspaces.id")),
        Column("created_ns", BigInteger, nullable=False),
        Column("expires_ns", BigInteger),
        Column("revoked_ns", BigInteger),
    )
    op.create_table(
        "archived_executions",
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
        Column("status", String(16), nullable=False),
        Column("queued_ns", BigInteger),
        Column("started_ns", BigInteger),
        Column("finished_ns", BigInteger),
        Column("last_seen_ns", BigInteger, nullable=False),
        Column("step_count", Integer, nullable=False),
        Column("completed_step_count", Integer, nullable=False),
        Column("failed_step_count", Integer, nullable=False),
        Column("skipped_step_count", Integer, nullable=False),
        Column("work_ns", BigInteger),
        Column("critical_path_ns", BigInteger),
        Column("error_type", String(300)),
        Column("error_message", Text),
        Column("inputs", Text),
        Column("archive", Text, nullable=False),
    )
    op.create_index(
        "ix_archived_workflow", "archived_executions", ["workspace_id", "workflow_id", text("created_ns DESC")]
    )
    op.create_table(
        "store_state",
        Column("name", String(100), primary_key=True),
        Column("value", Text, nullable=False),
        Column("updated_ns", BigInteger, nullable=False),
    )
    op.create_table(
        "event_log",
        Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        Column("origin", String(36), nullable=False),
        Column("time_ns", BigInteger, nullable=False),
        Column("count", Integer, nullable=False),
        Column("events", LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    # `database.prepare` rebuilds the rollups of existing executions after the migration.
    connection.execute(
        text("INSERT INTO store_state (name, value, updated_ns) VALUES ('rollups', 'stale', :now)"),
        {"now": time.time_ns()},
    )


def _partition() -> None:
    connection = op.get_bind()
    for table in RUN_TABLES:
        old = f"{table}_0001"
        op.execute(f"ALTER TABLE {table} RENAME TO {old}")
        op.execute(f'ALTER TABLE {old} ALTER COLUMN execution_id TYPE varchar(36) COLLATE "C"')
        op.execute(f"CREATE TABLE {table} (LIKE {old} INCLUDING DEFAULTS) PARTITION BY RANGE (execution_id)")
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    months = set()
    is_version_7 = "execution_id LIKE '________-____-7%'"
    ids = f"SELECT DISTINCT substr(execution_id, 1, 13) FROM workflow_executions_0001 WHERE {is_version_7}"  # noqa: S608
    for (prefix,) in connection.execute(text(ids)):
        moment = datetime.fromtimestamp(int(prefix.replace("-", ""), 16) / 1000, UTC)
        if 2000 <= moment.year <= 2200:
            months.add((moment.year, moment.month))
    for year, month in sorted(months):
        low, high = _bound(year, month), _bound(year + month // 12, month % 12 + 1)
        for table in RUN_TABLES:
            op.execute(
                f"CREATE TABLE {table}_y{year}m{month:02d} PARTITION OF {table} FOR VALUES FROM ('{low}') TO ('{high}')"
            )
    for table, key in RUN_TABLES.items():
        op.execute(f"INSERT INTO {table} SELECT * FROM {table}_0001")  # noqa: S608
        op.execute(f"DROP TABLE {table}_0001")
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({key})")
    _run_indexes()


def _bound(year: int, month: int) -> str:
    hexed = f"{round(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000):012x}"
    return f"{hexed[:8]}-{hexed[8:]}"


def _run_indexes() -> None:
    table = "workflow_executions"
    op.create_index("ix_executions_workflow", table, ["workspace_id", "workflow_id", text("created_ns DESC")])
    op.create_index("ix_executions_workspace", table, ["workspace_id", text("created_ns DESC")])
    op.create_index("ix_executions_trace", table, ["trace_id"])
    op.create_index(
        "ix_executions_open", table, ["last_seen_ns"], postgresql_where=text("status IN ('pending', 'running')")
    )


def downgrade() -> None:
    """Back. Archived executions stay in their files and are no longer listed."""
    for table in (
        "event_log",
        "store_state",
        "archived_executions",
        "access_tokens",
        "rollup_heads",
        "workflow_rollups",
    ):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for table, key in RUN_TABLES.items():
            op.execute(f"ALTER TABLE {table} RENAME TO {table}_0002")
            op.execute(f"CREATE TABLE {table} (LIKE {table}_0002 INCLUDING DEFAULTS)")
            op.execute(f"INSERT INTO {table} SELECT * FROM {table}_0002")  # noqa: S608
            op.execute(f"DROP TABLE {table}_0002")
            op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({key})")
        _run_indexes()
    else:
        op.drop_index("ix_executions_finished", "workflow_executions")
    op.drop_column("workflow_executions", "critical_path")
