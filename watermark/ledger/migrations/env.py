"""Run by Alembic: brings the ledger's tables up to date on the connection that `watermark.ledger.schema` hands over."""

from __future__ import annotations

from alembic import context

from watermark.ledger.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    # Autogeneration and `alembic check` look at the ledger's tables and at no others of the database.
    include_name=lambda name, kind, _: kind != "table" or name in METADATA.tables,
)
context.run_migrations()
