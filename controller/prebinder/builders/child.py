"""What the builder and the process that runs repo2docker say to each other.

The order goes in as a JSON file (nothing of it is on a command line, where a repository could name an option), progress
comes out as JSON lines on standard error, and the last line says which step failed.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Step(StrEnum):
    """The steps of a build, by whose fault a failure is."""

    CLONE = "clone"
    """Reaching the Git host and cloning."""
    REVISION = "revision"
    """The clone has no such commit."""
    CONTENT = "content"
    """What the repository holds cannot be built: submodules, links out of it, files that do not parse."""
    UNSUPPORTED = "unsupported"
    """It needs a build pack or content provider that is not enabled."""
    BUILD = "build"
    """A step of the Dockerfile, or the engine."""
    PUSH = "push"


class ChildOrder(BaseModel):
    """All that the process needs to know."""

    model_config = ConfigDict(frozen=True)

    parent: int
    """Process id of the builder; the process ends when it does."""
    clone_url: str
    revision: str
    image: str
    engine: Literal["podman", "docker", "buildah"]
    build_pack: str
    base_image: str | None
    push: bool
    memory_limit: int
    auth_file: Path | None
    tls_verify: bool
    all_providers: bool
    certificates: Path | None = None
    """A bundle of certificate authorities that build steps trust (buildah)."""
    checkout: Path


class ChildFailure(BaseModel):
    """The last line of a process that failed: `{"failed": {"step": …, "message": …}}`."""

    model_config = ConfigDict(frozen=True)

    step: Step
    message: str = ""
    """For people; empty when the log says it."""


class ChildLine(BaseModel):
    """One line on standard error: repo2docker's `--json-logs`, or our last word."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    message: str = ""
    phase: str | None = None
    failed: ChildFailure | None = None
