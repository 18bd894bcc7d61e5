"""Records that were refused, and the answers to requests that may be sent again."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, Text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "refused_records",
        Column("id", String(36), primary_key=True),
        Column("kind", String(16), nullable=False),
        Column("workspace_id", String(36), nullable=False),
        Column("workspace", String(200), nullable=False),
        Column("subject", String(200), nullable=False),
        Column("reason", Text, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("refused_ns", BigInteger, nullable=False),
        Column("tries", Integer, nullable=False),
    )
    op.create_table(
        "keyed_answers",
        Column("scope", String(300), primary_key=True),
        Column("digest", String(64), primary_key=True),
        Column("fingerprint", String(64), nullable=False),
        Column("status", Integer, nullable=False),
        Column("nonce", LargeBinary, nullable=False),
        Column("answer", LargeBinary, nullable=False),
        Column("created_ns", BigInteger, nullable=False),
    )
    op.create_index("ix_keyed_answers_created", "keyed_answers", ["created_ns"])


def downgrade() -> None:
    """Back."""
    op.drop_table("keyed_answers")
    op.drop_table("refused_records")
