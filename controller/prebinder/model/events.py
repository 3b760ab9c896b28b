"""The events of a build: one typed stream, the same whatever builds.

A build's events are numbered from 1 without gaps, stored as they come, and sent to any number of followers from the
first. Exactly one event is terminal: `built` or `failed`; it is the last.
The phases are BinderHub's; no other name may reach a client (some give up on unknown ones).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from prebinder.model.failure import Failure, FailureKind


class Phase(StrEnum):
    """Phases of the Binder event stream, in order; `unknown` is a log line without a phase."""

    WAITING = "waiting"
    FETCHING = "fetching"
    BUILDING = "building"
    PUSHING = "pushing"
    BUILT = "built"
    LAUNCHING = "launching"
    READY = "ready"
    FAILED = "failed"
    UNKNOWN = "unknown"


class BuildEvent(BaseModel):
    """One event of one build, as stored (a JSON line) and as sent (the data of a server-sent event)."""

    model_config = ConfigDict(frozen=True)

    seq: int = Field(ge=1)
    at: datetime
    phase: Phase
    message: str
    """Text for people or a piece of log; may hold several lines; ends in a newline."""
    image: str | None = None
    """On `built`: what the Hub starts (by digest when a registry is used)."""
    failure: FailureKind | None = None
    """On `failed`: the kind."""

    @property
    def terminal(self) -> bool:
        return self.phase in (Phase.BUILT, Phase.FAILED)


class BuildState(StrEnum):
    """Where a build stands, as the ledger keeps it."""

    QUEUED = "queued"
    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in (BuildState.READY, BuildState.FAILED, BuildState.CANCELLED)


class Priority(StrEnum):
    """Why a build is wanted; a waiting person comes first."""

    PERSON = "person"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """Lower comes first."""
        return list(Priority).index(self)


class BuildRecord(BaseModel):
    """One build as the controller's API shows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    repository: str
    """As in a Binder URL, `<provider>/<escaped name>`."""
    ref: str
    revision: str
    image: str
    """The tagged reference that the build makes."""
    state: BuildState
    priority: Priority
    attempt: int
    queued_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    next_attempt_at: datetime | None = None
    failure: FailureKind | None = None
    message: str | None = None

    def as_failure(self) -> Failure | None:
        return Failure(self.failure, self.message or self.failure.heading) if self.failure else None
