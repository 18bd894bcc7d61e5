"""Traces and operations of the spans received by OTLP."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, SmallInteger, String, text

revision = "0004"
down_revision = "0003"

_FILL = """
INSERT INTO traces (workspace_id, trace_id, span_count, changed_ns, start_ns, end_ns, root_rank, root_start_ns,
                    root_service, root_name)
SELECT s.workspace_id, s.trace_id, t.spans, t.ended, t.began, t.ended,
       CASE WHEN s.parent_span_id = '' THEN 1 ELSE 0 END, s.start_ns, s.service, substr(s.name, 1, 200)
FROM spans AS s
JOIN (SELECT workspace_id, trace_id, count(*) AS spans, min(start_ns) AS began,
             max(CASE WHEN end_ns > start_ns THEN end_ns ELSE start_ns END) AS ended
      FROM spans GROUP BY workspace_id, trace_id) AS t
  ON t.workspace_id = s.workspace_id AND t.trace_id = s.trace_id
WHERE s.span_id = (SELECT r.span_id FROM spans AS r
                   WHERE r.workspace_id = s.workspace_id AND r.trace_id = s.trace_id
                   ORDER BY CASE WHEN r.parent_span_id = '' THEN 0 ELSE 1 END, r.start_ns, r.span_id LIMIT 1)
"""
# The kind is inside the payload: it is unspecified until such a span arrives again.
_OPERATIONS = """
INSERT INTO span_operations (workspace_id, service, name, kind, last_ns)
SELECT workspace_id, service, substr(name, 1, 200), 0, max(start_ns)
FROM spans GROUP BY workspace_id, service, substr(name, 1, 200)
"""


def upgrade() -> None:
    """Forward."""
    op.add_column("spans", Column("told", SmallInteger, nullable=False, server_default="1"))
    op.create_table(
        "traces",
        Column("workspace_id", String(36), primary_key=True),
        Column("trace_id", String(32), primary_key=True),
        Column("span_count", Integer, nullable=False),
        Column("changed_ns", BigInteger, nullable=False),
        Column("start_ns", BigInteger, nullable=False),
        Column("end_ns", BigInteger, nullable=False),
        Column("root_rank", SmallInteger, nullable=False),
        Column("root_start_ns", BigInteger, nullable=False),
        Column("root_service", String(200), nullable=False),
        Column("root_name", String(200), nullable=False),
        Column("due_ns", BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_traces_start", "traces", ["workspace_id", text("start_ns DESC")])
    is_due = text("due_ns IS NOT NULL")
    op.create_index("ix_traces_due", "traces", ["due_ns"], sqlite_where=is_due, postgresql_where=is_due)
    op.create_table(
        "span_operations",
        Column("workspace_id", String(36), primary_key=True),
        Column("service", String(200), primary_key=True),
        Column("name", String(200), primary_key=True),
        Column("kind", SmallInteger, primary_key=True),
        Column("last_ns", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(_FILL)
    op.execute(_OPERATIONS)


def downgrade() -> None:
    """Back."""
    op.drop_table("span_operations")
    op.drop_table("traces")
    op.drop_column("spans", "told")
