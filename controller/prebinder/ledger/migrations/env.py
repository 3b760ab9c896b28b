"""Alembic's entry point: runs the migrations on the connection that `prebinder.ledger.migrate` hands over."""

from __future__ import annotations

from alembic import context

from prebinder.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most of a table in place; Alembic then copies it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
