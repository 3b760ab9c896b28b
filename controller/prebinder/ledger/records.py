"""What goes into the ledger and comes out of it: plain values, so that no database object escapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from prebinder.model.catalogue import RefKind
from prebinder.model.events import BuildRecord


class Wish(StrEnum):
    """Why a build is made. The value is stored; never rename one."""

    TIP = "tip"
    """The policy wants the revision because a branch or tag stands there."""
    COMMIT = "commit"
    """The policy wants every commit, and a push brought this one."""
    PERSON = "person"
    """Somebody asked for it; a newer push never takes it away."""


@dataclass(frozen=True, slots=True)
class BuildEntry:
    """A build as the ledger keeps it: what the API shows, why it was made, and from which settings."""

    record: BuildRecord
    wish: Wish
    recipe: str
    """Digest of the settings that the outcome depends on; a failure is tried again when they change."""
    superseded: bool = False
    """Cancelled because a newer revision took its place, not by a person."""


@dataclass(frozen=True, slots=True)
class RefMemory:
    """Where a branch or tag stood when we last heard of it."""

    kind: RefKind
    name: str
    revision: str
    covered: str | None
    """The commits up to here have been asked for; differs from `revision` after a webhook or an outage."""


@dataclass(frozen=True, slots=True)
class RevisionMemory:
    """One commit that was seen."""

    revision: str
    position: int
    """Grows with each commit that is seen: the newest has the highest."""
    first_seen: datetime
    summary: str | None = None
    via: str | None = None
    """Set when it came between two positions of this ref, whose every commit is wanted."""
    image: str | None = None
    """What the Hub starts, when there was an image at the last look."""
    image_since: datetime | None = None
    """When the image was first seen, or found to be gone."""


@dataclass(frozen=True, slots=True)
class RepositoryMemory:
    """All that is remembered of a registered repository."""

    repository: str
    """As in a Binder URL."""
    default_branch: str | None = None
    looked_at: datetime | None = None
    webhook_at: datetime | None = None
    webhook_missed: bool = False
    """The last look found a change of which no webhook had told."""
    problem: str | None = None
    refs: tuple[RefMemory, ...] = ()
    revisions: Mapping[str, RevisionMemory] = field(default_factory=dict)
