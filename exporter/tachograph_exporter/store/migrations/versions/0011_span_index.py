"""The index of what spans say, by day."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, SmallInteger, String, text

revision = "0011"
down_revision = "0010"

# Sources: 0 spans that arrived, 1 executions recorded here. What: 0 services, 1 operations. Attributes are noted from
# now on; readers look at traces of earlier days.
_ARRIVED = """
INSERT INTO span_index (workspace_id, day, what, name, source, kind, value)
SELECT DISTINCT workspace_id, last_ns / 86400000000000, 1, service, 0, kind, name FROM span_operations
"""
_RECORDED = """
INSERT INTO span_index (workspace_id, day, what, name, source, kind, value)
SELECT DISTINCT workspace_id, created_ns / 86400000000000, 1, 'tachograph', 1, 2, substr('run ' || workflow, 1, 200)
FROM workflow_executions WHERE coalesce(process, '') <> 'otlp'
"""
_STEPS = """
INSERT INTO span_index (workspace_id, day, what, name, source, kind, value)
SELECT DISTINCT e.workspace_id, coalesce(s.started_ns, s.attempt_started_ns, s.finished_ns) / 86400000000000, 1,
       'tachograph', 1, 1, s.name
FROM workflow_step_executions AS s JOIN workflow_executions AS e ON e.execution_id = s.execution_id
WHERE coalesce(e.process, '') <> 'otlp' AND coalesce(s.started_ns, s.attempt_started_ns, s.finished_ns) IS NOT NULL
"""
_SERVICES = """
INSERT INTO span_index (workspace_id, day, what, name, source, kind, value)
SELECT DISTINCT workspace_id, day, 0, '', source, 1, name FROM span_index WHERE what = 1
"""
_SINCE = """
INSERT INTO store_state (name, value, updated_ns)
SELECT 'span_index_since', CAST(coalesce(max(newest_ns), 0) AS VARCHAR(20)), 0
FROM (SELECT max(start_ns) AS newest_ns FROM spans UNION ALL SELECT max(created_ns) FROM workflow_executions) AS newest
"""


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "span_index",
        Column("workspace_id", String(36), primary_key=True),
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("what", SmallInteger, primary_key=True),
        Column("name", String(200), primary_key=True),
        Column("source", SmallInteger, primary_key=True),
        Column("kind", SmallInteger, primary_key=True),
        Column("value", String(200), primary_key=True),
        sqlite_with_rowid=False,
    )
    for statement in (_ARRIVED, _RECORDED, _STEPS, _SERVICES, _SINCE):
        op.execute(text(statement))
    op.drop_table("span_operations")


def downgrade() -> None:
    """Back."""
    op.create_table(
        "span_operations",
        Column("workspace_id", String(36), primary_key=True),
        Column("service", String(200), primary_key=True),
        Column("name", String(200), primary_key=True),
        Column("kind", SmallInteger, primary_key=True),
        Column("last_ns", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(
        text(
            "INSERT INTO span_operations (workspace_id, service, name, kind, last_ns) "
            "SELECT workspace_id, name, value, kind, max(day) * 86400000000000 FROM span_index "
            "WHERE what = 1 AND source = 0 GROUP BY workspace_id, name, value, kind"
        )
    )
    op.drop_table("span_index")
    op.execute(text("DELETE FROM store_state WHERE name = 'span_index_since'"))
