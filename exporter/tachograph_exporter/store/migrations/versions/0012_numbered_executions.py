"""Numbers of executions, and workflows that the API does not execute."""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, String, text, true

revision = "0012"
down_revision = "0011"

# Executions that are stored already are numbered in order of creation, archived ones included.
_NUMBERED = """
CREATE TEMPORARY TABLE numbered AS
SELECT execution_id, workflow_id,
       row_number() OVER (PARTITION BY workflow_id ORDER BY created_ns, execution_id) AS number
FROM (SELECT execution_id, workflow_id, created_ns FROM workflow_executions
      UNION ALL SELECT execution_id, workflow_id, created_ns FROM archived_executions) AS stored
"""
_FILL = """
UPDATE {table} SET number = (SELECT n.number FROM numbered AS n WHERE n.execution_id = {table}.execution_id)
"""
_LAST = "INSERT INTO execution_numbers (workflow_id, last) SELECT workflow_id, max(number) FROM numbered GROUP BY 1"


def upgrade() -> None:
    """Forward."""
    op.add_column("workflow_definitions", Column("is_active", Boolean, nullable=False, server_default=true()))
    op.create_table(
        "execution_numbers",
        Column("workflow_id", String(36), primary_key=True),
        Column("last", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(_NUMBERED)
    op.execute("CREATE UNIQUE INDEX ix_numbered ON numbered (execution_id)")
    for table in ("workflow_executions", "archived_executions"):
        op.add_column(table, Column("number", BigInteger))
        op.execute(_FILL.format(table=table))
    is_unnumbered = text("number IS NULL")
    op.create_index(
        "ix_executions_unnumbered",
        "workflow_executions",
        ["created_ns"],
        sqlite_where=is_unnumbered,
        postgresql_where=is_unnumbered,
    )
    op.execute(_LAST)
    op.execute("DROP TABLE numbered")


def downgrade() -> None:
    """Back."""
    op.drop_index("ix_executions_unnumbered", "workflow_executions")
    for table in ("workflow_executions", "archived_executions"):
        op.drop_column(table, "number")
    op.drop_table("execution_numbers")
    op.drop_column("workflow_definitions", "is_active")
