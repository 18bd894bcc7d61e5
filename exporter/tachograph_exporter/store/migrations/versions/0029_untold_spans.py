"""Spans that were stored before their executions were assembled, by trace."""

from alembic import op
from sqlalchemy import Column, LargeBinary

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Forward."""
    op.add_column("traces", Column("untold", LargeBinary))


def downgrade() -> None:
    """Back. What has only been stored is assembled when its trace is due, as it is in the older schema."""
    op.drop_column("traces", "untold")
