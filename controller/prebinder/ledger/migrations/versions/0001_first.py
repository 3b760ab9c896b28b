"""What the controller saw and built: repositories, their refs and revisions, builds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _time() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "repositories",
        sa.Column("repository", sa.String(2048), nullable=False),
        sa.Column("default_branch", sa.String(255)),
        sa.Column("looked_at", _time()),
        sa.Column("webhook_at", _time()),
        sa.Column("webhook_missed", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("repository", name="pk_repositories"),
    )
    op.create_table(
        "refs",
        sa.Column("repository", sa.String(2048), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("covered", sa.String(64)),
        sa.PrimaryKeyConstraint("repository", "kind", "name", name="pk_refs"),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.repository"], name="fk_refs_repository", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "revisions",
        sa.Column("repository", sa.String(2048), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("first_seen", _time(), nullable=False),
        sa.Column("summary", sa.Text()),
        sa.Column("via", sa.String(255)),
        sa.Column("image", sa.String(512)),
        sa.Column("image_since", _time()),
        sa.PrimaryKeyConstraint("repository", "revision", name="pk_revisions"),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.repository"], name="fk_revisions_repository", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("repository", sa.String(2048), nullable=False),
        sa.Column("ref", sa.String(255), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("image", sa.String(512), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("queued_at", _time(), nullable=False),
        sa.Column("started_at", _time()),
        sa.Column("finished_at", _time()),
        sa.Column("next_attempt_at", _time()),
        sa.Column("failure", sa.String(32)),
        sa.Column("message", sa.Text()),
        sa.Column("wanted", sa.String(16), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_builds"),
    )
    op.create_index("ix_builds_state", "builds", ["state"])
    op.create_index("ix_builds_image_queued_at", "builds", ["image", "queued_at"])
    op.create_index("ix_builds_queued_at", "builds", ["queued_at"])
