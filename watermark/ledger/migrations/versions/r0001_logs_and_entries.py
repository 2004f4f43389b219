"""Logs, their entries and the nodes of their trees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "taggant_logs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("origin", sa.Text, nullable=False, unique=True),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
        sa.Column("session", sa.Text),
        sa.Column("opened", sa.Text),
        sa.Column("seen", sa.Text),
        sa.Column("accepted", sa.BigInteger),
        sa.Column("written", sa.BigInteger),
    )
    op.create_table(
        "taggant_entries",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("leaf_index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("started", sa.Text, nullable=False),
        sa.Column("ended", sa.Text, nullable=False),
        sa.Column("account", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("scope", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.Column("scheme", sa.Text),
        sa.Column("parameters", sa.Text, nullable=False),
        sa.Column("marked", sa.Boolean(create_constraint=False)),
        sa.Column("reason", sa.Text),
        sa.Column("digests", sa.Text, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
        sa.Column("token_ids", sa.LargeBinary),
        sa.Column("prompt_token_ids", sa.LargeBinary),
        sa.Column("response", sa.LargeBinary),
        sa.Column("prompt", sa.LargeBinary),
    )
    op.create_index("ix_taggant_entries_id", "taggant_entries", ["id"])
    op.create_index("ix_taggant_entries_started", "taggant_entries", ["started", "log_id", "leaf_index"])
    op.create_table(
        "taggant_nodes",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables, and with them the ledger."""
    for table in ("taggant_nodes", "taggant_entries", "taggant_logs"):
        op.drop_table(table)
