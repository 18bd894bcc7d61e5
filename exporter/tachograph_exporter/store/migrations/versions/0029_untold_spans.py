"""Spans that were stored before their executions were assembled, by trace."""

from alembic import op
from sqlalchemy import Column, LargeBinary

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Forward."""
    op.add_column("traces", Column("untold", LargeBinary))
