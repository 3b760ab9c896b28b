"""Alembic migrations of the ledger, oldest first in `versions/`. They run by themselves when the controller starts."""
