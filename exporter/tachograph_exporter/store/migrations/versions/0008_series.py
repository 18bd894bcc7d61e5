"""The series of ``/metrics``, kept in the database."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "workflow_series",
        Column("workspace_id", String(36), primary_key=True),
        Column("workflow_id", String(36), primary_key=True),
        Column("step", String(200), primary_key=True),
        Column("series", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "series_deltas",
        Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        Column("workspace_id", String(36), nullable=False),
        Column("workflow_id", String(36), nullable=False),
        Column("delta", LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table("series_unsettled", Column("execution_id", String(36), primary_key=True), sqlite_with_rowid=False)
    # They are counted from the executions when the schema is at its newest.
    op.execute(text("INSERT INTO store_state (name, value, updated_ns) VALUES ('series', 'stale', 0)"))


def downgrade() -> None:
    """Back."""
    for table in ("series_unsettled", "series_deltas", "workflow_series"):
        op.drop_table(table)
    op.execute(text("DELETE FROM store_state WHERE name LIKE 'series%'"))
