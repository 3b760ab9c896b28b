"""The ledger's tables. A change here needs a migration beside it (a test compares the two).

Identifiers of repositories are the text of a Binder URL (`git/https%3A%2F%2F…`). Times are aware and in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC. SQLite keeps no zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone must not go into the ledger")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        at: datetime = value
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

repositories = Table(
    "repositories",
    metadata,
    Column("repository", String(2048), primary_key=True),
    Column("default_branch", String(255)),
    Column("looked_at", UtcDateTime),
    Column("webhook_at", UtcDateTime),
    Column("webhook_missed", Boolean, nullable=False, default=False),
    Column("problem", Text),
)


def _repository() -> Column[str]:
    return Column(
        "repository", String(2048), ForeignKey("repositories.repository", ondelete="CASCADE"), primary_key=True
    )


refs = Table(
    "refs",
    metadata,
    _repository(),
    Column("kind", String(16), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("revision", String(64), nullable=False),
    Column("covered", String(64)),
)

revisions = Table(
    "revisions",
    metadata,
    _repository(),
    Column("revision", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("first_seen", UtcDateTime, nullable=False),
    Column("summary", Text),
    Column("via", String(255)),
    Column("image", String(512)),
    Column("image_since", UtcDateTime),
)

builds = Table(
    "builds",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("repository", String(2048), nullable=False),
    Column("ref", String(255), nullable=False),
    Column("revision", String(64), nullable=False),
    Column("image", String(512), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("queued_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("next_attempt_at", UtcDateTime),
    Column("failure", String(32)),
    Column("message", Text),
    Column("wanted", String(16), nullable=False),
    Column("recipe", String(64), nullable=False),
    Column("superseded", Boolean, nullable=False, default=False),
    Index(None, "state"),
    Index(None, "image", "queued_at"),
    Index(None, "queued_at"),
)

launches = Table(
    "launches",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("provider", String(32), nullable=False),
    Column("repository", String(2048), nullable=False),
    Column("ref", String(255), nullable=False),
    Column("revision", String(64)),
    Column("image", String(512)),
    Column("ok", Boolean, nullable=False),
    Column("failure", String(32)),
    Column("seconds", Float, nullable=False),
    Column("origin", Text, nullable=False, default=""),
    Index(None, "at"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("provider", String(32), primary_key=True),
    Column("delivery", String(255), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Index(None, "at"),
)
