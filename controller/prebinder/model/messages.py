"""Bodies of the controller's HTTP API (docs/controller-api.md), shared by both sides of the wire."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from prebinder.model.events import BuildRecord, Priority
from prebinder.model.failure import FailureKind


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BuildRequest(_Body):
    """`POST /api/builds`. `spec` is what follows the provider in a Binder URL, still escaped."""

    provider: str
    spec: str
    priority: Priority = Priority.PERSON
    rebuild: bool = False
    """Try again although the last attempt at this revision failed."""


class BuildReply(_Body):
    """The answer: the revision, and either the image that is there or the build to follow."""

    revision: str
    launchable: str | None = None
    build: BuildRecord | None = None


class Problem(_Body):
    """Body of every error."""

    kind: FailureKind
    message: str


class LaunchRecord(_Body):
    """One launch, for the ledger."""

    at: datetime
    provider: str
    repository: str
    ref: str
    revision: str | None
    image: str | None
    ok: bool
    failure: FailureKind | None = None
    seconds: float
    origin: str = ""


class HostStatus(_Body):
    """One registered repository as the status page shows it."""

    repository: str
    looked_at: datetime | None
    next_look_at: datetime | None
    problem: str | None = None


class HealthCheck(_Body):
    service: str
    ok: bool
    message: str | None = None


class Health(_Body):
    ok: bool
    checks: tuple[HealthCheck, ...] = ()


class PrepullNode(_Body):
    """A node of people's servers, and how many of the wanted images it holds."""

    name: str
    held: int


class PrepullStatus(_Body):
    """Images that wait on the nodes for their click (Kubernetes)."""

    enabled: bool
    wanted: int = 0
    """Images that should be on every node, as far as its budget goes."""
    nodes: tuple[PrepullNode, ...] = ()
    pulling: str | None = None
    """What comes onto which node now."""
    problem: str | None = None


class ControllerStatus(_Body):
    """`GET /api/status`."""

    version: str
    started_at: datetime
    configuration: str | None
    """Path of the file in force."""
    configuration_problem: str | None
    queued: tuple[BuildRecord, ...]
    running: tuple[BuildRecord, ...]
    repositories: tuple[HostStatus, ...]
    health: Health
    prepull: PrepullStatus | None = None
