"""Brings a ledger to the version that this program knows, and refuses one that is newer.

Runs in a thread with an event loop and connection of its own: Alembic is blocking, the drivers are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from prebinder.model.failure import PrebinderError

MIGRATIONS = Path(__file__).parent / "migrations"


class LedgerError(PrebinderError):
    """The ledger cannot be opened or used."""


def upgrade(url: str, to: str = "head", connect_args: Mapping[str, Any] | None = None) -> None:
    """Migrate the database at a SQLAlchemy URL (asynchronous driver). Blocks. Raises LedgerError."""
    asyncio.run(_upgrade(url, to, connect_args or {}))


async def _upgrade(url: str, to: str, connect_args: Mapping[str, Any]) -> None:
    engine = create_async_engine(url, poolclass=pool.NullPool, connect_args=dict(connect_args))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run, to)
    finally:
        await engine.dispose()


def _run(connection: Connection, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    for have in MigrationContext.configure(connection).get_current_heads():
        if have not in known:
            raise LedgerError(
                f"The ledger was written by a newer Prebinder (its version is {have}). "
                "Start that version, or move the ledger away: links keep working, only its history is lost."
            )
    config.attributes["connection"] = connection
    command.upgrade(config, to)
