"""The kind and status of a span, and indexes for searches on spans and traces."""

from typing import Any

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
    for name, where, columns in (
        ("ix_spans_failed", _FAILED, []),
        ("ix_spans_root", _ROOT, ["end_ns", "kind", "status", "service", "parent_span_id"]),
    ):
        key: list[Any] = ["workspace_id", text("start_ns DESC"), *columns]
        op.create_index(name, "spans", key, sqlite_where=where, postgresql_where=where)
    op.drop_index("ix_spans_service", "spans")
    op.create_index("ix_spans_service", "spans", ["workspace_id", "service", text("start_ns DESC"), "end_ns"])
    op.drop_index("ix_traces_start", "traces")
    op.create_index("ix_traces_start", "traces", ["workspace_id", text("start_ns DESC"), "end_ns"])
    rootless = text("root_rank = 0")
    op.create_index(
        "ix_traces_rootless",
        "traces",
        ["workspace_id", text("start_ns DESC"), "end_ns", "root_rank"],
        sqlite_where=rootless,
        postgresql_where=rootless,
    )
    for column in ("root_name", "root_service"):
        op.create_index(f"ix_traces_{column}", "traces", ["workspace_id", column, text("start_ns DESC")])


def downgrade() -> None:
    """Back."""
    op.drop_index("ix_traces_root_service", "traces")
    op.drop_index("ix_traces_rootless", "traces")
    op.drop_index("ix_traces_root_name", "traces")
    op.drop_index("ix_traces_start", "traces")
    op.create_index("ix_traces_start", "traces", ["workspace_id", text("start_ns DESC")])
    op.drop_index("ix_spans_root", "spans")
    op.drop_index("ix_spans_service", "spans")
    op.create_index("ix_spans_service", "spans", ["workspace_id", "service", text("start_ns DESC")])
    op.drop_index("ix_spans_failed", "spans")
    op.drop_index("ix_spans_name", "spans")
    op.drop_column("spans", "status")
    op.drop_column("spans", "kind")
