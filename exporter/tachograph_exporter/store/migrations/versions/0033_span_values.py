"""Which traces have a span with an attribute's value; and the index of all spans by start for those that ask for it."""

import time

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String, text

revision = "0033"
down_revision = "0032"

TABLE = "span_values"
_SINCE = "span_values_since"
_UPGRADE_NS = 3_600 * 10**9
"""How long services of earlier versions, which note no values, may still store spans."""


def upgrade() -> None:
    """Forward."""
    collation = "C" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        TABLE,
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("token", BigInteger, primary_key=True, autoincrement=False),
        Column("start_ns", BigInteger, primary_key=True, autoincrement=False),
        Column("trace_id", String(32, collation=collation), primary_key=True),
        **({} if collation else {"sqlite_with_rowid": False}),
    )
    op.drop_index("ix_spans_start", "spans")
    op.create_index("ix_spans_start", "spans", [text("(start_ns + 0)")])
    now_ns = time.time_ns()
    op.execute(
        text(
            "INSERT INTO store_state (name, value, updated_ns) "
            "SELECT :name, :since, :now WHERE EXISTS (SELECT 1 FROM spans)"
        ).bindparams(name=_SINCE, since=str(now_ns + _UPGRADE_NS), now=now_ns)
    )


def downgrade() -> None:
    """Back. Searches read the newest traces again."""
    op.drop_table(TABLE)
    op.drop_index("ix_spans_start", "spans")
    op.create_index("ix_spans_start", "spans", ["start_ns"])
    op.execute(text("DELETE FROM store_state WHERE name = :name").bindparams(name=_SINCE))
