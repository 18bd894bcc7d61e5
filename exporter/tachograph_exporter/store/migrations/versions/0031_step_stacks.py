"""Stacks of running steps, and who asks for them."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0029"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "step_stacks",
        sa.Column("execution_id", sa.String(36), primary_key=True),
        sa.Column("step_id", sa.String(36), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sa.Column("started_ns", sa.BigInteger, nullable=False),
        sa.Column("request", sa.String(36), nullable=False),
        sa.Column("samples", sa.BigInteger, nullable=False),
        sa.Column("interval_ns", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("cut", sa.BigInteger, nullable=False),
        sa.Column("stacks", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "stack_requests",
        sa.Column("execution_id", sa.String(36), primary_key=True),
        sa.Column("request", sa.String(36), nullable=False),
        sa.Column("requested_ns", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Back. The stacks are gone then."""
    op.drop_table("stack_requests")
    op.drop_table("step_stacks")
