"""The kind and status of a span, and indexes on its name and status, for searches."""

from alembic import op
from sqlalchemy import Column, SmallInteger, text

revision = "0010"
down_revision = "0009"

_FAILED = text("status = 2 OR status IS NULL")
_ROOT = text("parent_span_id = ''")


def upgrade() -> None:
    """Forward. Spans that are there keep NULL: a search reads what it needs from their payload."""
    op.add_column("spans", Column("kind", SmallInteger))
    op.add_column("spans", Column("status", SmallInteger))
    op.create_index(
        "ix_spans_name",
        "spans",
        ["workspace_id", text("substr(name, 1, 100)"), text("start_ns DESC"), "end_ns", "status"],
    )
    for name, where in (("ix_spans_failed", _FAILED), ("ix_spans_root", _ROOT)):
        op.create_index(
            name, "spans", ["workspace_id", text("start_ns DESC")], sqlite_where=where, postgresql_where=where
        )


def downgrade() -> None:
    """Back."""
    op.drop_index("ix_spans_root", "spans")
    op.drop_index("ix_spans_failed", "spans")
    op.drop_index("ix_spans_name", "spans")
    op.drop_column("spans", "status")
    op.drop_column("spans", "kind")
