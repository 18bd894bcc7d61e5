"""Lines that code wrote while it did a step's work."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, SmallInteger, String, Text

revision = "0032"
down_revision = "0031"

TABLE = "workflow_step_lines"


def upgrade() -> None:
    """Forward."""
    collation = "C" if op.get_bind().dialect.name == "postgresql" else None
    options = {"postgresql_partition_by": "RANGE (execution_id)"} if collation else {"sqlite_with_rowid": False}
    op.create_table(
        TABLE,
        Column("execution_id", String(36, collation=collation), primary_key=True),
        Column("step_id", String(36, collation=collation), primary_key=True),
        Column("attempt", Integer, primary_key=True),
        Column("writer", String(36, collation=collation), primary_key=True),
        Column("number", BigInteger, primary_key=True, autoincrement=False),
        Column("time_ns", BigInteger, nullable=False),
        Column("severity", SmallInteger, nullable=False),
        Column("logger", String(200), nullable=False),
        Column("message", Text, nullable=False),
        Column("error_type", String(300)),
        Column("error_message", Text),
        Column("error_stack", Text),
        **options,
    )
    if collation:
        # Those of the months are made as soon as somebody writes one of their executions.
        op.execute(f"CREATE TABLE {TABLE}_default PARTITION OF {TABLE} DEFAULT")


def downgrade() -> None:
    """Back. The lines are gone."""
    op.drop_table(TABLE)
