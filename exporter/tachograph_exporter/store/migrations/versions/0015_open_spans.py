"""Spans that have not ended, with their leases."""

import time

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String, text

revision = "0015"
down_revision = "0013"

# A span that is open already was last heard of when its trace changed. Executions that were silent for an hour were
# given up by earlier versions.
_HOUR_NS = 3_600_000_000_000
_OPEN = """
INSERT INTO open_spans (workspace_id, trace_id, span_id, start_ns, first_ns, seen_ns, size, process)
SELECT s.workspace_id, s.trace_id, s.span_id, s.start_ns, t.changed_ns, t.changed_ns, length(s.payload), ''
FROM spans AS s JOIN traces AS t ON t.workspace_id = s.workspace_id AND t.trace_id = s.trace_id
WHERE s.end_ns = 0 AND t.changed_ns > {since_ns}
"""


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "open_spans",
        Column("workspace_id", String(36), primary_key=True),
        Column("trace_id", String(32), primary_key=True),
        Column("span_id", String(16), primary_key=True),
        Column("start_ns", BigInteger, nullable=False),
        Column("first_ns", BigInteger, nullable=False),
        Column("seen_ns", BigInteger, nullable=False),
        Column("size", Integer, nullable=False),
        Column("process", String(32), nullable=False),
        Column("lost_ns", BigInteger),
        Column("told_lost_ns", BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_open_spans_process", "open_spans", ["workspace_id", "process"])
    is_leased = text("lost_ns IS NULL")
    op.create_index(
        "ix_open_spans_leased", "open_spans", ["workspace_id"], sqlite_where=is_leased, postgresql_where=is_leased
    )
    op.execute(text(_OPEN.format(since_ns=time.time_ns() - _HOUR_NS)))


def downgrade() -> None:
    """Back."""
    op.drop_table("open_spans")
